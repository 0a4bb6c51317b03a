"""All folders that `train_router` reads, from a random teacher that student and teacher share a tokenizer with."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from moe_distill.config.params import Params
from moe_distill.config.profile import Capture
from moe_distill.shards.format import Metadata
from moe_distill.shards.provenance import windows_fingerprint
from moe_distill.shards.vocabulary_store import MAP_FIELDS, MERGE_IDS, VOCABULARY_MAP
from moe_distill.shards.window_store import (
    STUDENT_FIELDS,
    STUDENT_WINDOWS,
    TEACHER_FIELDS,
    TEACHER_WINDOWS,
    WindowStore,
)
from moe_distill.shards.writer import ShardWriter
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.capture import capture
from moe_distill.teacher.run import export_head
from moe_distill.training.stage_folders import TrainingInputs, TrainingOutputs
from tests.params import fixed_params
from tests.replay.teachers import VOCABULARY
from tests.stores import NO_TOKENIZER, no_last_tokens

TOKENIZER = b"{}"  # what the folders are told apart by; nothing here is text
TOKENIZER_SHA256 = hashlib.sha256(TOKENIZER).hexdigest()
WINDOWS = {"train": 24, "validation": 8}
CAPTURE: dict[str, object] = {
    "seed": 0,
    "k": 8,
    "tail_samples": 4,
    "hidden_layers": [1, 2],
    "hidden_fraction": 1.0,
    "hidden_run": 64,
    "precision": "fp32",
    "batch_windows": 8,
    "chunk_positions": 512,
    "shard_positions": 1000,
}


def make_params(capture: dict[str, object] | None = None, **changes: object) -> Params:
    """Those of the test profile with a short, fully logged phase 2.

    Args:
        capture: what differs from `CAPTURE`.
        changes: keys of params.yaml or of `train`.
    """
    params = fixed_params()
    train: dict[str, object] = {
        "max_steps": 20,
        "batch_windows": 8,
        "micro_batch_windows": 4,
        "log_every": 1,
        "validate_every": 5,
    }
    train |= {"validation_windows": 8, "checkpoint_every": 20, "learning_rate": 1e-3, "router_learning_rate": 1e-2}
    known = {name: value for name, value in changes.items() if name in params.profile.train.model_dump()}
    experiment = (
        params.experiment.model_dump() | {"precision": "fp32"} | {n: v for n, v in changes.items() if n not in known}
    )
    profile = params.profile.model_dump()
    profile["train"] |= train | known
    profile["teacher"] = CAPTURE | (capture or {})
    return Params.model_validate({"experiment": experiment, "profile": profile})


@dataclass(frozen=True)
class Folders:
    root: Path

    @property
    def inputs(self) -> TrainingInputs:
        return TrainingInputs(
            self.root / "windows", self.root / "targets", self.root / "student", self.root / "head", optimizer=None
        )

    def outputs(self, name: str) -> TrainingOutputs:
        """Fresh folders of a training of this name."""
        work = self.root / name
        return TrainingOutputs(work, work / "export", None, work / "curves", lambda: None)

    def curve(self, name: str, validation: bool = False, stage: str = "train_router") -> list[dict[str, float]]:
        """The rows of a training's curve; a value that does not exist is left out."""
        path = self.root / name / "curves" / f"{stage}{'_validation' if validation else ''}.tsv"
        header, *lines = (line.split("\t") for line in path.read_text().splitlines())
        return [{column: float(cell) for column, cell in zip(header, cells, strict=True) if cell} for cells in lines]


def make_folders(root: Path, teacher: PreTrainedModel, **changes: object) -> Folders:
    """Capture a teacher with `CAPTURE` but for `changes`."""
    architecture = find_architecture(teacher)
    export_head(architecture, "teacher", root / "head")
    for split, count in WINDOWS.items():
        windows = _write_windows(root, split, count)
        text_ids = torch.ones(VOCABULARY, dtype=torch.bool)
        params = Capture.model_validate(CAPTURE | changes)
        capture(
            teacher,
            architecture,
            windows,
            text_ids,
            params,
            0,
            "teacher",
            "key",
            root / "targets" / split,
            root / "receipts" / split,
        )
    writer = ShardWriter(root / "windows/vocabulary_map", MAP_FIELDS, "teacher_ids", VOCABULARY)
    ids = torch.arange(VOCABULARY, dtype=torch.int32)
    merges = {name: torch.zeros(0, dtype=torch.int32) for name in MERGE_IDS}
    writer.append({"student_ids": ids, **merges, **NO_TOKENIZER})
    tokenizers: Metadata = {"teacher_tokenizer": TOKENIZER_SHA256, "student_tokenizer": TOKENIZER_SHA256}
    writer.finish(VOCABULARY_MAP, "m", {"student_ids": VOCABULARY, **tokenizers})
    _write_student(root)
    return Folders(root)


def _write_windows(root: Path, split: str, count: int) -> WindowStore:
    generator = torch.Generator().manual_seed(count)
    teacher = ShardWriter(root / "teacher_windows" / split, TEACHER_FIELDS, "tokens", 1000)
    student = ShardWriter(root / "windows" / split, STUDENT_FIELDS, "tokens", 1000)
    start = 0
    for number in range(count):
        length = 66 + number % 5
        columns = {
            "token_ids": torch.randint(1, VOCABULARY, (length,), generator=generator, dtype=torch.int32),
            "token_counts": torch.tensor([length], dtype=torch.int32),
            "documents": torch.tensor([number], dtype=torch.int32),
            "byte_starts": torch.tensor([0]),
            "byte_ends": torch.tensor([3 * length]),
            "token_bytes": torch.full((0 if number else VOCABULARY,), 3, dtype=torch.int32),
        }
        teacher.append(columns)
        rows = torch.arange(start, start + length)
        aligned = {"teacher_rows": rows, "next_tokens": torch.ones(length, dtype=torch.int8)}
        aligned["next_teacher_ids"] = columns["token_ids"]
        student.append(columns | aligned | no_last_tokens(length))
        start += length
    metadata: Metadata = {"prefix_id": 0, "max_length": 100, "tokenizer": TOKENIZER_SHA256}
    index = teacher.finish(TEACHER_WINDOWS, split, metadata)
    student.finish(STUDENT_WINDOWS, split, metadata | {"teacher_windows": windows_fingerprint(index)})
    return WindowStore(root / "teacher_windows" / split, TEACHER_WINDOWS)


def _write_student(root: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(root / "student")
    (root / "student/tokenizer.json").write_bytes(TOKENIZER)
