"""Put teacher and student into local folders with their tokenizers: made here, copied or downloaded."""

from pathlib import Path

from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.models.auto_tokenizer import match_auto_tokenizer
from moe_distill.models.hub_models import snapshot
from moe_distill.models.model_folder import copy_model_folder
from moe_distill.models.model_weights import count_parameters
from moe_distill.models.tiny_student import make_tiny_student
from moe_distill.models.tiny_teacher import train_tiny_teacher
from moe_distill.utils.files import project_root


def provide_teacher(
    params: TinyTeacher | HubModel | FolderModel, seed: int, corpus: Path, output: Path
) -> dict[str, float]:
    """Put the teacher into `output`.

    Args:
        seed: of a tiny teacher's weights and of the order of its training windows.
        corpus: folder with train.parquet and validation.parquet, which a tiny teacher is trained on.

    Returns:
        The metrics `teacher_parameters` and, of a tiny teacher, those of `train_tiny_teacher`.

    Raises:
        DataError: the model, or for a tiny one the corpus, is unusable.
        ResourceError: the disk cannot take the model.
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
        The metric `student_parameters`.
    """
    if isinstance(params, TinyStudent):
        make_tiny_student(params, seed, corpus / "train.parquet", output)
    else:
        _fetch(params, output)
        match_auto_tokenizer(output)
    return {"student_parameters": float(count_parameters(output))}


def _fetch(params: HubModel | FolderModel, output: Path) -> None:
    if isinstance(params, HubModel):
        snapshot(params, output)
    else:
        # Relative to the main checkout: the temporary workspaces of `dvc exp run --temp` hold tracked files only.
        copy_model_folder(project_root() / params.path, params.path, output, params.prefix_token)
