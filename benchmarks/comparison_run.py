"""One run of the comparison of objectives: a student trained on cached rows with plain steps, and measured.

The loop is the pipeline's optimizer, schedule and order of windows without its checkpoints and curves.
"""

import math
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from map_rules import longest_prefix_map
from native import NATIVE, RoundTrip, native_loss, round_trip
from rivals import all_spans, shared_strings, sorted_l1, span_kl
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from moe_distill.alignment.encode import Encoder, make_encoder
from moe_distill.alignment.token_bytes import token_bytes
from moe_distill.batches.batch import Batch
from moe_distill.batches.batch_order import batches_from
from moe_distill.batches.loader import BatchReader, BatchRequest
from moe_distill.batches.split import Split, open_split
from moe_distill.config.params import KdOrder, load_params
from moe_distill.config.profile import Train
from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import text_loss
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.shards.vocabulary_store import read_vocabulary_map
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_target import NextTokens
from moe_distill.targets.teacher_rows import TeacherRows, read_rows
from moe_distill.targets.token_shares import VocabularyMap, rule_map
from moe_distill.targets.window_targets import TargetSettings, WindowTargets
from moe_distill.training.optimizer import make_optimizer, set_learning_rate
from moe_distill.training.schedule import learning_rate_fraction
from moe_distill.utils.device import seed_everything

HOME = Path(".work/benchmarks")
TEACHER, STUDENT, SAME_STUDENT = Path("models/teacher"), Path("models/student_init"), HOME / "student_same"
NATIVE_TEACHER = HOME / "native_teacher"  # a teacher with the student's tokenizer
TEACHER_OF = {"same_full": TEACHER} | dict.fromkeys(NATIVE, NATIVE_TEACHER)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ours:
    """A variant of the project's own objective."""

    teacher_mass: Literal["counts", "segmentation", "prefix"]  # how a teacher token's mass is handed out
    temperature: float = 1.0
    order: KdOrder = "map_then_temper"
    conditioned: bool = True  # without entries that the student's tokenizer would have joined to its last token
    inside_tokens: bool = False  # at common boundaries alone, or inside the teacher's tokens too


OURS = {
    "ours": Ours("counts", inside_tokens=True),
    "ours_aligned": Ours("counts"),
    # From here on at common boundaries alone, to be held against `ours_aligned`
    "ours_unconditioned": Ours("counts", conditioned=False),
    "ours_segmentation": Ours("segmentation", conditioned=False),  # to be held against `ours_unconditioned`
    "ours_prefix": Ours("prefix", conditioned=False),
    "ours_t2": Ours("counts", temperature=2.0),
    "ours_t2_tempered_first": Ours("counts", temperature=2.0, order="temper_then_map"),
    "ours_t3": Ours("counts", temperature=3.0),
    "ours_t3_tempered_first": Ours("counts", temperature=3.0, order="temper_then_map"),
    "same_cached": Ours("counts"),  # into the student with the teacher's tokenizer: what the cache alone costs
}


@dataclass(frozen=True)
class Run:
    regime: str
    objective: str
    seed: int
    learning_rate: float
    weight: float  # of distillation at the positions it covers; LM keeps the rest there
    steps: int


@dataclass(frozen=True)
class World:
    """What a run trains on."""

    train: Split
    validation: Split
    student: PreTrainedModel
    teacher: PreTrainedModel | None  # of a ceiling, which is given the same ids as the student
    trip: RoundTrip | None  # for `native_mapped` alone
    reader: BatchReader  # of the training windows; with targets for a variant of ours
    rule_ids: Tensor  # int64 by teacher id: the map by the student's segmentation
    is_exact: Tensor  # bool by teacher id


def execute(run: Run) -> tuple[Run, float]:
    """Train one student and measure it."""
    torch.set_num_threads(1)
    seed_everything(run.seed)
    world = load_world(run)
    profile = load_params().profile.train
    train = profile.model_copy(update={"max_steps": run.steps, "learning_rate": run.learning_rate})
    optimizer = make_optimizer(world.student, None, train)
    batches = batches_from(world.train.windows.token_counts, train.batch_windows, run.seed, 0)
    for step in range(run.steps):
        set_learning_rate(optimizer, learning_rate_fraction(step, train))
        take_step(run, world, next(batches), optimizer, train)
    world.student.save_pretrained(folder_of(run))
    return run, bits_per_byte(world)


