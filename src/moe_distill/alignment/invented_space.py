"""Keep a tokenizer from putting a space before a text.

Many tokenizers do, and the space is a byte that the text does not have. Three parts of a tokenizer.json can cause it,
alone or inside a `Sequence`: the normaliser `Prepend`, and a setting of the pre-tokenizers `Metaspace` and `ByteLevel`.
Windows begin anywhere in a document, so all three are switched off.
"""

import json

from tokenizers import Tokenizer

from moe_distill.utils.files import Json

SETTINGS_WITHOUT_SPACE: dict[Json, dict[str, Json]] = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}


def without_invented_space(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that adds no space, reads special tokens as text, does not truncate or pad, and is not random."""
    description = json.loads(tokenizer.to_str())
    for component in ("normalizer", "pre_tokenizer"):
        description[component] = _without_space(description[component])
    if "dropout" in description["model"]:
        description["model"]["dropout"] = None  # BPE-dropout encodes a text differently each time
    copy = Tokenizer.from_str(json.dumps(description))
    copy.encode_special_tokens = True
    copy.no_truncation()
    copy.no_padding()
    return copy


def _without_space(part: Json) -> Json:
    """A component of tokenizer.json, with all components nested in it, that adds no space; None for a `Prepend`."""
    if isinstance(part, dict):
        kind = part.get("type")
        nested = {name: _without_space(value) for name, value in part.items()}
        return None if kind == "Prepend" else nested | SETTINGS_WITHOUT_SPACE.get(kind, {})
    if isinstance(part, list):
        return [kept for item in part if (kept := _without_space(item)) is not None]
    return part
