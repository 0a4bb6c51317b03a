"""The token that every window begins with, of the teacher's windows and of the student's.

A window is prefix token + tokens of text: exactly one, whatever the tokenizer's post-processor, the model's
configuration or its chat template would put before a text. It is the profile's `prefix_token`, which is written into
the copied config.json as its `bos_token_id`; else the `bos_token_id` there, else the `eos_token_id`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from moe_distill.errors import DataError
from moe_distill.utils.files import write_json

IDS = ("bos_token_id", "eos_token_id")
KEY = "`prefix_token` of that model in the profile"
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character
SPACE_MARK = "\u2581"


def prefix_token_id(folder: Path, tokenizer: Tokenizer) -> int:
    """Id of the token that every window begins with: the `bos_token_id` of a model folder, else its `eos_token_id`.

    Raises:
        DataError: its config.json names neither.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _default(config, tokenizer, str(folder))[1]


def require_prefix_token(
    config: Mapping[str, Any], tokenizer: Tokenizer, name: str, prefix_token: str | int | None
) -> None:
    """Refuse a model that has no prefix token, or whose configuration names a token of text without being asked to.

    Args:
        config: content of its config.json.
        name: what the user calls the model.
        prefix_token: the profile's: the token as it stands in the tokenizer, or its id; None: BOS, else EOS.

    Raises:
        DataError: naming the token and the key to set.
    """
    if prefix_token is not None:
        _named_id(tokenizer, prefix_token, name)
        return
    key, number = _default(config, tokenizer, name)
    # One that is added, yet not marked as special, is told (`prefix_warnings`): hardly any text spells its name.
    if number not in tokenizer.get_added_tokens_decoder() and (text := is_text(tokenizer, number)):
        raise DataError(
            f"{name} would begin every window with {show(tokenizer, number)}, {text}",
            f"its config.json says `{key}`: {number}, which may be no more than a default of its class",
            f"set {KEY} to a token that stands for no text, such as {_suggested(tokenizer)}",
        )


def set_prefix_token(folder: Path, prefix_token: str | int) -> None:
    """Write a prefix token into the config.json of a model folder, as its `bos_token_id`.

    Raises:
        DataError: the tokenizer has no such token.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"bos_token_id": _named_id(tokenizer, prefix_token, str(folder))})


def prefix_warnings(folder: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield what is unusual about the prefix token of a model folder, a clause each."""
    number = prefix_token_id(folder, tokenizer)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if text := is_text(tokenizer, number):
        yield text
    if config.get("pad_token_id") == number:
        yield "it is the padding token too: the row is trained here, but a later fine-tuning may leave it out"
    own = _bos_of_tokenizer(folder)
    if own is not None and own != tokenizer.id_to_token(number):
        yield f"tokenizer_config.json names {own!r} as `bos_token`"
    added = tokenizer.encode("a", add_special_tokens=True).ids
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    before = added[: _place(added, bare)]
    if before and before != [number]:
        yield f"its post-processor puts {', '.join(show(tokenizer, each) for each in before)} before a text"


def is_text(tokenizer: Tokenizer, number: int) -> str:
    """A clause on how a token stands for text, empty where it does not.

    Special tokens do not, nor does a token of the model that its tokenizer makes of no text.
    """
    added = tokenizer.get_added_tokens_decoder().get(number)
    if added is not None:
        return "" if added.special else "which text that spells it is read as, since it is not marked as special"
    token = str(tokenizer.id_to_token(number))
    for text in (tokenizer.decode([number], skip_special_tokens=False), token, token.replace(SPACE_MARK, " ")):
        if REPLACEMENT in text or number in _ids(tokenizer, text):
            return "a token of text"
    return ""


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text; none where the tokenizer fails, which is refused where text is read (alignment/encode.py)."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception:  # the Rust library raises plain Exception
        return []


def show(tokenizer: Tokenizer, number: int) -> str:
    """A token and its id, for a line."""
    return f"{tokenizer.id_to_token(number)!r} (id {number})"


def _default(config: Mapping[str, Any], tokenizer: Tokenizer, name: str) -> tuple[str, int]:
    """The key of config.json that names the prefix token, and its id."""
    for key in IDS:
        token_id = config.get(key)
        first = next(iter(token_id), None) if isinstance(token_id, list) else token_id
        if isinstance(first, int) and first >= 0 and tokenizer.id_to_token(first) is not None:
            return key, first
    raise DataError(
        f"the config.json of {name} names neither a bos_token_id nor an eos_token_id that its tokenizer has",
        fix=f"set {KEY}, to a token such as {_suggested(tokenizer)}",
    )


def _named_id(tokenizer: Tokenizer, prefix_token: str | int, name: str) -> int:
    number = tokenizer.token_to_id(prefix_token) if isinstance(prefix_token, str) else prefix_token
    if number is None or number < 0 or tokenizer.id_to_token(number) is None:
        raise DataError(
            f"the tokenizer of {name} has no token {prefix_token!r}",
            fix=f"set {KEY} to one that it has, such as {_suggested(tokenizer)}, or to an id",
        )
    return number


def _suggested(tokenizer: Tokenizer) -> str:
    """Up to three special tokens of a tokenizer, quoted."""
    special = [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items()) if token.special]
    return ", ".join(repr(token) for token in special[:3]) or "an end-of-text token"


def _bos_of_tokenizer(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    token = json.loads(path.read_text(encoding="utf-8")).get("bos_token") if path.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _place(added: list[int], bare: list[int]) -> int:
    """Where the tokens of a text begin among those of the text with special tokens; 0: nowhere."""
    places = range(len(added) - len(bare) + 1)
    return next((place for place in places if added[place : place + len(bare)] == bare), 0)
