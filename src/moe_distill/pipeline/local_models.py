"""Refuse a local model in the stage `check`, which would else be refused after the corpus is made."""

from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.models.model_folder import check_model_folder
from moe_distill.utils.files import project_root


def check_local_model(model: TinyTeacher | TinyStudent | HubModel | FolderModel) -> None:
    """Check a model of kind `folder`; one whose folder is not here is left alone (see `missing_inputs`).

    Raises:
        DataError: see `check_model_folder`.
    """
    if isinstance(model, FolderModel) and (folder := project_root() / model.path).is_dir():
        check_model_folder(folder, model.path, model.prefix_token)
