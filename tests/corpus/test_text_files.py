import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_distill.corpus.raw import RawDocument, Skip
from moe_distill.corpus.text_files import file_documents
from moe_distill.errors import DataError

from .conftest import write_jsonl


def read(*paths: Path | str, field: str = "text") -> list[RawDocument | Skip]:
    return list(file_documents([str(path) for path in paths], field))


def write_parquet(path: Path, texts: list[str | None], kind: pa.DataType | None = None, column: str = "text") -> Path:
    array = pa.array(texts, pa.string())
    values = array if kind is None else array.dictionary_encode() if pa.types.is_dictionary(kind) else array.cast(kind)
    pq.write_table(pa.table({"number": range(len(texts)), column: values}), path)
    return path


def test_txt_is_one_document_with_its_own_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\n\xc3\xa9")
    assert read(path) == [RawDocument("one\r\ntwo\rthree\n\né", str(path), None)]


def test_jsonl_is_one_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n'
        b'{"body": 1, "text": "\xe2\x80\xa8 \\u00e9 \\ud83d\\ude00"}\n'
        b'{"text": "end"}'
    )
    file = str(path)
    assert read(path) == [
        RawDocument("a\r\nb", file, 1),
        RawDocument("\u2028 é \U0001f600", file, 2),
        RawDocument("end", file, 3),
    ]


def test_every_bad_jsonl_line_is_skipped_with_its_reason_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [
        (b'{"text": "good"}', None),
        (b'{"text": "cut', "not a JSON object"),
        (b'{"text": "\xff"}', "invalid UTF-8"),
        (b'{"body": "b"}', "missing field"),
        (b'{"text": null}', "not text"),
        (b'["text"]', "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"", "empty"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not a JSON object"),
        (b"[" * 200_000, "not a JSON object"),
        (b'{"text": "also good"}', None),
    ]
    path.write_bytes(b"\n".join(line for line, _ in lines))
    items = read(path)
    reasons = [item.reason if isinstance(item, Skip) else None for item in items]
    assert reasons == [reason for _, reason in lines]
    assert [(item.file, item.line) for item in items] == [(str(path), number) for number in range(1, len(lines) + 1)]


def test_invalid_utf8_in_txt_is_skipped_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"one\ntwo\nthr\xe9e\nfour")
    (tmp_path / "surrogate.txt").write_bytes("a\n\ud800".encode(errors="surrogatepass"))
    (tmp_path / "utf16.txt").write_bytes("text".encode("utf-16"))
    items = read(tmp_path)
    assert [item.reason for item in items if isinstance(item, Skip)] == ["invalid UTF-8"] * 3
    assert [item.line for item in items] == [3, 2, 1]


@pytest.mark.parametrize(
    "kind",
    [None, pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=["string", "large_string", "string_view", "dictionary"],
)
def test_parquet_column_of_text_is_read_row_by_row(tmp_path: Path, kind: pa.DataType | None) -> None:
    texts = [f"row {number}\r\n é" for number in range(600)]
    path = write_parquet(tmp_path / "a.parquet", [*texts, None], kind)
    assert read(path) == [
        *(RawDocument(text, str(path), number) for number, text in enumerate(texts, start=1)),
        Skip("not text", str(path), 601),
    ]


def test_invalid_utf8_in_a_parquet_row_costs_that_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array([b"one", b"\xff", b"three"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), path)
    file = str(path)
    assert read(path) == [
        RawDocument("one", file, 1),
        Skip("invalid UTF-8", file, 2),
        RawDocument("three", file, 3),
    ]


def test_jsonl_without_the_key_names_file_key_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "body": "a"}\n[]\n{"other\\nkey": 2}\n')
    said = rf"no line of {path} has the key `text`; their keys: id, body, other key; .*`field`"
    with pytest.raises(DataError, match=said):
        read(path)
    path.write_text('{"id": 1}\n{"text": "a"}\n')
    assert read(path)[1] == RawDocument("a", str(path), 2)
    path.write_text('{"id": 1}\n{"text": 5}\n')  # it has the key
    assert [item.reason for item in read(path) if isinstance(item, Skip)] == ["missing field", "not text"]


def test_parquet_with_two_columns_of_the_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(DataError, match=rf"{path} has 2 columns `text`"):
        read(path)


def test_a_column_whose_name_is_the_path_of_another_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [{"b": "inside"}], "a.b": ["text"]}), path)
    assert list(file_documents([str(path)], "a.b")) == [RawDocument("text", str(path), 1)]


