"""Pieces of text as tokenizers cut it, so that a person can see them: spaces and broken characters included."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


class Guess(NamedTuple):
    """A token that a model thinks likely, and its probability."""

    piece: str
    probability: float


class Piece(BaseModel):
    """A token as it is shown, and the bytes of text that it spans."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shown: str
    n_bytes: int


class Segment(NamedTuple):
    """The shortest stretch of text at whose ends both tokenizers cut."""

    teacher: list[str]
    student: list[str]
    is_read: bool  # it lies before the position that is asked for


def visible(spelled: bytes | None) -> str:
    """The bytes of a token as text in which blanks can be seen; bytes that are no character stand as `\\xNN`."""
    return "(special)" if spelled is None else spelled.decode("utf-8", "backslashreplace").translate(VISIBLE)


def make_pieces(ids: Sequence[int], spelled: Sequence[bytes | None]) -> list[Piece]:
    """The pieces of some tokens.

    Args:
        spelled: the bytes of every id of the tokenizer; None for an id that stands for no text.
    """
    return [Piece(shown=visible(spelled[number]), n_bytes=len(spelled[number] or b"")) for number in ids]


def text_of(ids: Sequence[int], spelled: Sequence[bytes | None]) -> str:
    """The text of some tokens; a character that they end in the midst of is left out, other broken ones are shown.

    An id beyond the tokenizer's, of a row of the output matrix that has no token, spells nothing.
    """
    joined = b"".join(spelled[number] or b"" for number in ids if number < len(spelled))
    # what more bytes may complete is kept back
    return getincrementaldecoder("utf-8")("backslashreplace").decode(joined)


def aligned_segments(teacher: Sequence[Piece], student: Sequence[Piece], read_bytes: int) -> list[Segment]:
    """The same text in the pieces of both tokenizers, cut wherever both cut.

    Args:
        teacher, student: pieces of one and the same stretch of text.
        read_bytes: bytes of it that lie before the position that is asked for.
    """
    ends = [list(accumulate(piece.n_bytes for piece in pieces)) for pieces in (teacher, student)]
    segments, start = list[Segment](), 0
    for stop in sorted(set(ends[0]) & set(ends[1])):
        inside = [
            [piece.shown for piece, end in zip(pieces, of_pieces, strict=True) if start < end <= stop]
            for pieces, of_pieces in zip((teacher, student), ends, strict=True)
        ]
        segments.append(Segment(inside[0], inside[1], is_read=stop <= read_bytes))
        start = stop
    return segments
