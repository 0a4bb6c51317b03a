"""What a model folder says of its model: architecture, sizes, licence."""

import json
import re
from pathlib import Path

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
LICENCE = re.compile(r"^license(?:_name)?:[ \t]*(\S[^\n]*)$", re.MULTILINE)
CONFIG_KEYS = ("model_type", "num_hidden_layers", "hidden_size", "vocab_size", "num_experts")


def read_model_facts(folder: Path) -> dict[str, str | int | None]:
    """Keys of its config.json, and `licence` where a model card lies beside; null for what is not said."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = {key: config.get(key) for key in CONFIG_KEYS}
    return {**{key: value for key, value in facts.items() if isinstance(value, str | int)}, "licence": _licence(folder)}


def _licence(folder: Path) -> str | None:
    """The licence that a model card names in its metadata."""
    card = folder / "README.md"
    metadata = FRONT_MATTER.match(card.read_text(encoding="utf-8")) if card.is_file() else None
    named = LICENCE.search(metadata[1]) if metadata else None
    return named[1].strip().strip("'\"") if named else None
