"""What a source yields, a text with its origin or a skip with its reason; and a log of the skips."""

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
    """A text as it is in its source, before normalisation."""

    text: str
    file: str  # as the user wrote it: a path, a repository, or a name inside the standard library
    line: int | None  # line or row of `file` where the text begins, from 1; None: the text is the whole file


@dataclass(frozen=True)
class Skip:
    """A document that cannot be used."""

    reason: Reason
    file: str
    line: int  # from 1


def from_value(value: object, file: str, line: int) -> RawDocument | Skip:
    """A document from the value of a JSON key or parquet column; a skip where it is not a string."""
    return RawDocument(value, file, line) if isinstance(value, str) else Skip("not text", file, line)


def examine(document: RawDocument) -> RawDocument | Skip:
    """A skip for a text that cannot be encoded as UTF-8, contains NUL, or is only white space; else the document.

    NUL is refused because parquet readers, C programs and tokenizers end a text at it or replace it.
    """
    text = document.text
    if not text or text.isspace():
        return Skip("empty", document.file, document.line or 1)
    fault = UNUSABLE_CHARACTER.search(text)
    if fault is None:
        return document
    line = document.line or text.count("\n", 0, fault.start()) + 1
    return Skip("NUL" if fault.group() == "\0" else "lone surrogate", document.file, line)


EXAMPLES = 20  # examples in skipped.json for each source and reason
SHOWN = 3  # skips that are printed for each source, which can have millions


class SkipLog:
    """Counts and examples of the skipped documents of each source, by reason."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._counts: dict[str, Counter[Reason]] = {source: Counter() for source in sources}
        self._examples: dict[str, dict[str, list[Json]]] = {source: {} for source in sources}

    def add(self, source: str, skip: Skip) -> None:
        """Count a skipped document; print it if it is among the source's first."""
        if self._counts[source].total() < SHOWN:
            log(f"corpus: {source}: skipped {skip.file}:{skip.line}: {skip.reason}")
        self._counts[source][skip.reason] += 1
        examples = self._examples[source].setdefault(skip.reason, [])
        if len(examples) < EXAMPLES:
            examples.append({"file": skip.file, "line": skip.line})

    def total(self) -> Counter[Reason]:
        """How many documents of all sources were skipped, by reason."""
        return sum(self._counts.values(), Counter[Reason]())

    def to_json(self) -> Json:
        """`{source: {reason: {"count": int, "examples": [{"file": str, "line": int}, …]}}}`."""
        return {
            source: {
                reason: {"count": count, "examples": self._examples[source][reason]} for reason, count in counts.items()
            }
            for source, counts in self._counts.items()
        }
