"""Which folders a training reads and writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moe_distill.shards.format import INDEX_NAME
from moe_distill.utils.files import fingerprint, folder_fingerprint, sha256_file

OPTIMIZER_NAME = "optimizer.safetensors"
STUDENT_FOLDER, OPTIMIZER_FOLDER = "export", "optimizer"  # in a work folder


@dataclass(frozen=True)
class TrainingInputs:
    """Folders that training reads."""

    windows: Path  # data/windows/student
    targets: Path | None  # data/teacher_shards; None: LM alone
    student: Path  # the model to begin with
    teacher_head: Path | None  # models/teacher_head; not opened where phase 2 asks for no states
    optimizer: Path | None  # moments that the first phase ended with


@dataclass(frozen=True)
class TrainingOutputs:
    """Where training writes."""

    work: Path  # checkpoints and curves while the phase is unfinished
    student: Path  # the trained model
    optimizer: Path | None  # moments for the next phase
    curves: Path  # folder of <stage>.tsv and <stage>_validation.tsv
    on_validation: Callable[[], None]  # called after every validation, when the curves are up to date


def inputs_key(inputs: TrainingInputs) -> str:
    """Fingerprint of the content of all that a training reads."""
    stores = [inputs.windows / "train", inputs.windows / "validation", inputs.windows / "vocabulary_map"]
    if inputs.targets is not None:
        stores += [inputs.targets / "train", inputs.targets / "validation"]
    folders = [folder for folder in (inputs.student, inputs.teacher_head, inputs.optimizer) if folder is not None]
    return fingerprint(
        [
            [sha256_file(store / INDEX_NAME) for store in stores],
            [folder_fingerprint(folder) for folder in folders],
        ]
    )
