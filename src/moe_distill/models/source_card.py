"""What the card of a model says of itself, as far as it is here: the hub's cache, or the user's folder. Offline."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.utils.files import project_root

CARD_NAME = "README.md"


def source_card(model: HubModel | FolderModel | TinyStudent | TinyTeacher) -> ModelCardData:
    """The metadata of a model's own card; empty where it has none, none that is valid, or was made here."""
    path = _card_path(model)
    if path is None or not path.is_file():
        return ModelCardData()
    try:
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        return ModelCardData(**card.data.to_dict(), ignore_metadata_errors=True)
    except Exception:  # a card is anybody's text: whatever cannot be read of it is not known
        return ModelCardData()


def _card_path(model: HubModel | FolderModel | TinyStudent | TinyTeacher) -> Path | None:
    if isinstance(model, FolderModel):
        return project_root() / model.path / CARD_NAME
    if not isinstance(model, HubModel):
        return None
    cached = try_to_load_from_cache(model.repository, CARD_NAME, revision=model.revision)
    return Path(cached) if isinstance(cached, str) else None
