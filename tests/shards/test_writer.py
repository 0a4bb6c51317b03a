"""What a writer accepts, and what is left when it is killed."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_distill.shards.format import FORMAT_VERSION
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.writer import ShardWriter
from moe_distill.utils.files import sha256_file

from .toy import FIELDS, FORMAT, contents, new_writer, part, progress_folder_of, write_store


def test_index_is_complete(tmp_path: Path) -> None:
    index = write_store(tmp_path)
    described = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    assert set(described) == {"format", "format_version", "fingerprint", "fields", "files", "metadata", "sha256"}
    assert (described["format"], described["format_version"], described["fingerprint"]) == (FORMAT, 6, "key")
    assert FORMAT_VERSION == 6
    assert described["metadata"] == {"name": "toy", "sizes": [1, 2]}
    assert described["fields"]["scales"] == {"table": "windows", "dtype": "float32", "shape": [2, 2]}
    assert described["files"] == [
        {
            "name": f"shard_{number:05d}.safetensors",
            "bytes": (tmp_path / f"shard_{number:05d}.safetensors").stat().st_size,
            "sha256": sha256_file(tmp_path / f"shard_{number:05d}.safetensors"),
            "rows": rows,
        }
        for number, rows in enumerate(
            [{"tokens": 8, "windows": 2}, {"tokens": 6, "windows": 2}, {"tokens": 1, "windows": 1}]
        )
    ]
    assert (index.rows("tokens"), index.rows("windows")) == (15, 5)


def test_a_finished_store_holds_safetensors_and_json_alone(tmp_path: Path) -> None:
    write_store(tmp_path)
    assert sorted(contents(tmp_path)) == ["index.json", *(f"shard_{number:05d}.safetensors" for number in range(3))]
    for name, content in contents(tmp_path).items():
        header = content[8:] if name.startswith("shard") else content
        assert header.startswith(b"{")
        assert b"pickle" not in content
        assert not content.startswith((b"\x80", b"PK"))


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("ids", torch.zeros(3, dtype=torch.int64), r"ids: torch.int64 \(\), expected int32 \(\)"),
        ("values", torch.zeros(3, 3), r"values: torch.float32 \(3,\), expected float16 \(3,\)"),
        ("values", torch.zeros(3, 4, dtype=torch.float16), r"values: torch.float16 \(4,\), expected float16 \(3,\)"),
        ("values", torch.zeros(4, 3, dtype=torch.float16), "values: 4 rows, table tokens has 3"),
        ("scales", torch.zeros(2, 2, 2), "scales: 2 rows, table windows has 1"),
        ("scales", torch.full((1, 2, 2), float("nan")), "scales: a non-finite value is never written"),
        ("scales", torch.full((1, 2, 2), float("-inf")), "scales: a non-finite value is never written"),
        ("values", torch.full((3, 3), 7e4).half(), "values: a non-finite value is never written"),
    ],
)
def test_wrong_columns_are_refused_by_name(tmp_path: Path, field: str, wrong: Tensor, message: str) -> None:
    writer = new_writer(tmp_path)
    with pytest.raises(ValueError, match=message):
        writer.append(part(0) | {field: wrong}, next_input=1)
    assert writer.rows("tokens") == 0
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_missing_and_unknown_columns_are_refused(tmp_path: Path, change: str) -> None:
    columns = part(0)
    if change == "missing":
        del columns["flags"]
    else:
        columns["other"] = columns["ids"]
    with pytest.raises(ValueError, match=r"columns .* given, .* expected"):
        new_writer(tmp_path).append(columns, next_input=1)


def test_rows_and_tallies_count_finished_and_pending(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    writer.append(part(0), next_input=1, tallies={"seconds": 0.5})
    assert (writer.rows("tokens"), writer.rows("windows"), writer.next_input) == (3, 1, 0)
    writer.append(part(1), next_input=2, tallies={"seconds": 0.25})
    writer.append(part(2), next_input=3, tallies={"seconds": 2.0, "other": 1.0})
    assert (writer.rows("tokens"), writer.rows("windows"), writer.next_input) == (10, 3, 2)
    assert (writer.tally("seconds"), writer.tally("other"), writer.tally("none")) == (2.75, 1.0, 0.0)


@pytest.mark.parametrize("killed_after", range(6))
def test_r21_a_killed_writer_is_continued_to_the_same_bytes(tmp_path: Path, killed_after: int) -> None:
    write_store(tmp_path / "unbroken")
    first = new_writer(tmp_path / "broken")
    for number in range(killed_after):
        first.append(part(number), next_input=number + 1, tallies={"parts": 1.0})
    del first  # no finish

    second = new_writer(tmp_path / "broken")
    assert second.next_input == [0, 0, 2, 2, 4, 4][killed_after]
    assert second.tally("parts") == second.next_input
    for number in range(second.next_input, 5):
        second.append(part(number), next_input=number + 1, tallies={"parts": 1.0})
    assert second.tally("parts") == 5
    second.finish(FORMAT, "key", {"name": "toy", "sizes": [1, 2]})
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


def unfinished(folder: Path) -> None:
    writer = new_writer(folder)
    for number in range(4):
        writer.append(part(number), next_input=number + 1)


@pytest.mark.parametrize("fault", ["flipped", "truncated", "missing", "progress file", "number"])
@pytest.mark.parametrize(("broken", "next_input"), [(0, 0), (1, 2)])
def test_r21_a_broken_shard_of_a_killed_writer_is_written_again(
    tmp_path: Path, fault: str, broken: int, next_input: int
) -> None:
    unfinished(tmp_path)
    shard = tmp_path / f"shard_{broken:05d}.safetensors"
    if fault == "flipped":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif fault == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif fault == "missing":
        shard.unlink()
    elif fault == "progress file":
        (progress_folder_of(tmp_path) / f"{shard.name}.json").write_text("{", encoding="utf-8")
    else:
        progress = progress_folder_of(tmp_path) / f"{shard.name}.json"
        written = progress.read_text(encoding="utf-8")
        recorded = f'"next_input": {2 * broken + 2}'
        assert recorded in written
        progress.write_text(written.replace(recorded, '"next_input": 3'), encoding="utf-8")
    writer = new_writer(tmp_path)
    assert writer.next_input == next_input
    for number in range(next_input, 5):
        writer.append(part(number), next_input=number + 1)
    writer.finish(FORMAT, "key", {"name": "toy", "sizes": [1, 2]})
    write_store(tmp_path / "whole")
    assert ShardReader(tmp_path, FORMAT).index == ShardReader(tmp_path / "whole", FORMAT).index
    ShardReader(tmp_path, FORMAT).verify()


def test_r21_killed_between_the_last_shard_and_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("moe_distill.shards.writer.Index", _killed)
        with pytest.raises(KeyboardInterrupt):
            write_store(tmp_path / "broken")
    writer = new_writer(tmp_path / "broken")
    assert writer.next_input == 5
    assert writer.tally("parts") == 5
    writer.finish(FORMAT, "key", {"name": "toy", "sizes": [1, 2]})
    write_store(tmp_path / "whole")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_r21_a_finished_store_is_finished_again_without_input(tmp_path: Path) -> None:
    index = write_store(tmp_path / "store")
    before = contents(tmp_path / "store")
    writer = new_writer(tmp_path / "store")
    assert (writer.next_input, writer.tally("parts")) == (5, 5)
    assert writer.finish(FORMAT, "key", {"name": "toy", "sizes": [1, 2]}) == index
    assert contents(tmp_path / "store") == before


def test_without_progress_files_a_store_is_written_from_the_start(tmp_path: Path) -> None:
    for _ in range(2):
        writer = ShardWriter(tmp_path / "store", FIELDS, "tokens", 4)
        assert writer.next_input == 0
        for number in range(4):
            writer.append(part(number), next_input=number + 1)
    writer.finish(FORMAT, "key", {})
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_half_a_shard_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    unfinished(tmp_path / "store")
    (tmp_path / "store/.shard_00002.safetensors.1.tmp").touch()
    new_writer(tmp_path / "store")
    assert sorted(contents(tmp_path / "store")) == ["shard_00000.safetensors", "shard_00001.safetensors"]


def test_an_unfinished_store_has_no_index(tmp_path: Path) -> None:
    unfinished(tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_appended_tensors_may_be_views_and_need_no_gradient(tmp_path: Path) -> None:
    columns = part(0)
    columns["values"] = columns["values"].T.contiguous().T  # not contiguous
    columns["scales"] = columns["scales"].requires_grad_()
    writer = new_writer(tmp_path)
    writer.append(columns, next_input=1)
    writer.finish(FORMAT, "key", {})
    assert torch.equal(ShardReader(tmp_path, FORMAT).column("values", 0), part(0)["values"])


def test_a_store_may_have_no_rows(tmp_path: Path) -> None:
    index = new_writer(tmp_path).finish(FORMAT, "key", {})
    assert index.files == []
    assert ShardReader(tmp_path, FORMAT).rows("tokens") == 0
    assert set(index.fields) == set(FIELDS)


def _killed(**_arguments: object) -> None:
    raise KeyboardInterrupt
