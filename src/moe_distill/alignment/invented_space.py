"""A tokenizer that encodes text as it stands.

Many tokenizers put a space before the text: a byte that the text does not have. Three parts of a tokenizer.json do
so, alone or inside a `Sequence`: the normaliser `Prepend`, and the pre-tokenizers `Metaspace` and `ByteLevel` by a
setting of theirs. Windows begin anywhere in a document, so none of them may act.
"""

import json

from tokenizers import Tokenizer

from moe_distill.utils.files import Json

SILENCED: dict[Json, dict[str, Json]] = {
    "Metaspace": {"prepend_scheme": "never"},
    "ByteLevel": {"add_prefix_space": False},
}


def without_invented_space(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that adds no space, reads special tokens as text, and neither cuts, pads nor draws lots."""
    description = json.loads(tokenizer.to_str())
    for component in ("normalizer", "pre_tokenizer"):
        description[component] = _silenced(description[component])
    if "dropout" in description["model"]:
        description["model"]["dropout"] = None  # BPE-dropout reads a text differently each time
    copy = Tokenizer.from_str(json.dumps(description))
    copy.encode_special_tokens = True
    copy.no_truncation()
    copy.no_padding()
    return copy


def _silenced(part: Json) -> Json:
    """A component of tokenizer.json, and all nested in it, made silent; None in place of a `Prepend`."""
    if isinstance(part, dict):
        kind = part.get("type")
        nested = {name: _silenced(value) for name, value in part.items()}
        return None if kind == "Prepend" else nested | SILENCED.get(kind, {})
    if isinstance(part, list):
        return [silenced for item in part if (silenced := _silenced(item)) is not None]
    return part