def folder_of(run: Run) -> Path:
    """Where the student of a finished run lies: its weights and configuration."""
    return HOME / "students" / "_".join(map(str, astuple(run)))


def load_world(run: Run) -> World:
    folder, same = HOME / run.regime, run.objective.startswith("same")
    reads_shards = run.objective not in ("lm", "same_lm", *TEACHER_OF)
    windows = folder / ("windows_same" if same else "windows") / "student"
    student_folder = SAME_STUDENT if same else STUDENT
    by_bytes = token_bytes(load_tokenizer(student_folder), "student").by_bytes()
    rule_ids = read_vocabulary_map(windows / "vocabulary_map")
    table = token_bytes(load_tokenizer(TEACHER), "teacher").table
    is_exact = torch.zeros(len(rule_ids), dtype=torch.bool)  # a row without a token has no string to share
    is_exact[: len(table)] = torch.tensor([token is not None and token in by_bytes for token in table])
    train = open_split(windows / "train", folder / "shards/train" if reads_shards else None)
    targets = None
    if run.objective in OURS and train.shards is not None:
        ours = OURS[run.objective]
        settings = TargetSettings(ours.temperature, ours.order, "sampled")
        targets = WindowTargets(train.windows, train.shards, map_of(ours, train, windows), settings, memory_bytes=2**30)
    trip = None
    if run.objective == "native_mapped":
        back = load_vocabulary_map(windows / "vocabulary_map", train.windows)
        trip = round_trip(*encoders(), back)
    return World(
        train=train,
        validation=open_split(windows / "validation", None),
        student=load_causal_lm(student_folder, torch.float32, CPU),
        teacher=load_causal_lm(TEACHER_OF[run.objective], torch.float32, CPU) if run.objective in TEACHER_OF else None,
        trip=trip,
        reader=BatchReader(train, targets, with_states=False, chunk_tokens=512),
        rule_ids=rule_ids,
        is_exact=is_exact,
    )


def map_of(ours: Ours, train: Split, windows: Path) -> VocabularyMap:
    if ours.teacher_mass == "counts":
        counted = load_vocabulary_map(windows / "vocabulary_map", train.windows, ours.inside_tokens)
        return counted if ours.conditioned else replace(counted, merges=None)
    rule_ids = read_vocabulary_map(windows / "vocabulary_map")
    if ours.teacher_mass == "segmentation":
        return rule_map(rule_ids)
    student, teacher = encoders()
    prefix_ids = torch.full_like(rule_ids, -1)
    found = torch.from_numpy(longest_prefix_map(teacher, student)).long()
    prefix_ids[: len(found)] = found  # rows of the output matrix beyond the tokenizer's ids have no token
    return rule_map(prefix_ids)


def encoders() -> tuple[Encoder, Encoder]:
    """Of the student and of the teacher."""
    student, teacher = (make_encoder(load_tokenizer(folder), 0, folder.name) for folder in (STUDENT, TEACHER))
    return student, teacher


def take_step(run: Run, world: World, numbers: list[int], optimizer: torch.optim.Optimizer, train: Train) -> None:
    batch = world.reader.read(BatchRequest(tuple(numbers)))
    if run.objective in OURS:
        hidden_ND, weight_VD = student_states(world.student, batch), world.student.get_output_embeddings().weight
        loss = text_loss(hidden_ND, OutputHead(weight_VD), batch.text, run.weight, torch.float32).loss
    else:
        logits_NV = student_logits(world.student, batch)
        nll_N = F.cross_entropy(logits_NV, batch.text.labels_N, reduction="none")
        covered_N, distillation = objective_of(run, world, batch, logits_NV, nll_N)
        loss = ((1.0 - run.weight * covered_N) * nll_N).sum() + run.weight * distillation
    optimizer.zero_grad()
    (loss / batch.counts.tokens).backward()
    torch.nn.utils.clip_grad_norm_(world.student.parameters(), train.gradient_clip)
    optimizer.step()


