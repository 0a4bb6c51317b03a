"""The corpus file, and hash fractions that depend on a document alone."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_distill.corpus.documents import SCHEMA, Document, hash_fraction, read_documents
from moe_distill.errors import DataError

TEXTS = ["first", "", "naïve 東京 🙂\n\x00", "x" * 10_000, "last"]
DOCUMENTS = [
    Document(hashlib.sha256(text.encode()).hexdigest(), f"source {number % 2}", text)
    for number, text in enumerate(TEXTS)
]


def write(path: Path, schema: pa.Schema = SCHEMA) -> Path:
    rows = [{"document_id": d.document_id, "source": d.source, "text": d.text} for d in DOCUMENTS]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (256, [5])])
def test_round_trip_in_order(tmp_path: Path, batch: int, sizes: list[int]) -> None:
    groups = list(read_documents(write(tmp_path / "a.parquet"), batch))
    assert [len(group) for group in groups] == sizes
    assert [document for group in groups for document in group] == DOCUMENTS


def test_order_of_the_columns_in_the_file_does_not_matter(tmp_path: Path) -> None:
    rows = [{"text": d.text, "extra": 1, "source": d.source, "document_id": d.document_id} for d in DOCUMENTS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [d for group in read_documents(tmp_path / "a.parquet") for d in group] == DOCUMENTS


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    pq.write_table(SCHEMA.empty_table(), tmp_path / "a.parquet")
    assert [d for group in read_documents(tmp_path / "a.parquet") for d in group] == []


def test_a_missing_file_names_itself_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet does not exist; run: dvc repro corpus"):
        next(read_documents(tmp_path / "a.parquet"))


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_an_unreadable_file_is_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "a.parquet")
    content = path.read_bytes()
    path.write_bytes({"text": b"not parquet at all", "truncated": content[:-20], "empty": b""}[damage])
    with pytest.raises(DataError, match=r"a\.parquet is not a readable parquet file"):
        list(read_documents(path))


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"document_id": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="source"):
        list(read_documents(tmp_path / "a.parquet"))


def test_hash_fractions_depend_on_document_and_purpose_alone() -> None:
    assert hash_fraction("a", "split") == hash_fraction("a", "split")
    assert hash_fraction("a", "split") != hash_fraction("b", "split")
    assert hash_fraction("a", "split") != hash_fraction("a", "distil")
    digest = hashlib.sha256(b"split:a").hexdigest()
    assert hash_fraction("a", "split") == int(digest[:16], 16) / 2**64


def test_hash_fractions_are_uniform_and_independent_between_purposes() -> None:
    n = 20_000
    first = [hash_fraction(str(number), "split") for number in range(n)]
    second = [hash_fraction(str(number), "distil") for number in range(n)]
    assert 0 <= min(first) < max(first) < 1
    for values in (first, second):
        shares = [sum(place / 10 <= value < (place + 1) / 10 for value in values) / n for place in range(10)]
        assert all(abs(share - 0.1) < 0.01 for share in shares)  # 5 standard deviations
    both = sum(a < 0.5 and b < 0.5 for a, b in zip(first, second, strict=True)) / n
    assert abs(both - 0.25) < 0.016
