"""What a source yields: a text with its origin, or the reason why there is none; and a count of the latter."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moe_distill.log import log
from moe_distill.utils.files import Json

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


EXAMPLES = 20  # per source and reason, in skipped.json
SHOWN = 3  # lines printed per source; a source can hold millions of bad lines


class SkipLog:
    """The skipped documents of each source, by reason."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._counts: dict[str, Counter[str]] = {source: Counter() for source in sources}
        self._examples: dict[str, dict[str, list[Json]]] = {source: {} for source in sources}

    def add(self, source: str, skip: Skip) -> None:
        """Count a skipped document; print it if it is among the source's first."""
        if self._counts[source].total() < SHOWN:
            log(f"corpus: {source}: skipped {skip.file}:{skip.line}: {skip.reason}")
        self._counts[source][skip.reason] += 1
        examples = self._examples[source].setdefault(skip.reason, [])
        if len(examples) < EXAMPLES:
            examples.append({"file": skip.file, "line": skip.line})

    def to_json(self) -> Json:
        """`{source: {reason: {"count": int, "examples": [{"file": str, "line": int}, …]}}}`."""
        return {
            source: {
                reason: {"count": count, "examples": self._examples[source][reason]} for reason, count in counts.items()
            }
            for source, counts in self._counts.items()
        }
