"""What is known of a model beside its figures: architecture, sizes, licence."""

import json
from pathlib import Path

from moe_distill.config.model_keys import FolderModel, HubModel, TinyStudent, TinyTeacher
from moe_distill.models.source_card import source_card

CONFIG_KEYS = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "num_experts")
ModelFacts = dict[str, str | int]


def read_model_facts(folder: Path) -> ModelFacts:
    """Keys of a model folder's config.json, as far as it has them."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: config[key] for key in CONFIG_KEYS if isinstance(config.get(key), str | int)}


def licence_facts(model: HubModel | FolderModel | TinyStudent | TinyTeacher) -> ModelFacts:
    """`licence`, where the model's own card is here and names one."""
    card = source_card(model)
    named = card.get("license_name") or card.get("license")
    return {"licence": named} if isinstance(named, str) else {}
