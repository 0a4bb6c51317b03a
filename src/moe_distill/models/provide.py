"""Teacher and student as local folders with their tokenizers, wherever they come from."""

from pathlib import Path

from moe_distill.config.profile import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.models.hub_models import snapshot
from moe_distill.models.model_folder import copy_model_folder, count_parameters
from moe_distill.models.tiny_student import make_tiny_student
from moe_distill.models.tiny_teacher import train_tiny_teacher
from moe_distill.utils.files import project_root


def provide_teacher(
    params: TinyTeacher | HubModel | FolderModel, seed: int, corpus: Path, output: Path
) -> dict[str, float]:
    """Put the teacher into `output`; `corpus` holds train.parquet and validation.parquet.

    Returns:
        `teacher_parameters`, and what training a tiny teacher measured.

    Raises:
        DataError: the model, or for a tiny one the corpus, is unusable.
    """
    metrics: dict[str, float] = {}
    if isinstance(params, TinyTeacher):
        metrics = train_tiny_teacher(params, seed, corpus / "train.parquet", corpus / "validation.parquet", output)
    else:
        _fetch(params, output)
    return {"teacher_parameters": float(count_parameters(output)), **metrics}


def provide_student(
    params: TinyStudent | HubModel | FolderModel, seed: int, corpus: Path, output: Path
) -> dict[str, float]:
    """Put the student, as it is before distillation, into `output`; see `provide_teacher`.

    Returns:
        `student_parameters`.
    """
    if isinstance(params, TinyStudent):
        make_tiny_student(params, seed, corpus / "train.parquet", output)
    else:
        _fetch(params, output)
    return {"student_parameters": float(count_parameters(output))}


def _fetch(params: HubModel | FolderModel, output: Path) -> None:
    if isinstance(params, HubModel):
        snapshot(params, output)
    else:
        # From the main checkout: the temporary workspaces of `dvc exp run --temp` hold tracked files alone.
        copy_model_folder(project_root() / params.path, params.path, output)
