"""The folders of a run for a random pair: windows, the teacher's shards and head, a student; and its three trainings.

Both models read the same token ids, but for those beyond the student's vocabulary, so that every position is aligned.
Nothing here is text, and no tokenizer is needed.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from random_pair import BYTES_OF_A_TOKEN, Pair, make_student, params_of, random_ids
from transformers import PreTrainedModel

from moe_distill.config.params import Params
from moe_distill.planning.synthetic_inputs import bare_map
from moe_distill.shards.format import Metadata
from moe_distill.shards.provenance import windows_fingerprint
from moe_distill.shards.vocabulary_store import MAP_FIELDS, VOCABULARY_MAP
from moe_distill.shards.window_store import (
    STUDENT_FIELDS,
    STUDENT_WINDOWS,
    TEACHER_FIELDS,
    TEACHER_WINDOWS,
    WindowStore,
    model_inputs,
)
from moe_distill.shards.writer import ShardWriter
from moe_distill.teacher.architecture import Architecture, find_architecture
from moe_distill.teacher.capture import Captured, capture
from moe_distill.teacher.run import export_head
from moe_distill.training.phases import control, train_kd, train_router
from moe_distill.training.result import Result
from moe_distill.training.stage_folders import TrainingInputs, TrainingOutputs

TOKENIZER = b"{}"  # what the folders are told apart by
STAGES = {"train_kd": train_kd, "train_router": train_router, "control": control}
FIRST_PHASE = 0.5  # of the curriculum: a short run has steps of both phases


@dataclass(frozen=True)
class RandomRun:
    """Folders below `root`."""

    root: Path
    pair: Pair

    def windows(self, split: str) -> WindowStore:
        """The teacher's."""
        return WindowStore(self.root / "teacher_windows" / split, TEACHER_WINDOWS)

    def inputs(self, stage: str, previous: Path | None = None) -> TrainingInputs:
        """What a training stage reads; `previous`: the work folder of `train_kd`, for the stage that follows it."""
        windows, student = self.root / "windows", self.root / "student"
        if stage == "control":
            return TrainingInputs(windows, None, student, None, None)
        optimizer = None
        if previous is not None:
            student, optimizer = previous / "export", previous / "optimizer"
        return TrainingInputs(windows, self.root / "targets", student, self.root / "head", optimizer)


def make_run(root: Path, pair: Pair, teacher: PreTrainedModel, n_windows: dict[str, int]) -> RandomRun:
    """Everything that the trainings read.

    Args:
        n_windows: by split.
    """
    run, architecture = RandomRun(root, pair), find_architecture(teacher)
    for number, (split, count) in enumerate(n_windows.items()):
        write_windows(run, split, count, torch.Generator().manual_seed(number))
        capture_split(run, teacher, architecture, split, root / "targets" / split)
    export_head(architecture, "teacher", root / "head")
    writer = ShardWriter(root / "windows/vocabulary_map", MAP_FIELDS, "teacher_ids", pair.teacher.vocabulary)
    writer.append(bare_map((pair.teacher.vocabulary, pair.student.vocabulary)))
    digest = hashlib.sha256(TOKENIZER).hexdigest()
    tokenizers: Metadata = {"teacher_tokenizer": digest, "student_tokenizer": digest}
    writer.finish(VOCABULARY_MAP, "map", {"student_ids": pair.student.vocabulary, **tokenizers})
    torch.manual_seed(0)
    make_student(pair, torch.device("cpu")).save_pretrained(root / "student")
    (root / "student/tokenizer.json").write_bytes(TOKENIZER)
    return run


def capture_split(
    run: RandomRun, teacher: PreTrainedModel, architecture: Architecture, split: str, output: Path
) -> Captured:
    """The teacher's pass over the windows of a split, as its stage makes it."""
    params = params_of(run.pair).profile.teacher
    return capture(
        teacher,
        architecture,
        run.windows(split),
        text_ids_R=torch.ones(run.pair.teacher.vocabulary, dtype=torch.bool),
        params=params,
        seed=params.seed,
        teacher_fingerprint="teacher",
        key=split,
        output=output,
        progress_folder=output.with_name(f"{output.name}_progress"),
    )


