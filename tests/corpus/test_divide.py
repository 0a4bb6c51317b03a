import unicodedata
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from moe_distill.corpus.build import build_corpus
from moe_distill.corpus.resize import MAX_CHARACTERS, divide

from .conftest import MakeCorpus, files_source, read_split, write_jsonl


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\n e\u0301"), max_size=60), st.integers(2, 20))
def test_no_character_is_lost_and_no_piece_too_long(text: str, limit: int) -> None:
    text = unicodedata.normalize("NFC", text)
    pieces = list(divide(text, limit))
    assert "".join(pieces) == text
    assert all(len(piece) <= limit for piece in pieces)
    assert all(len(piece) >= limit // 2 for piece in pieces[:-1])
    assert all(unicodedata.is_normalized("NFC", piece) for piece in pieces)


def test_pieces_end_at_a_line_then_at_a_word_then_anywhere() -> None:
    assert list(divide("aaaa\nbb cc", 8)) == ["aaaa\n", "bb cc"]
    assert list(divide("aaaa bbcc", 8)) == ["aaaa ", "bbcc"]
    assert list(divide("a aaabbcc", 8)) == ["a aaabbc", "c"]
    assert list(divide("a" * 17, 8)) == ["a" * 8, "a" * 8, "a"]
    assert list(divide("", 8)) == [""]
    assert len(list(divide("a" * MAX_CHARACTERS))) == 1


def test_a_long_document_lies_in_one_split_and_is_counted(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    texts = ["".join(f"{number:07}{line:08}\n" for line in range(80_000)) for number in range(6)]  # 1.2 pieces each
    path = write_jsonl(tmp_path / "a.jsonl", [*texts, "short", *(f"filler {n}" for n in range(40))])
    metrics = build_corpus(make_corpus(files_source(path)), tmp_path / "corpus")
    assert metrics["divided_documents"] == metrics["texts_divided_documents"] == 6
    found = {split: [each.text for each in read_split(tmp_path / "corpus", split)] for split in ("train", "validation")}
    kept = sum(len(piece) for pieces in found.values() for piece in pieces if not piece.startswith(("short", "filler")))
    assert kept == sum(map(len, texts))
    for text in texts:
        sides = [split for split, pieces in found.items() if any(piece in text for piece in pieces)]
        assert len(sides) == 1


def test_pieces_that_repeat_are_duplicates(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["a" * (3 * MAX_CHARACTERS), *(f"filler {n}" for n in range(40))])
    assert build_corpus(make_corpus(files_source(path)), tmp_path / "corpus")["duplicate_documents"] == 2