def objective_of(run: Run, world: World, batch: Batch, logits_NV: Tensor, nll_N: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions a rival covers (0 or 1, [N]), and its loss summed over them."""
    if run.objective.endswith("lm"):
        return torch.zeros_like(nll_N), torch.zeros(())
    rows = [world.train.windows.tokens("teacher_rows", number) for number in batch.windows]
    aligned_A = torch.cat(rows).ge(0).nonzero().squeeze(1)
    covered_N = torch.zeros_like(nll_N).index_fill(0, aligned_A, 1.0)
    if world.teacher is not None:
        with torch.no_grad():
            teacher_NV = world.teacher(batch.input_ids_BL, use_cache=False).logits.flatten(0, 1)[batch.places_N]
        next_ids = [world.train.windows.tokens("next_teacher_ids", number) for number in batch.windows]
        text = NextTokens(torch.cat(next_ids).long(), batch.text.labels_N)
        # rows beyond the tokenizer's ids have no token
        return native_loss(run.objective, batch, logits_NV, teacher_NV[:, : logits_NV.shape[1]], text, world.trip)
    if run.objective.startswith("alm"):
        return alm(world, rows, nll_N, float(run.objective.removeprefix("alm_")))
    cached, logits_AV = cached_rows(world.train, rows), logits_NV[aligned_A]
    if run.objective == "shared_strings":
        return covered_N, shared_strings(logits_AV, cached, world.rule_ids, world.is_exact).sum()
    assert run.objective == "uld", f"no objective {run.objective}"
    return covered_N, sorted_l1(logits_AV, cached).sum()


def cached_rows(split: Split, rows_of_windows: list[Tensor]) -> TeacherRows:
    assert split.shards is not None
    of_windows = [read_rows(split.shards, rows[rows >= 0]) for rows in rows_of_windows]
    return TeacherRows(
        *(torch.cat([getattr(each, field.name) for each in of_windows]) for field in fields(TeacherRows))
    )


def alm(world: World, rows_of_windows: list[Tensor], nll_N: Tensor, span_temperature: float) -> tuple[Tensor, Tensor]:
    shards = world.train.shards
    assert shards is not None
    logprobs = [
        shards.slice("target_logprob", int(rows[rows >= 0][0]), int(rows.max()) + 1) for rows in rows_of_windows
    ]
    span_of_N, teacher_J = all_spans(rows_of_windows, logprobs)
    inside = span_of_N >= 0
    student_J = torch.zeros_like(teacher_J).index_add(0, span_of_N[inside], -nll_N[inside])
    return inside.float(), span_kl(student_J, teacher_J, span_temperature).sum()


def student_states(student: PreTrainedModel, batch: Batch) -> Tensor:
    hidden_BLD: Tensor = student.get_decoder()(input_ids=batch.input_ids_BL, use_cache=False).last_hidden_state
    return hidden_BLD.flatten(0, 1).index_select(0, batch.places_N)


def student_logits(student: PreTrainedModel, batch: Batch) -> Tensor:
    logits_NV: Tensor = student_states(student, batch) @ student.get_output_embeddings().weight.T
    return logits_NV


@torch.inference_mode()
def bits_per_byte(world: World) -> float:
    """Of all validation windows."""
    world.student.eval()
    reader = BatchReader(world.validation, None, with_states=False, chunk_tokens=512)
    nll, n_bytes = 0.0, 0
    for numbers in torch.arange(len(world.validation.windows)).split(32):
        batch = reader.read(BatchRequest(tuple(numbers.tolist())))
        logits_NV = student_logits(world.student, batch)
        nll += float(F.cross_entropy(logits_NV, batch.text.labels_N, reduction="none").double().sum())
        n_bytes += batch.counts.n_bytes
    return nll / math.log(2) / n_bytes
