"""What a source yields: a text with its origin, or the reason why there is none."""

import re
from dataclasses import dataclass
from typing import Literal

Reason = Literal[
    "invalid UTF-8",
    "lone surrogate",
    "NUL",
    "empty",
    "not a JSON object",
    "missing field",
    "not text",
    "not Python",
]

UNUSABLE_CHARACTER = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class RawDocument:
    """A text as its source holds it, before normalisation."""

    text: str
    file: str  # as the user wrote it: a path, a repository, or a name inside the standard library
    line: int | None  # line or row of `file` the text comes from, from 1; None: the text is the whole file


@dataclass(frozen=True)
class Skip:
    """A document that cannot be used."""

    reason: Reason
    file: str
    line: int  # from 1


def from_value(value: object, file: str, line: int) -> RawDocument | Skip:
    """A document from the value of a JSON key or a column."""
    return RawDocument(value, file, line) if isinstance(value, str) else Skip("not text", file, line)


def examine(document: RawDocument) -> RawDocument | Skip:
    """Refuse a text that cannot be encoded as UTF-8, holds NUL, or holds nothing but white space.

    Parquet readers, C programs and tokenizers end a text at NUL or replace it, so bytes would be lost.
    """
    text = document.text
    if not text or text.isspace():
        return Skip("empty", document.file, document.line or 1)
    fault = UNUSABLE_CHARACTER.search(text)
    if fault is None:
        return document
    line = document.line or text.count("\n", 0, fault.start()) + 1
    return Skip("NUL" if fault.group() == "\0" else "lone surrogate", document.file, line)
