"""Compute the metrics of all students and of the teacher (metrics/evaluate.json)."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_distill.batches.split import count_experts
from moe_distill.config.profile import Evaluate
from moe_distill.evaluation.measure import Comparison, Score, compare, require_same_bytes, score
from moe_distill.evaluation.metrics import (
    CalibrationBin,
    Metrics,
    bits_per_byte,
    calibration_bins,
    expected_calibration_error,
    perplexity,
    resampled_gain,
    retention,
)
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.shards.provenance import check_same_windows, check_tokenizer, check_vocabulary_map
from moe_distill.shards.teacher_nll import teacher_nll
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.vocabulary_store import open_vocabulary_map
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore, check_aligned
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.window_targets import TargetSettings, WindowTargets

# The text's own next token is left to the map: given to the target, top-1 agreement would measure the text.
AGREED_WITH = TargetSettings(temperature=1.0, order="map_then_temper", tail="residual", follows_text=False)

# What `dvc metrics show` and `dvc exp show` have columns for: all figures together are wider than a screen.
HEADLINES = (
    "student_bits_per_byte",
    "teacher_bits_per_byte",
    "lm_only_bits_per_byte",
    "gain_over_lm_only",
    "retention",
)
FEW_DOCUMENTS = 30  # fewer say little of how documents differ


@dataclass(frozen=True)
class EvaluationInputs:
    """Folders that evaluation reads; the teacher is not among them."""

    windows: Path  # data/windows
    targets: Path  # data/teacher_shards
    student_init: Path
    student_kd: Path
    student_lm_only: Path | None  # None: there is no LM baseline
    student: Path


@dataclass(frozen=True)
class Evaluation:
    """What has been measured; an undefined metric is absent, so all are finite."""

    metrics: dict[str, float]  # metrics/evaluate.json
    calibration: list[CalibrationBin]  # of the final student


def evaluate(inputs: EvaluationInputs, params: Evaluate, device: torch.device) -> Evaluation:
    """Measure everything that needs no teacher model, in fp32.

    Raises:
        DataError: windows, teacher targets, vocabulary map and students do not belong together.
    """
    windows = WindowStore(inputs.windows / "student/validation", STUDENT_WINDOWS)
    teacher_windows = WindowStore(inputs.windows / "teacher/validation", TEACHER_WINDOWS)
    targets = open_targets(inputs.targets / "validation")
    check_same_windows(windows.reader, targets)
    check_vocabulary_map(open_vocabulary_map(inputs.windows / "student/vocabulary_map"), windows.reader, targets)
    check_tokenizer(windows.reader, inputs.student)
    check_aligned(windows, teacher_windows)
    train_windows = WindowStore(inputs.windows / "student/train", STUDENT_WINDOWS)
    vocabulary_map = load_vocabulary_map(inputs.windows / "student/vocabulary_map", train_windows)
    window_targets = WindowTargets(windows, targets, vocabulary_map, AGREED_WITH)

    scores: dict[str, Score] = {}
    for name, folder in (
        ("student_init", inputs.student_init),
        ("student_kd", inputs.student_kd),
        ("lm_only", inputs.student_lm_only),
    ):
        if folder is None:
            continue
        scores[name] = score(load_causal_lm(folder, torch.float32, device), windows, params.batch_windows)
    student = load_causal_lm(inputs.student, torch.float32, device)
    scores["student"] = score(student, windows, params.batch_windows)
    comparison = compare(student, windows, window_targets, params.batch_windows)
    documents = torch.cat(list(windows.reader.columns("documents"))).unique()
    teacher_sum, teacher_bytes = teacher_nll(teacher_windows, targets, documents)
    require_same_bytes(scores["student"], (teacher_sum, teacher_bytes))
    bpb = {name: each.bits_per_byte for name, each in scores.items()}
    bpb["teacher"] = bits_per_byte(teacher_sum, teacher_bytes)
    parameters, n_bytes = student.num_parameters(), student.get_memory_footprint(return_buffers=False)
    sizes = targets.index.metadata
    teacher_parameters, teacher_weights = sizes["teacher_parameters"], sizes["teacher_bytes"]
    assert isinstance(teacher_parameters, int)
    assert isinstance(teacher_weights, int)
    metrics = {f"{name}_bits_per_byte": value for name, value in bpb.items()}
    metrics |= {
        "teacher_experts": float(count_experts(targets)),
        "teacher_parameters": float(teacher_parameters),
        "student_parameters": float(parameters),
        "compression_ratio": teacher_parameters / parameters,
        "teacher_bytes": float(teacher_weights),  # in the teacher stage's precision
        "student_bytes": float(n_bytes),  # in fp32, as exported
        "bytes_ratio": teacher_weights / n_bytes,
    }
    if "lm_only" in scores:
        metrics |= gain_metrics(scores["student"], scores["lm_only"], windows)
    kept = retention(bpb["student_init"], bpb["student"], bpb["teacher"])
    metrics |= {"retention_undefined": 1.0} if kept is None else {"retention": kept}
    metrics |= student_metrics(scores["student"], comparison) | source_metrics(scores["student"], windows)
    return Evaluation(metrics, calibration_bins(comparison.calibration))


def training_metrics(teacher: Metrics, train_router: Metrics, control: Metrics) -> dict[str, float]:
    """What the report needs of the stages before: metrics/<stage>.json of each; of no baseline, `control` is empty."""
    figures = {"teacher_tokens_per_second": teacher["positions_per_second"]}
    for name, trained in (("student", train_router), ("lm_only", control)):
        figures |= {f"{name}_{key}": trained[key] for key in ("steps", "stopped_early") if trained}
    if "kd_weight" in train_router:
        figures["kd_weight_at_the_end"] = train_router["kd_weight"]
    return figures


def headlines(metrics: Metrics) -> dict[str, float]:
    """The metrics that runs are compared by first (metrics/summary.json); one that is undefined is absent."""
    return {name: metrics[name] for name in HEADLINES if name in metrics}


def gain_metrics(student: Score, lm_only: Score, windows: WindowStore) -> dict[str, float]:
    """What distillation has gained over LM alone in bits per byte, and the 95% interval of it over texts.

    A text is a document, whose windows are alike; with few documents it is a window.
    """
    _, text_W = torch.cat(list(windows.reader.columns("documents"))).unique(return_inverse=True)
    if int(text_W.max()) + 1 < FEW_DOCUMENTS:
        text_W = torch.arange(len(windows))
    gain_W, n_texts = lm_only.nll_W - student.nll_W, int(text_W.max()) + 1
    gain_X = torch.zeros(n_texts, dtype=torch.float64).index_add(0, text_W, gain_W)
    bytes_X = torch.zeros(n_texts, dtype=torch.int64).index_add(0, text_W, windows.byte_counts)
    low, high = resampled_gain(gain_X, bytes_X)
    return {
        "gain_over_lm_only": lm_only.bits_per_byte - student.bits_per_byte,
        "gain_over_lm_only_low": low,
        "gain_over_lm_only_high": high,
    }


def source_metrics(student: Score, windows: WindowStore) -> dict[str, float]:
    """`bits_per_byte_<source>` of the final student; empty where the windows are of one source."""
    names, sources_W = windows.sources()
    found = [(name, sources_W == number) for number, name in enumerate(names) if (sources_W == number).any()]
    if len(found) < 2:
        return {}
    return {
        f"bits_per_byte_{name}": bits_per_byte(float(student.nll_W[of_it].sum()), int(windows.byte_counts[of_it].sum()))
        for name, of_it in found
    }


def student_metrics(student: Score, comparison: Comparison) -> dict[str, float]:
    """Metrics of the final student alone, and of its agreement with the teacher at aligned positions."""
    nll_per_token = student.nll / student.tokens
    of_tokens = perplexity(nll_per_token)  # may be infinite, which JSON has no notation for
    positions = max(comparison.agreement.positions, 1)
    return {
        "student_nll_per_token": nll_per_token,
        **({"student_perplexity": of_tokens} if math.isfinite(of_tokens) else {"student_perplexity_infinite": 1.0}),
        "top1_agreement": comparison.agreement.top1 / positions,
        "top5_overlap": comparison.agreement.top5 / positions,
        "kl_teacher_student": comparison.agreement.kl / positions,
        "expected_calibration_error": expected_calibration_error(calibration_bins(comparison.calibration)),
        "student_tokens_per_second": student.tokens / student.seconds,
    }
