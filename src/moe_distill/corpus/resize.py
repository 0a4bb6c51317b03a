"""Bring documents to a useful length: join rows that are single lines, and cut texts that are too long."""

from collections.abc import Iterator
from io import StringIO

from moe_distill.corpus.raw import RawDocument, Skip, examine


def join_rows(rows: Iterator[RawDocument | Skip], characters: int) -> Iterator[RawDocument | Skip]:
    """Join consecutive rows of one file, one on each line, into documents of at least `characters` characters.

    The last document of a file may be shorter. An empty row becomes a blank line, but not at the beginning of a
    document. An unusable row is yielded as a skip, before the document that lacks it. The line number of a document is
    that of its first row.
    """
    first: RawDocument | None = None
    text = StringIO()
    for row in rows:
        checked = examine(row) if isinstance(row, RawDocument) else row
        if isinstance(checked, RawDocument):
            first = first or checked
            text.write(checked.text if checked.text.endswith("\n") else f"{checked.text}\n")
        elif checked.reason != "empty":
            yield checked
        elif first:
            text.write("\n")
        if first and text.tell() >= characters:
            yield RawDocument(text.getvalue(), first.file, first.line)
            first, text = None, StringIO()
    if first:
        yield RawDocument(text.getvalue(), first.file, first.line)


MAX_CHARACTERS = 2**20


def divide(text: str, max_characters: int = MAX_CHARACTERS) -> Iterator[str]:
    """Yield `text` in pieces of at most `max_characters`, which end at a line if possible, else at a word.

    The pieces of a text in normal form C are in that form too, and joined they are the text.
    """
    start = 0
    while len(text) - start > max_characters:
        stop = start + max_characters
        middle = start + max_characters // 2  # no piece is shorter than half
        stop = text.rfind("\n", middle, stop) + 1 or text.rfind(" ", middle, stop) + 1 or stop
        yield text[start:stop]
        start = stop
    yield text[start:]
