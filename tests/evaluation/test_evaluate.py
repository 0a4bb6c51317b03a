"""All figures together, of a real small chain."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_distill.evaluation.evaluate import (
    AGREED_WITH,
    HEADLINES,
    EvaluationInputs,
    evaluate,
    gain_metrics,
    headlines,
    training_metrics,
)
from moe_distill.evaluation.measure import Score, compare, score
from moe_distill.evaluation.metrics import resampled_gain
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.reporting.report import kd_weight_told
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.window_targets import WindowTargets
from tests.chain import Chain, capture, tokenize, topic_texts, write_corpus
from tests.params import fixed_params
from tests.shards.forge import forge_metadata
from tests.stores import BYTES, Stores

NLL = ([20.0, 3.0, 40.0, 12.0, 55.0], [18.0, 4.0, 31.0, 12.5, 50.0])  # of each window: LM alone, student


def test_r27_parameters_and_bytes_of_both_models_are_reported(chain: Chain) -> None:
    student = chain.folder / "models/student_init"
    inputs = EvaluationInputs(chain.folder / "data/windows", chain.targets, student, student, student, student)
    figures = evaluate(inputs, chain.params.profile.evaluate, torch.device("cpu")).metrics
    for role, folder in (("teacher", "teacher"), ("student", "student_init")):
        weights = load_file(chain.folder / "models" / folder / "model.safetensors").values()
        assert figures[f"{role}_parameters"] == sum(weight.numel() for weight in weights)
        assert figures[f"{role}_bytes"] == sum(weight.nbytes for weight in weights)
    assert figures["bytes_ratio"] == figures["teacher_bytes"] / figures["student_bytes"]
    assert figures["compression_ratio"] == figures["teacher_parameters"] / figures["student_parameters"]
    assert headlines(figures) == {name: figures[name] for name in HEADLINES}


NOISE = {"student_init": 0.5, "student_kd": 0.1, "lm_only": 0.2, "student": 0.05}  # on the weights of each student


@pytest.fixture(scope="module")
def four_students(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Chain, dict[str, float]]:
    """A chain whose four students differ, on text of two sources; and its figures."""
    copied = chain.copy(tmp_path_factory.mktemp("four") / "chain")
    shutil.rmtree(copied.folder / "data/corpus")
    write_corpus(copied.folder / "data/corpus", [text[:1500] for text in topic_texts(40)])  # several are validated on
    tokenize(copied.folder, copied.params)
    capture(copied.folder, copied.params)
    untrained = load_file(chain.folder / "models/student_init/model.safetensors")
    folders = {name: copied.folder / name for name in NOISE}
    for seed, (name, folder) in enumerate(folders.items()):
        shutil.copytree(chain.folder / "models/student_init", folder)
        generator = torch.Generator().manual_seed(seed)
        weights = {
            key: weight + NOISE[name] * torch.randn(weight.shape, generator=generator)
            for key, weight in untrained.items()
        }
        (folder / "model.safetensors").unlink()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = copied.windows / "validation"
    last = int(documents_of(WindowStore(path, STUDENT_WINDOWS)).max())
    assert last > 0
    forge_metadata(path, source_names='["a", "b"]', source_starts=[0, last])
    inputs = EvaluationInputs(copied.folder / "data/windows", copied.targets, *folders.values())
    return copied, evaluate(inputs, copied.params.profile.evaluate, torch.device("cpu")).metrics


def documents_of(windows: WindowStore) -> Tensor:
    return torch.cat(list(windows.reader.columns("documents")))


def test_the_figures_of_each_student_are_those_of_its_own_folder(four_students: tuple[Chain, dict[str, float]]) -> None:
    chain, figures = four_students
    windows = WindowStore(chain.windows / "validation", STUDENT_WINDOWS)
    scores = {
        name: score(load_causal_lm(chain.folder / name, torch.float32, torch.device("cpu")), windows, 1)
        for name in NOISE
    }
    bpb = {name: each.bits_per_byte for name, each in scores.items()}
    assert len({round(value, 2) for value in bpb.values()}) == 4
    assert {name: figures[f"{name}_bits_per_byte"] for name in bpb} == pytest.approx(bpb, rel=1e-5)
    assert figures["gain_over_lm_only"] == pytest.approx(bpb["lm_only"] - bpb["student"], rel=1e-4)
    to_teacher = bpb["student_init"] - figures["teacher_bits_per_byte"]
    assert figures["retention"] == pytest.approx((bpb["student_init"] - bpb["student"]) / to_teacher, rel=1e-4)
    documents = documents_of(windows)
    for source, of_it in (("a", documents < documents.max()), ("b", documents == documents.max())):
        bits = float(scores["student"].nll_W[of_it].sum()) / math.log(2)
        assert figures[f"bits_per_byte_{source}"] == pytest.approx(
            bits / int(windows.byte_counts[of_it].sum()), rel=1e-5
        )


def test_agreement_is_a_mean_over_positions_by_a_map_that_has_seen_the_training_text_alone(
    four_students: tuple[Chain, dict[str, float]],
) -> None:
    chain, figures = four_students
    windows = WindowStore(chain.windows / "validation", STUDENT_WINDOWS)
    student = load_causal_lm(chain.folder / "student", torch.float32, torch.device("cpu"))
    by_train, by_validation = (
        compare(student, windows, targets_seen_by(chain, windows, split), 1).agreement
        for split in ("train", "validation")
    )
    assert figures["kl_teacher_student"] == pytest.approx(by_train.kl / by_train.positions, rel=1e-5)
    assert figures["top1_agreement"] == pytest.approx(by_train.top1 / by_train.positions, abs=1e-3)
    assert by_train.kl != pytest.approx(by_validation.kl, rel=1e-3)


def targets_seen_by(chain: Chain, windows: WindowStore, split: str) -> WindowTargets:
    """What the teacher says of some windows, by the map that has counted next tokens in a split."""
    counted = WindowStore(chain.windows / split, STUDENT_WINDOWS)
    vocabulary_map = load_vocabulary_map(chain.windows / "vocabulary_map", counted)
    return WindowTargets(windows, open_targets(chain.targets / "validation"), vocabulary_map, AGREED_WITH)


def test_without_a_baseline_no_figure_of_it_is_made_up(chain: Chain) -> None:
    student = chain.folder / "models/student_init"
    inputs = EvaluationInputs(chain.folder / "data/windows", chain.targets, student, student, None, student)
    figures = evaluate(inputs, chain.params.profile.evaluate, torch.device("cpu")).metrics
    assert not [name for name in (*figures, *headlines(figures)) if "lm_only" in name]
    assert {"student_bits_per_byte", "student_kd_bits_per_byte", "top1_agreement"} <= set(figures)
    figures |= training_metrics({"positions_per_second": 9.0}, {"steps": 4.0, "stopped_early": 0.0}, {})
    assert not [name for name in figures if "lm_only" in name]
    assert (figures["student_steps"], figures["teacher_tokens_per_second"]) == (4.0, 9.0)


def test_the_report_tells_what_the_teacher_had_earned_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "train_router_validation.tsv").write_text("step\tkd_weight\n10\t0.9\n20\t0.625\n")
    params = fixed_params()
    assert kd_weight_told(params, tmp_path) == "0.9"
    experiment = params.experiment.model_copy(update={"kd_weight": "auto"})
    assert kd_weight_told(params.model_copy(update={"experiment": experiment}), tmp_path) == "auto (0.625 at the end)"


def test_a_gain_is_of_documents_where_there_are_many_and_else_of_windows(stores: Stores) -> None:
    """Five windows of three documents: windows. Were three many, windows of one document would go together."""
    lm_only, student = (Score(torch.tensor(nll, dtype=torch.float64), 49, 147, 1.0) for nll in NLL)
    by_window = gain_metrics(student, lm_only, stores.student)
    gain_W = torch.tensor([a - b for a, b in zip(*NLL, strict=True)], dtype=torch.float64)
    bytes_W = torch.tensor(BYTES)
    assert (by_window["gain_over_lm_only_low"], by_window["gain_over_lm_only_high"]) == resampled_gain(gain_W, bytes_W)
    assert by_window["gain_over_lm_only"] == pytest.approx(float(gain_W.sum()) / math.log(2) / 147)


def test_windows_of_a_document_are_resampled_together(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_distill.evaluation.evaluate.FEW_DOCUMENTS", 3)
    lm_only, student = (Score(torch.tensor(nll, dtype=torch.float64), 49, 147, 1.0) for nll in NLL)
    found = gain_metrics(student, lm_only, stores.student)
    gain_W = [a - b for a, b in zip(*NLL, strict=True)]
    of_documents = torch.tensor([gain_W[0] + gain_W[1], gain_W[2], gain_W[3] + gain_W[4]], dtype=torch.float64)
    bytes_of_documents = torch.tensor([BYTES[0] + BYTES[1], BYTES[2], BYTES[3] + BYTES[4]])
    low, high = resampled_gain(of_documents, bytes_of_documents)
    assert (found["gain_over_lm_only_low"], found["gain_over_lm_only_high"]) == (low, high)
