"""Round trips, row numbers over files, and every kind of damage named."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_distill.errors import DataError
from moe_distill.shards.format import FORMAT_VERSION
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import TEACHER_TARGETS
from moe_distill.shards.vocabulary_store import VOCABULARY_MAP
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS
from moe_distill.utils.checksummed_json import read_json_object, verified_content, write_checksummed_json
from moe_distill.utils.files import Json, sha256_file

from .toy import FIELDS, FORMAT, expected, new_writer, part, write_store

VERSION = f"version {FORMAT_VERSION}"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(tmp_path)
    return tmp_path


@pytest.mark.parametrize("rows_per_shard", [1, 4, 1000])
@pytest.mark.parametrize("field", FIELDS)
def test_round_trip(tmp_path: Path, rows_per_shard: int, field: str) -> None:
    index = write_store(tmp_path, rows_per_shard)
    assert len(index.files) == {1: 5, 4: 3, 1000: 1}[rows_per_shard]
    found = torch.cat(list(ShardReader(tmp_path, FORMAT).columns(field)))
    assert found.dtype == expected(field).dtype
    assert torch.equal(found, expected(field))


def test_rows_are_numbered_over_all_files(store: Path) -> None:
    reader = ShardReader(store, FORMAT)
    ends = {"tokens": [8, 14, 15], "windows": [2, 4, 5]}
    for table, stops in ends.items():
        for row in range(stops[-1]):
            number = next(number for number, stop in enumerate(stops) if row < stop)
            first = [0, *stops][number]
            assert reader.locate(table, row) == (number, row - first)
            assert reader.first_row(table, number) == first
        assert reader.rows(table) == stops[-1]


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (3, 8), (8, 14), (9, 10), (14, 15)])
def test_slice_inside_any_file(store: Path, start: int, stop: int) -> None:
    reader = ShardReader(store, FORMAT)
    for field in ("ids", "values"):
        assert torch.equal(reader.slice(field, start, stop), expected(field)[start:stop])
    assert torch.equal(reader.slice("starts", 3, 4), expected("starts")[3:4])


def test_slice_over_two_files_is_refused(store: Path) -> None:
    with pytest.raises((ValueError, IndexError, DataError)):
        ShardReader(store, FORMAT).slice("ids", 6, 9)


def test_files_share_the_row_numbers_when_one_has_no_rows_of_a_table(tmp_path: Path) -> None:
    writer = new_writer(tmp_path, rows_per_shard=1)
    no_window = {name: column[:0] for name, column in part(1).items() if FIELDS[name].table == "windows"}
    for columns in (part(0), part(1) | no_window, part(2)):
        writer.append(columns)
    writer.finish(FORMAT, "key", {})
    reader = ShardReader(tmp_path, FORMAT)
    assert [reader.locate("windows", row) for row in (0, 1)] == [(0, 0), (2, 0)]
    assert reader.slice("starts", 1, 2).tolist() == [2 * 2**40]


@pytest.mark.parametrize("place", [0, 20, -1])
def test_one_flipped_bit_is_found_though_time_and_size_are_kept(store: Path, place: int) -> None:
    path = store / "shard_00001.safetensors"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)

    reader = ShardReader(store, FORMAT)
    assert torch.equal(reader.slice("ids", 0, 8), expected("ids")[:8])  # the other files can be read
    written = reader.index.files[1].sha256
    with pytest.raises(DataError, match=rf"shard_00001.* is corrupt; sha256 {sha256_file(path)}.* says {written}"):
        reader.slice("ids", 8, 9)
    with pytest.raises(DataError, match="shard_00001"):
        reader.verify()


def test_truncated_file_is_found(store: Path) -> None:
    path = store / "shard_00002.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=r"shard_00002.* is corrupt"):
        ShardReader(store, FORMAT).verify()


def test_missing_file_is_found(store: Path) -> None:
    (store / "shard_00000.safetensors").unlink()
    with pytest.raises(DataError, match=r"shard_00000.* does not exist; its index lists it"):
        ShardReader(store, FORMAT).verify()


def test_two_exchanged_files_are_found(store: Path) -> None:
    first, second = (store / f"shard_0000{number}.safetensors" for number in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(DataError, match=r"shard_00000.* is corrupt"):
        ShardReader(store, FORMAT).verify()


def test_a_whole_store_passes(store: Path) -> None:
    ShardReader(store, FORMAT).verify()


def rewrite_index(store: Path, **changes: Json) -> None:
    """Change keys of the index, with the seal that belongs to them."""
    path = store / "index.json"
    write_checksummed_json(path, verified_content(path, read_json_object(path)) | changes)


def test_wrong_format_is_named_with_both_values(store: Path) -> None:
    match = f"index.json is moe-distill/test version {FORMAT_VERSION}, expected other/format version {FORMAT_VERSION}"
    with pytest.raises(DataError, match=match):
        ShardReader(store, "other/format")


@pytest.mark.parametrize(
    ("store_format", "version"),
    [(TEACHER_WINDOWS, 6), (STUDENT_WINDOWS, 7), (VOCABULARY_MAP, 7), (TEACHER_TARGETS, 6)],
)
def test_each_format_has_its_own_version(tmp_path: Path, store_format: str, version: int) -> None:
    """So that what one of them gains does not take the teacher's shards away. docs/formats.md has the same numbers."""
    writer = new_writer(tmp_path)
    writer.append(part(0))
    assert writer.finish(store_format, "key", {}).format_version == version
    ShardReader(tmp_path, store_format)
    rewrite_index(tmp_path, format_version=version - 1)
    stage = "teacher" if store_format == TEACHER_TARGETS else "tokenize"
    with pytest.raises(DataError, match=rf"version {version - 1}, expected .* version {version}.*dvc repro -f {stage}"):
        ShardReader(tmp_path, store_format)


