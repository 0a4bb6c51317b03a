import pytest

from moe_distill.corpus.raw import RawDocument, Reason, Skip, examine, from_value


@pytest.mark.parametrize("text", ["a", " a\r\n", "e\u0301", "\U0001f600", "\x01\x04", "\ufeffa"])
def test_usable_text_is_returned_as_it_is(text: str) -> None:
    document = RawDocument(text, "a.txt", None)
    assert examine(document) is document


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("", "empty", 1),
        (" \r\n\t\u3000\n", "empty", 1),
        ("a\nb\0", "NUL", 2),
        ("a\r\n\r\nb\ud800c\0", "lone surrogate", 3),
        ("\udfff", "lone surrogate", 1),
    ],
)
def test_fault_of_a_whole_file_is_found_at_its_line(text: str, reason: Reason, line: int) -> None:
    assert examine(RawDocument(text, "a.txt", None)) == Skip(reason, "a.txt", line)


@pytest.mark.parametrize("text", ["", "a\nb\0", "a\n\ud800"])
def test_fault_of_a_record_is_reported_at_the_record(text: str) -> None:
    skip = examine(RawDocument(text, "a.jsonl", 7))
    assert isinstance(skip, Skip)
    assert skip.line == 7


@pytest.mark.parametrize("value", [None, 3, ["a"], {"text": "a"}, b"a"])
def test_value_that_is_not_text_is_skipped(value: object) -> None:
    assert from_value(value, "a.jsonl", 3) == Skip("not text", "a.jsonl", 3)
    assert from_value("a", "a.jsonl", 3) == RawDocument("a", "a.jsonl", 3)
