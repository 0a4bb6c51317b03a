"""The pipeline's folders from corpus to teacher_head, made by the stages' own functions, within seconds."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from moe_distill.alignment.corpus_windows import write_windows
from moe_distill.config.params import Params
from moe_distill.config.profile import Profile
from moe_distill.corpus.documents import Document
from moe_distill.corpus.parquet_writer import open_writer
from moe_distill.models.provide import provide_student, provide_teacher
from moe_distill.teacher.run import run_teacher
from moe_distill.training.stage_folders import TrainingInputs, TrainingOutputs
from tests.params import fixed_params

CHANGES = {
    "models": {
        "teacher": {"hidden_size": 32, "expert_size": 16, "steps": 4, "tokenizer": {"vocabulary_size": 400}},
        "student": {"hidden_size": 16, "intermediate_size": 32, "tokenizer": {"vocabulary_size": 300}},
    },
    "windows": {"train_fraction": 1.0, "max_train_windows": 60, "max_validation_windows": 12, "shard_tokens": 1500},
    "teacher": {"k": 8, "tail_samples": 4, "shard_positions": 1000, "hidden_fraction": 1.0},
    "train": {"max_steps": 20, "checkpoint_every": 2, "validate_every": 10, "validation_windows": 4},
}


@dataclass(frozen=True)
class Chain:
    """Folders below `folder`, named as in the pipeline, and the parameters they were made with."""

    folder: Path
    params: Params

    def copy(self, folder: Path) -> "Chain":
        shutil.copytree(self.folder, folder)
        return Chain(folder, self.params)

    @property
    def windows(self) -> Path:
        return self.folder / "data/windows/student"

    @property
    def targets(self) -> Path:
        return self.folder / "data/teacher_shards"

    @property
    def head(self) -> Path:
        return self.folder / "models/teacher_head"

    def inputs(self, with_targets: bool = True) -> TrainingInputs:
        student = self.folder / "models/student_init"
        if not with_targets:
            return TrainingInputs(self.windows, None, student, None, None)
        return TrainingInputs(self.windows, self.targets, student, self.head, None)

    def outputs(self) -> TrainingOutputs:
        work = self.folder / ".work"
        work.mkdir(exist_ok=True)
        return TrainingOutputs(work, work / "export", work / "optimizer", self.folder / "curves", lambda: None)


def small_params() -> Params:
    """Profile `test`, smaller still."""
    params = fixed_params()
    profile = Profile.model_validate(_merged(params.profile.model_dump(), CHANGES))
    return params.model_copy(update={"profile": profile})


def write_corpus(folder: Path, texts: list[str]) -> None:
    """Every eighth text is held out."""
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        with open_writer(folder / f"{split}.parquet") as writer:
            for number, text in enumerate(texts):
                if (number % 8 == 0) == (split == "validation"):
                    writer.append(Document(hashlib.sha256(text.encode()).hexdigest(), "topics", text))


def make_chain(folder: Path, params: Params, texts: list[str]) -> Chain:
    models, corpus = folder / "models", folder / "data/corpus"
    write_corpus(corpus, texts)
    provide_teacher(params.profile.models.teacher, 0, corpus, models / "teacher")
    provide_student(params.profile.models.student, 0, corpus, models / "student_init")
    tokenize(folder, params)
    capture(folder, params)
    return Chain(folder, params)


def tokenize(folder: Path, params: Params) -> None:
    windows = folder / "data/windows"
    shutil.rmtree(windows, ignore_errors=True)
    models = folder / "models/teacher", folder / "models/student_init"
    write_windows(params.profile.windows, folder / "data/corpus", *models, windows)


def capture(folder: Path, params: Params) -> None:
    for made in ("shards", "head", "data/teacher_shards", "models/teacher_head"):
        shutil.rmtree(folder / made, ignore_errors=True)
    run_teacher(params.profile.teacher, folder / "data/windows/teacher", folder / "models/teacher", folder)
    (folder / "shards").rename(folder / "data/teacher_shards")
    (folder / "head").rename(folder / "models/teacher_head")


def topic_texts(count: int, start: int = 0) -> list[str]:
    """Topics of `help()`, each a few kilobytes of English."""
    return [topics[name] for name in sorted(topics)[start : start + count]]


def _merged(base: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in changes.items():
        old = base[key]
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
