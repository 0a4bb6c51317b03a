"""Documents of a useful length: rows that are single lines are joined, texts that are too long are cut."""

from collections.abc import Iterator
from io import StringIO

from moe_distill.corpus.raw import RawDocument, Skip, examine


def join_rows(rows: Iterator[RawDocument | Skip], characters: int) -> Iterator[RawDocument | Skip]:
    """Join consecutive rows of one file, each on a line of its own, until they have `characters`, or the file ends.

    An empty row is a blank line, but for those that a document would begin with. A row that cannot be used is yielded
    as a skip, before the document that lacks it. A document stands under the line of its first row.
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
    """Yield `text` in pieces of at most `max_characters`, most of them ending at a line, else at a word.

    Pieces of a text in normal form C are in that form too, and no character is lost.
    """
    start = 0
    while len(text) - start > max_characters:
        stop = start + max_characters
        middle = start + max_characters // 2  # no piece is shorter than half
        stop = text.rfind("\n", middle, stop) + 1 or text.rfind(" ", middle, stop) + 1 or stop
        yield text[start:stop]
        start = stop
    yield text[start:]
