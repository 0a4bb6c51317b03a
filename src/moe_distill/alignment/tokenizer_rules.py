"""What a tokenizer does to text as a rule: refused, or said once by name, before any document is read."""

import json
from collections.abc import Iterator

from tokenizers import Tokenizer

from moe_distill.alignment.token_bytes import SPACE_MARK
from moe_distill.errors import DataError
from moe_distill.log import shown
from moe_distill.utils.files import Json

# What much text has: accents, typographic quotes, dashes, ellipsis, fractions, powers, ligatures, a no-break space,
# full-width forms, doubled quotes of markup. In Unicode normal form C, as every document is.
TYPOGRAPHY = (
    "na\u00efve \u201cq\u201d \u2018q\u2019 \u2014 \u2026 \u00bd x\u00b2 \ufb01n \u2122 a\u00a0b \uff21\uff11 "
    "\u306f\u3058\u3081 \ud55c\uad6d ``x'' \u0915\u093c"
)
PLAIN = ("The fox of 2024", "x", "two  blanks\n\nlines\tand (x_1 = 42) don't stop", "na\u00efve \u6771\u4eac")


def changing_normalizer(tokenizer: Tokenizer, text: str) -> str:
    """Which part of a tokenizer's normaliser changes a text, and how; empty where none does.

    A space that becomes U+2581, or bytes that become printable characters, are no change: the tokens still spell it.
    """
    for part in _leaves(json.loads(tokenizer.to_str())["normalizer"]):
        if part["type"] == "ByteLevel":
            return ""
        for word in (text, *text.split(" ")):
            changed = _normalize(part, word)
            if changed != word:
                shortest = next((each for each in text.split(" ") if _normalize(part, each) != each), word)
                return f"its normaliser {part['type']} turns {shortest!r} into {_normalize(part, shortest)!r}"
    return ""


def rules(tokenizer: Tokenizer) -> str:
    """The kinds of normaliser and pre-tokenizer of a tokenizer, for an error."""
    description = json.loads(tokenizer.to_str())
    kinds = {
        name: ", ".join(str(part["type"]) for part in _leaves(description[key])) or "none"
        for name, key in (("normaliser", "normalizer"), ("pre-tokenizer", "pre_tokenizer"))
    }
    return "; ".join(f"its {name}: {kind}" for name, kind in kinds.items())


def told_differences(tokenizer: Tokenizer, reading: Tokenizer, name: str) -> Iterator[str]:
    """Yield in what windows are read otherwise than tokenizer.json reads a text, a clause each.

    Args:
        tokenizer: of tokenizer.json; left as it is.
        reading: its copy that reads windows (`without_invented_space`).
        name: of the tokenizer, for the error.

    Raises:
        DataError: tokenizer.json puts spaces into the middle of a text, so that the ids of windows would be others.
    """
    own = _plain_copy(tokenizer)
    invents = False
    for text in PLAIN:
        found = _ids(reading, text) == _ids(own, text), _ids(reading, f" {text}") == _ids(own, text)
        if not any(found):
            raise DataError(
                f"tokenizer {name} puts spaces into the middle of a text",
                f"it reads {text!r} as {own.encode(text, add_special_tokens=False).tokens}; {rules(tokenizer)}",
                "choose a model whose tokenizer spells the text",
            )
        invents = invents or not found[0]
    if invents:
        yield "it puts a space before a text; windows, which begin anywhere, are read without it"
    if json.loads(tokenizer.to_str())["model"].get("dropout"):
        yield "its merges are dropped at random (`dropout`); windows are read without that"
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    if names := [repr(token.content) for token in added if token.lstrip or token.rstrip]:
        yield (
            f"its added tokens {shown(names)} take the blanks beside them (lstrip, rstrip), no token spells them: "
            "documents in which blanks stand there are skipped"
        )
    texts = {repr(token.content): f"a{token.content}b {token.content} c" for token in added}
    if names := [
        each for each, text in texts.items() if _ids(own, text) not in (_ids(reading, text), _ids(reading, f" {text}"))
    ]:
        yield f"beside its added tokens {shown(names)} tokenizer.json puts spaces; windows are read without them"


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _plain_copy(tokenizer: Tokenizer) -> Tokenizer:
    description = json.loads(tokenizer.to_str())
    if "dropout" in description["model"]:
        description["model"]["dropout"] = None
    copy = Tokenizer.from_str(json.dumps(description))
    copy.encode_special_tokens = True
    copy.no_truncation()
    copy.no_padding()
    return copy


def _leaves(part: Json) -> Iterator[dict[str, Json]]:
    """Yield the components of a `Sequence`, however nested; of any other component itself."""
    if not isinstance(part, dict):
        return
    nested = part.get("normalizers", part.get("pretokenizers"))
    if isinstance(nested, list):
        for each in nested:
            yield from _leaves(each)
    else:
        yield part


def _normalize(part: dict[str, Json], text: str) -> str:
    """A text as one part of a normaliser leaves it, with spaces for U+2581."""
    alone: dict[str, Json] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": part,
    }
    alone |= {"pre_tokenizer": None, "post_processor": None, "decoder": None}
    alone["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    normalizer = Tokenizer.from_str(json.dumps(alone)).normalizer
    return text if normalizer is None else str(normalizer.normalize_str(text)).replace(SPACE_MARK, " ")
