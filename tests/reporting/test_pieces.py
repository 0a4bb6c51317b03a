"""Pieces of text as a person sees them, and where two tokenizers cut alike."""

from moe_distill.reporting.pieces import Piece, Segment, aligned_segments, make_pieces, text_of, visible

SPELLED = [b" the", b"\n", b"\xe2\x82", b"\xac", None, b"a"]


def pieces(*texts: str) -> list[Piece]:
    return [Piece(shown=text, n_bytes=len(text)) for text in texts]


def test_blanks_and_broken_characters_can_be_seen() -> None:
    assert [visible(each) for each in SPELLED] == ["·the", "⏎", "\\xe2\\x82", "\\xac", "(special)", "a"]
    assert make_pieces([0, 4], SPELLED) == [Piece(shown="·the", n_bytes=4), Piece(shown="(special)", n_bytes=0)]


def test_a_text_ends_between_two_characters() -> None:
    assert text_of([0, 2, 3, 5], SPELLED) == " the€a"
    assert text_of([0, 2], SPELLED) == " the", "the character has only begun"
    assert text_of([4, 5, 6], SPELLED) == "a", "an output matrix may have more rows than there are tokens"
    assert text_of([3, 5, 0], SPELLED) == "\\xaca the", "bytes that are no character in its midst are shown"
    assert text_of([0, 3, 5], SPELLED) == " the\\xaca", "and near its end, with what follows"
    assert text_of([3], SPELLED) == "\\xac"
    assert text_of([3, 5, 2], SPELLED) == "\\xaca"


def test_segments_end_where_both_tokenizers_cut() -> None:
    teacher, student = pieces("ab", "cde", "f", "gh"), pieces("a", "b", "cd", "ef", "gh")
    assert aligned_segments(teacher, student, 6) == [
        Segment(["ab"], ["a", "b"], is_read=True),
        Segment(["cde", "f"], ["cd", "ef"], is_read=True),
        Segment(["gh"], ["gh"], is_read=False),
    ]
