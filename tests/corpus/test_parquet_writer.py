from hashlib import sha256
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from moe_distill.corpus.documents import SCHEMA, Document, read_documents
from moe_distill.corpus.parquet_writer import GROUP_CHARACTERS, GROUP_DOCUMENTS, open_writer
from moe_distill.errors import DataError


def write(path: Path, documents: list[Document]) -> None:
    with open_writer(path) as writer:
        for document in documents:
            writer.append(document)


def rows_per_group(path: Path) -> list[int]:
    metadata = pq.ParquetFile(path).metadata
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def test_documents_come_back_in_order(tmp_path: Path) -> None:
    documents = [Document(f"{number:064x}", "mine", f"text {number}\r\né") for number in range(1300)]
    path = tmp_path / "a.parquet"
    write(path, documents)
    assert [document for batch in read_documents(path) for document in batch] == documents
    assert pq.read_schema(path).equals(SCHEMA)
    assert pq.ParquetFile(path).metadata.row_group(0).column(2).compression == "ZSTD"
    assert rows_per_group(path) == [GROUP_DOCUMENTS, GROUP_DOCUMENTS, 1300 - 2 * GROUP_DOCUMENTS]


def test_row_group_of_long_documents_is_bounded_by_their_length(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, [Document("0" * 64, "mine", "x" * (GROUP_CHARACTERS // 2))] * 5)
    assert rows_per_group(path) == [2, 2, 1]


def test_file_without_documents_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, [])
    assert list(read_documents(path)) == []


def test_a_flipped_bit_is_found_before_a_document_is_used(tmp_path: Path) -> None:
    """Anywhere in the file; what a flip leaves as it was, in the footer's statistics, does no harm."""
    words = Random(0)
    texts = ["".join(words.choices("abcdefgh é東 ", k=300)) for _ in range(40)]
    documents = [Document(sha256(text.encode()).hexdigest(), f"source {len(text)}", text) for text in texts]
    path = tmp_path / "a.parquet"
    write(path, documents)
    good, faults, places = path.read_bytes(), [], Random(1)
    end_of_pages = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for number in range(200):
        place = places.randrange(end_of_pages if number % 2 else len(good))
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << places.randrange(8)]) + good[place + 1 :])
        try:
            assert [each for batch in read_documents(path) for each in batch] == documents
        except DataError as error:
            faults.append(str(error))
    assert len(faults) > 150
    assert all(str(path) in fault for fault in faults)


def test_failure_leaves_what_stood_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, [Document("0" * 64, "mine", "old")])
    before = path.read_bytes()

    def fail() -> None:
        with open_writer(path) as writer:
            writer.append(Document("1" * 64, "mine", "new"))
            writer.flush()
            assert path.read_bytes() == before
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_leftover_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".a.parquet.tmp").write_bytes(b"half a file")
    write(tmp_path / "a.parquet", [Document("0" * 64, "mine", "text")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