def test_parquet_without_the_column_names_file_key_and_columns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["a"], column="content")
    with pytest.raises(DataError, match=rf"{path} has no column `text`.*number, content.*`field`"):
        read(path)
    with pytest.raises(DataError, match=rf"column `number` of {path} holds int64, not text.*`field`"):
        read(path, field="number")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_parquet_names_the_file(tmp_path: Path, kept: float) -> None:
    path = write_parquet(tmp_path / "a.parquet", [f"row {number}" for number in range(1000)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=rf"{path} cannot be read.*`paths`"):
        read(path)


def test_damage_inside_a_parquet_names_the_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [f"row {number}" for number in range(5000)])
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path} cannot be read.*`paths`"):
        read(path)


def test_unreadable_file_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    path = tmp_path / "a.txt"
    path.write_text("a")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=rf"{path} cannot be read.*Permission denied.*`paths`"):
        read(path)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of each kind, and others, below the current folder."""
    folder = tmp_path / "texts"
    (folder / "deep" / "folder.txt").mkdir(parents=True)
    for name in ("b.txt", "a.TXT", "deep/c.txt", "deep/folder.txt/d.txt", "readme.md", "e[1].txt"):
        (folder / name).write_text(name)
    write_jsonl(folder / "deep" / "l.jsonl", ["l"])
    write_parquet(folder / "p.parquet", ["p"])
    monkeypatch.chdir(tmp_path)
    return folder


DEEP = ["deep/c.txt", "deep/folder.txt/d.txt", "deep/l.jsonl"]


def files_of(*paths: str) -> list[str]:
    return [item.file.removeprefix("texts/") for item in read(*paths)]


@pytest.mark.usefixtures("tree")
def test_paths_may_be_files_folders_and_globs() -> None:
    everything = ["a.TXT", "b.txt", "deep/c.txt", "deep/folder.txt/d.txt", "deep/l.jsonl", "e[1].txt", "p.parquet"]
    assert files_of("texts") == everything
    assert files_of("texts/") == everything
    assert files_of("texts/**/[dl].*") == ["deep/folder.txt/d.txt", "deep/l.jsonl"]
    assert files_of("texts/*") == ["a.TXT", "b.txt", *everything[2:]]
    assert files_of("texts/deep/*.txt") == ["deep/c.txt", "deep/folder.txt/d.txt"]
    assert files_of("texts/e[1].txt") == ["e[1].txt"]


def test_absolute_paths_and_globs_are_reported_as_given(tree: Path) -> None:
    assert files_of(f"{tree}/*.txt") == [f"{tree}/b.txt", f"{tree}/e[1].txt"]


@pytest.mark.usefixtures("tree")
def test_relative_paths_are_below_the_main_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a workspace of `dvc exp run --temp`, which holds tracked files alone; the names stay the user's."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "temporary")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert files_of("texts/*.txt", "texts/deep") == ["b.txt", "e[1].txt", *DEEP]


@pytest.mark.usefixtures("tree")
def test_order_is_that_of_paths_and_each_file_is_read_once() -> None:
    assert files_of("texts/p.parquet", "./texts/b.txt", "texts/[bp]*")[:2] == ["p.parquet", "b.txt"]
    assert len(files_of("texts", "texts/b.txt", "texts/**")) == 7


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("path", ["nowhere", "texts/*.csv", "texts/readme.md", "nowhere/**/*.txt", ""])
def test_path_that_matches_nothing_is_named(path: str) -> None:
    with pytest.raises(DataError, match=r"matches no \.txt, .* file; change `paths`") as error:
        read("texts/b.txt", path)
    assert f"`{path}`" in error.value.what


def peak_bytes(items: Iterator[RawDocument | Skip]) -> int:
    """The most memory that Python and Arrow hold while the items are read."""
    arrow = 0
    tracemalloc.start()
    for _ in items:
        arrow = max(arrow, pa.total_allocated_bytes())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + arrow


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_memory_is_flat_in_the_size_of_a_file(tmp_path: Path, suffix: str) -> None:
    random, peaks = Random(0), []
    for megabytes in (16, 48):
        path = tmp_path / f"{megabytes}.{suffix}"
        texts = [random.randbytes(5000).hex() for _ in range(megabytes * 100)]  # compression would hide the growth
        if suffix == "jsonl":
            write_jsonl(path, texts)
        else:
            pq.write_table(pa.table({"text": texts}), path, row_group_size=10**6, use_dictionary=False)
        del texts
        peaks.append(peak_bytes(file_documents([str(path)], "text")))
    assert peaks[1] < peaks[0] + 4_000_000


def test_jsonl_is_read_as_it_is_consumed(tmp_path: Path) -> None:
    """The first document is there before the file's later lines are looked at."""
    path = write_jsonl(tmp_path / "a.jsonl", ["x" * 100] * 10_000)
    documents = file_documents([str(path)], "text")
    next(documents)
    with path.open("r+b") as file:
        file.truncate(500_000)
    assert 4000 < sum(1 for _ in documents) < 4500
    assert json.loads(path.read_bytes().splitlines()[0]) == {"text": "x" * 100}