def test_wrong_version_is_named_with_both_values(store: Path) -> None:
    rewrite_index(store, format_version=1)
    with pytest.raises(DataError, match=rf"is moe-distill/test version 1, expected moe-distill/test {VERSION}"):
        ShardReader(store, FORMAT)


def test_a_later_version_with_a_new_key_is_named_by_its_version(store: Path) -> None:
    rewrite_index(store, format_version=9, compression="zstd")
    with pytest.raises(DataError, match=rf"version 9, expected moe-distill/test {VERSION}"):
        ShardReader(store, FORMAT)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"format": 1}'])
def test_an_unreadable_index_is_refused(store: Path, content: str) -> None:
    (store / "index.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"index.json is not (an index|JSON|a JSON object)"):
        ShardReader(store, FORMAT)


def test_unknown_keys_of_an_index_are_refused(store: Path) -> None:
    rewrite_index(store, other=1)
    with pytest.raises(DataError, match=r"index.json is not an index"):
        ShardReader(store, FORMAT)


def test_an_unfinished_store_is_refused(store: Path) -> None:
    (store / "index.json").unlink()
    with pytest.raises(DataError, match=r"index.json does not exist.*missing or unfinished"):
        ShardReader(store, FORMAT)


@pytest.mark.parametrize("fault", ["dtype", "shape", "rows", "absent", "not safetensors"])
def test_a_file_that_contradicts_its_index_is_refused_by_name(store: Path, fault: str) -> None:
    path = store / "shard_00000.safetensors"
    if fault == "not safetensors":
        path.write_bytes(b"\xff" * 100)
    else:
        columns = load_file(path)
        ids = columns.pop("ids")
        wrong = {"dtype": ids.long(), "shape": ids[:, None], "rows": ids[:-1]}
        save_file(columns | ({"ids": wrong[fault].contiguous()} if fault in wrong else {}), path)
    described = json.loads((store / "index.json").read_text(encoding="utf-8"))
    described["files"][0]["sha256"] = sha256_file(path)  # the hash is right, the content is not
    rewrite_index(store, files=described["files"])
    match = "not safetensors|ids" if fault in ("absent", "not safetensors") else "field ids is"
    with pytest.raises(DataError, match=rf"shard_00000.*({match})"):
        ShardReader(store, FORMAT).verify()


def test_a_file_is_verified_once_and_before_its_first_value(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr("moe_distill.shards.reader.sha256_file", noted)
    reader = ShardReader(store, FORMAT)
    assert hashed == []
    reader.slice("ids", 0, 1)
    reader.slice("values", 1, 2)
    assert hashed == ["shard_00000.safetensors"]
    reader.verify()
    assert hashed == [f"shard_0000{number}.safetensors" for number in range(3)]
