"""What the card of a model says of itself, as far as it is here: the hub's cache, or the user's folder. Offline."""

from pathlib import Path

from huggingface_hub import metadata_load, try_to_load_from_cache

from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.utils.files import project_root
from moe_distill.utils.hub_commits import recorded_commit

CARD_NAME = "README.md"


def source_card(model: HubModel | FolderModel | TinyStudent | TinyTeacher) -> dict[str, object]:
    """The metadata of a model's own card; empty where it has none, none that can be read, or was made here."""
    path = _card_path(model)
    if path is None or not path.is_file():
        return {}
    try:
        return metadata_load(path) or {}
    except Exception:  # a card is anybody's text: what cannot be read of it is not known
        return {}


def _card_path(model: HubModel | FolderModel | TinyStudent | TinyTeacher) -> Path | None:
    if isinstance(model, FolderModel):
        return project_root() / model.path / CARD_NAME
    if not isinstance(model, HubModel):
        return None
    revision = recorded_commit("model", model.repository, model.revision)
    cached = try_to_load_from_cache(model.repository, CARD_NAME, revision=revision)
    return Path(cached) if isinstance(cached, str) else None