def passes(run: RandomRun, teacher: PreTrainedModel, device: torch.device) -> dict[str, Callable[[], None]]:
    """Both ways over the training windows: `captured`, as its stage goes, and `bare`."""
    windows, capture = run.windows("train"), params_of(run.pair).profile.teacher
    starts = range(0, len(windows), capture.batch_windows)
    numbers = [range(start, min(start + capture.batch_windows, len(windows))) for start in starts]
    inputs = [model_inputs(windows, each)[0].to(device) for each in numbers]
    architecture = find_architecture(teacher)

    @torch.inference_mode()
    def bare() -> None:
        for ids_BL in inputs:
            teacher(input_ids=ids_BL, use_cache=False)

    def captured() -> None:
        capture_split(run, teacher, architecture, "train", run.root / f"again_{time.monotonic_ns()}")

    return {"bare": bare, "captured": captured}


def short_params(pair: Pair, precision: str, max_steps: int, **train: object) -> Params:
    """The pair's profile for a few steps, half of them in each phase."""
    changes = {"log_every": 1, "validate_every": max_steps, "validation_windows": 8, "checkpoint_every": max_steps}
    params = params_of(pair, max_steps=max_steps, **(changes | train))
    curriculum = params.experiment.curriculum.model_copy(update={"phase1_share": FIRST_PHASE})
    experiment = params.experiment.model_copy(update={"precision": precision, "curriculum": curriculum})
    return params.model_copy(update={"experiment": experiment})


def train(run: RandomRun, stage: str, params: Params, work: Path, previous: Path | None = None) -> Result:
    """Run a training stage; its student lands in `work`/export.

    Args:
        previous: work folder of `train_kd`, for `train_router`.
    """
    optimizer = work / "optimizer" if stage == "train_kd" else None
    outputs = TrainingOutputs(work, work / "export", optimizer, work / "curves", lambda: None)
    return STAGES[stage](params, run.inputs(stage, previous), outputs)


def write_windows(run: RandomRun, split: str, count: int, generator: torch.Generator) -> None:
    """Windows of the student's greatest length, for both models."""
    pair, params = run.pair, params_of(run.pair).profile
    length = params.windows.student_max_length - 1  # the prefix token counts
    ids_WL = random_ids(min(pair.student.vocabulary, pair.teacher.vocabulary), (count, length), generator).int()
    teacher = ShardWriter(run.root / "teacher_windows" / split, TEACHER_FIELDS, "tokens", 100_000)
    student = ShardWriter(run.root / "windows" / split, STUDENT_FIELDS, "tokens", 100_000)
    for number, token_ids in enumerate(ids_WL):
        columns = {
            "token_ids": token_ids,
            "token_counts": torch.tensor([length], dtype=torch.int32),
            "documents": torch.tensor([number], dtype=torch.int32),
            "byte_starts": torch.tensor([0]),
            "byte_ends": torch.tensor([BYTES_OF_A_TOKEN * length]),
        }
        rows, is_first = torch.arange(length) + number * length, torch.arange(length) == 0
        aligned = {
            "teacher_rows": rows,
            "next_tokens": torch.ones(length, dtype=torch.int8),
            "next_teacher_ids": token_ids,
            "last_teacher_rows": (rows - 1).masked_fill(is_first, -1),
            "last_teacher_ids": token_ids.roll(1).masked_fill(is_first, -1),
            "last_teacher_bytes": torch.where(is_first, 0, BYTES_OF_A_TOKEN).int(),
        }
        teacher.append(columns | _bytes_of_ids(number, pair.teacher.vocabulary))
        student.append(columns | aligned | _bytes_of_ids(number, pair.student.vocabulary))
    digest = hashlib.sha256(TOKENIZER).hexdigest()
    metadata: Metadata = {"prefix_id": 0, "max_length": length + 1, "tokenizer": digest}
    index = teacher.finish(TEACHER_WINDOWS, split, metadata)
    student.finish(STUDENT_WINDOWS, split, metadata | {"teacher_windows": windows_fingerprint(index)})


def _bytes_of_ids(window: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """The column `token_bytes`, which all of it stands beside the first window."""
    return {"token_bytes": torch.full((0 if window else vocabulary,), BYTES_OF_A_TOKEN, dtype=torch.int32)}
