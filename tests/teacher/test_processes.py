"""A capture by several processes: the bytes of one, also after any of them was killed and another number went on."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from moe_distill.shards.shard_file import Rows
from moe_distill.shards.window_store import TEACHER_WINDOWS, WindowStore
from moe_distill.teacher import capture as capture_module
from moe_distill.teacher.forward import States, forward
from moe_distill.utils.files import folder_fingerprint
from moe_distill.utils.processes import ALONE, Processes
from tests.forked_ranks import run_ranks
from tests.teacher.conftest import make_teacher
from tests.teacher.test_capture import run

FILES = {"batch_windows": 1, "shard_positions": 100}  # six files of two windows, twelve batches


def capture_late(processes: Processes, windows: Path, output: Path) -> None:
    """The last process begins late, and is slow."""
    late, real = processes.rank == processes.count - 1, forward
    time.sleep(late * 0.5)

    def slow(*arguments: Any) -> tuple[States, bool]:
        time.sleep(late * 0.05)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(f"{__name__}.forward", slow)
        capture_share(processes, windows, output)


def capture_share(
    processes: Processes, windows: Path, output: Path, killed: tuple[int, str, int] | None = None
) -> None:
    """Capture; the metrics that do not depend on time, and the windows that passed, stand beside the output.

    Args:
        killed: rank, place and how often it comes there before it is killed; None: no process is.
    """
    passed = 0

    def counted(*arguments: Any) -> tuple[States, bool]:
        nonlocal passed
        die("forward", passed)
        passed += 1
        return forward(*arguments)

    def die(place: str, times: int) -> None:
        if killed == (processes.rank, place, times):
            os.kill(os.getpid(), signal.SIGKILL)

    real = Rows.write

    def written(rows: Rows, folder: Path, number: int) -> object:
        entry = real(rows, folder, number)
        die("written", number)  # and has no progress file yet
        return entry

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(capture_module, "forward", counted)
        patched.setattr(Rows, "write", written)
        store = WindowStore(windows, TEACHER_WINDOWS)
        captured = run(make_teacher("qwen3_moe"), store, output, processes=processes, **FILES)
    said = f"{captured.index.fingerprint} {captured.text_token_probability!r} {captured.nonfinite_batches}"
    name = f"{output.name}-{processes.rank}-of-{processes.count}"
    output.with_name(name).write_text(f"{said}\n{passed}")


def told(output: Path, count: int) -> tuple[set[str], list[int]]:
    """What the ranks say of the whole, and how many windows each computed."""
    texts = [output.with_name(f"{output.name}-{rank}-of-{count}").read_text().splitlines() for rank in range(count)]
    return {text[0] for text in texts}, [int(text[1]) for text in texts]


@pytest.fixture
def folder(windows: WindowStore, tmp_path: Path) -> Path:
    """With a capture by one process."""
    capture_share(ALONE, windows.reader.folder, tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) == 6
    return tmp_path


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_write_the_bytes_of_one(folder: Path, count: int) -> None:
    assert run_ranks(count, capture_share, folder / "windows", folder / "shards") == [0] * count
    assert folder_fingerprint(folder / "shards") == folder_fingerprint(folder / "whole")
    assert told(folder / "shards", count) == (told(folder / "whole", 1)[0], [12 // count] * count)


def test_a_process_that_comes_late_has_its_share_all_the_same(folder: Path) -> None:
    assert run_ranks(2, capture_late, folder / "windows", folder / "shards") == [0, 0]
    assert folder_fingerprint(folder / "shards") == folder_fingerprint(folder / "whole")
    assert told(folder / "shards", 2)[1] == [6, 6]


def test_more_processes_than_files_leave_some_without_work(folder: Path) -> None:
    assert run_ranks(7, capture_share, folder / "windows", folder / "shards") == [0] * 7
    assert folder_fingerprint(folder / "shards") == folder_fingerprint(folder / "whole")
    assert sorted(told(folder / "shards", 7)[1]) == [0, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("killed", "then"),
    [((1, "forward", 3), 2), ((0, "forward", 5), 3), ((2, "forward", 0), 1), ((1, "written", 3), 3)],
    ids=["later, same number", "first, one more", "at once, alone", "between shard and progress file"],
)
def test_r21_after_a_kill_any_number_of_processes_goes_on_to_the_same_bytes(
    folder: Path, killed: tuple[int, str, int], then: int
) -> None:
    count = max(2, killed[0] + 1)
    codes = run_ranks(count, capture_share, folder / "windows", folder / "shards", killed)
    assert codes[killed[0]] == -signal.SIGKILL
    assert not (folder / "shards/index.json").exists()
    kept = len(list((folder / "shards-progress").glob("*.json")))
    assert run_ranks(then, capture_share, folder / "windows", folder / "shards") == [0] * then
    assert folder_fingerprint(folder / "shards") == folder_fingerprint(folder / "whole")
    said, passed = told(folder / "shards", then)
    assert said == told(folder / "whole", 1)[0]
    assert sum(passed) == 12 - 2 * kept  # what stands is not computed again
    assert max(passed) - min(passed) <= 2  # and what is missing is divided anew
