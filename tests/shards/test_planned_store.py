"""A store whose files are planned: written in any order and by any number of processes, and after a kill."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from moe_distill.errors import DataError
from moe_distill.shards.format import Index, shard_name
from moe_distill.shards.planned_store import PlannedStore, share
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.shard_file import Rows
from moe_distill.utils import files as files_module
from moe_distill.utils.processes import ALONE, Processes

from .toy import FIELDS, FORMAT, contents, part, write_store

FILES = [range(0, 2), range(2, 4), range(4, 5)]  # of the parts, as `write_store` has them


class Looked(Processes):
    """Of several that have looked at the same time: none waits."""

    def wait(self) -> None:
        pass


def planned(folder: Path, processes: Processes = ALONE) -> PlannedStore:
    return PlannedStore(folder, FIELDS, FILES, progress_folder_of(folder), processes)


def progress_folder_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-progress")


def write(store: PlannedStore, numbers: Iterable[int]) -> None:
    with store.writing() as start:
        for number in numbers:
            rows = Rows(FIELDS)
            for each in FILES[number]:
                rows.append(part(each))
            start(number, rows, {"parts": float(len(FILES[number]))})


def finish(store: PlannedStore) -> Index:
    return store.finish(FORMAT, "key", {"name": "toy", "sizes": [1, 2]})


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_files_in_any_order_are_those_of_one_writer(tmp_path: Path, order: list[int]) -> None:
    index = write_store(tmp_path / "whole")
    store = planned(tmp_path / "store")
    assert store.unfinished() == [0, 1, 2]
    write(store, order)
    assert finish(store) == index
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert [each.tallies for each in store.progress()] == [{"parts": 2.0}, {"parts": 2.0}, {"parts": 1.0}]


@pytest.mark.parametrize("world_size", range(1, 6))
def test_each_missing_file_is_written_by_one_process(tmp_path: Path, world_size: int) -> None:
    write_store(tmp_path / "whole")
    stores = [planned(tmp_path / "store", Looked(rank, world_size)) for rank in range(world_size)]
    shares = [store.unfinished() for store in stores]
    assert sorted(number for share in shares for number in share) == [0, 1, 2]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for store, numbers in zip(stores, shares, strict=True):
        write(store, numbers)
    assert len({finish(store).model_dump_json() for store in stores}) == 1
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_all_processes_see_the_same_files_however_late_one_has_begun(tmp_path: Path) -> None:
    """While each waits, the next begins: as they look before that, none finds what another has written."""
    shares: list[list[int]] = []

    class Overtaken(Looked):
        def wait(self) -> None:
            if self.rank + 1 < self.count:
                start(self.rank + 1)

    def start(rank: int) -> None:
        store = planned(tmp_path / "store", Overtaken(rank, 3))
        shares.append(store.unfinished())
        write(store, shares[-1])

    start(0)
    assert sorted(shares) == [[0], [1], [2]]


def test_only_the_first_process_writes_the_index(tmp_path: Path) -> None:
    write(planned(tmp_path), [0, 1, 2])
    finish(planned(tmp_path, Looked(1, 2)))
    assert not (tmp_path / "index.json").exists()
    finish(planned(tmp_path, Looked(0, 2)))
    assert (tmp_path / "index.json").exists()


@pytest.mark.parametrize("written", [[], [0], [1], [2], [0, 2], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_r21_after_a_kill_the_missing_files_are_written_by_any_number_of_processes(
    tmp_path: Path, written: list[int], world_size: int
) -> None:
    write_store(tmp_path / "whole")
    write(planned(tmp_path / "broken"), written)
    stores = [planned(tmp_path / "broken", Looked(rank, world_size)) for rank in range(world_size)]
    shares = [store.unfinished() for store in stores]
    assert sorted([*written, *(number for share in shares for number in share)]) == [0, 1, 2]
    for store, numbers in zip(stores, shares, strict=True):
        write(store, numbers)
    finish(stores[0])
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


@pytest.mark.parametrize("fault", ["flipped", "truncated", "missing", "progress file", "number", "shape", "empty"])
@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("processes", [ALONE, Looked(1, 2), Looked(0, 2)], ids=str)
def test_r21_a_broken_file_of_a_killed_process_is_written_again(
    tmp_path: Path, fault: str, broken: int, processes: Processes
) -> None:
    write(planned(tmp_path / "store"), [0, 1, 2])
    shard = tmp_path / "store" / shard_name(broken)
    progress = progress_folder_of(tmp_path / "store") / f"{shard.name}.json"
    if fault == "flipped":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif fault == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif fault == "missing":
        shard.unlink()
    elif fault == "number":
        written = progress.read_text(encoding="utf-8")
        recorded = f'"next_input": {FILES[broken].stop}'
        assert recorded in written
        progress.write_text(written.replace(recorded, '"next_input": 3'), encoding="utf-8")
    else:
        progress.write_text({"progress file": "{", "shape": "{}", "empty": ""}[fault], encoding="utf-8")
    is_checked_here = broken in share([0, 1, 2], processes)
    store = planned(tmp_path / "store", processes)
    assert store.unfinished() == ([broken] if is_checked_here else [])
    if is_checked_here:
        write(store, [broken])
        finish(planned(tmp_path / "store"))
        write_store(tmp_path / "whole")
        assert contents(tmp_path / "store") == contents(tmp_path / "whole")
        ShardReader(tmp_path / "store", FORMAT).verify()


def test_a_file_of_other_inputs_is_written_again(tmp_path: Path) -> None:
    write(planned(tmp_path / "store"), [0])
    others = PlannedStore(tmp_path / "store", FIELDS, [range(3), range(3, 5)], progress_folder_of(tmp_path / "store"))
    assert others.unfinished() == [0, 1]


def test_r21_killed_between_the_last_file_and_the_index(tmp_path: Path) -> None:
    write_store(tmp_path / "whole")
    write(planned(tmp_path / "broken"), [0, 1, 2])
    store = planned(tmp_path / "broken")
    assert store.unfinished() == []
    finish(store)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_finished_store_is_finished_again_without_input(tmp_path: Path) -> None:
    for _ in range(2):
        store = planned(tmp_path / "store")
        write(store, store.unfinished())
        finish(store)
        before = contents(tmp_path / "store")
    assert contents(tmp_path / "store") == before


def test_half_a_file_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    write(planned(tmp_path / "store"), [0, 1])
    (tmp_path / "store/.shard_00002.safetensors.1.tmp").touch()
    assert planned(tmp_path / "store").unfinished() == [2]
    assert sorted(contents(tmp_path / "store")) == ["shard_00000.safetensors", "shard_00001.safetensors"]


def test_an_unfinished_store_gives_no_index(tmp_path: Path) -> None:
    store = planned(tmp_path / "store")
    write(store, [0, 2])
    with pytest.raises(DataError, match=r"shard_00001.safetensors.json"):
        finish(store)
    assert not (tmp_path / "store/index.json").exists()


def test_a_file_is_on_the_disk_before_its_progress_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(files_module, "sync", lambda path: synced.append(path.name))
    write(planned(tmp_path / "store"), [0])
    shard = shard_name(0)
    files = [name for name in synced if name.startswith(".")]
    assert [name.split(".safetensors")[0] for name in files] == [f".{shard.split('.')[0]}"] * 2
    assert [".json" in name for name in files] == [False, True]
    assert synced.index("store") < synced.index(files[1])  # the name too


def test_files_are_written_in_another_thread_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, threads, running = Rows.write, [], threading.Lock()

    def seen(rows: Rows, folder: Path, number: int) -> object:
        assert running.acquire(blocking=False)
        threads.append(threading.current_thread())
        entry = real(rows, folder, number)
        running.release()
        return entry

    monkeypatch.setattr(Rows, "write", seen)
    write(planned(tmp_path / "store"), [0, 1, 2])
    assert len(threads) == 3
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_while_writing_ends_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    real = Rows.write

    def full(rows: Rows, folder: Path, number: int) -> object:
        if number == failing:
            raise OSError(28, "No space left on device")
        return real(rows, folder, number)

    monkeypatch.setattr(Rows, "write", full)
    store = planned(tmp_path / "store")
    with pytest.raises(OSError, match="No space left"):
        write(store, [0, 1, 2])
    assert store.unfinished() == list(range(failing, 3))


def test_the_file_that_is_being_written_is_finished_where_the_next_cannot_be_made(tmp_path: Path) -> None:
    store = planned(tmp_path / "store")

    def files() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(store, files())
    assert planned(tmp_path / "store").unfinished() == [1, 2]
