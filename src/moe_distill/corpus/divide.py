"""Cut what is too long for one document: memory and time of all later stages are bounded by the longest one."""

from collections.abc import Iterator

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
