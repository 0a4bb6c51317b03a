"""Who may work where: one stage a workspace, one process a result, and what is left for the next."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from moe_distill.errors import ResourceError
from moe_distill.pipeline.resumable_work import (
    WORKSPACE_LOCK,
    WORKSPACE_OWNER,
    compute_once,
    hold_workspace,
    workspace_holder,
)
from moe_distill.utils.checksummed_json import write_checksummed_json
from moe_distill.utils.files import canonical_json

SOURCE = Path(__file__).resolve().parents[2] / "src"
KEY = "k" * 64
WORKER = """
import sys
from pathlib import Path
from moe_distill.pipeline.resumable_work import (
    WORKSPACE_LOCK,
    WORKSPACE_OWNER,
    compute_once,
    hold_workspace,
    workspace_holder,
)

def compute(folder):
    (folder / "half").touch()
    print("held", flush=True)
    sys.stdin.readline()
    (folder / "out").mkdir()
    (folder / "out/file").write_text(sys.argv[1])
    (folder / "curve").write_text("1")
    return {"speed": float(sys.argv[1])}

with hold_workspace("worker"):
    print(compute_once("stage", "k" * 64, compute, {"out": Path("data/out"), "curve": Path("curve.tsv")}))
"""
OUTPUTS = {"out": Path("data/out"), "curve": Path("curve.tsv")}


class Worker:
    """A process that computes the result of KEY in a workspace; it goes on when it is told to."""

    def __init__(self, root: Path, workspace: Path, value: str) -> None:
        workspace.mkdir(exist_ok=True)
        self.workspace = workspace
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, value],
            cwd=workspace,
            env=os.environ | {"DVC_ROOT": str(root), "PYTHONPATH": str(SOURCE)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> list[str]:
        """Tell it to go on; what it still says."""
        said, _ = self.process.communicate("go on\n", timeout=20)
        assert self.process.returncode == 0
        return said.splitlines()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers(root: Path) -> Iterator[Callable[[str, str], Worker]]:
    started: list[Worker] = []

    def start(name: str, value: str) -> Worker:
        started.append(Worker(root, root / name, value))
        return started[-1]

    try:
        yield start
    finally:
        for worker in started:
            worker.kill()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def computing(value: str, calls: list[str]) -> Callable[[Path], dict[str, float]]:
    def compute(folder: Path) -> dict[str, float]:
        calls.append(value)
        (folder / "out").mkdir()
        (folder / "out/file").write_text(value, encoding="utf-8")
        (folder / "curve").write_text("1", encoding="utf-8")
        return {"speed": float(value)}

    return compute


def record_in_dvc_lock(workspace: Path, figures: dict[str, float]) -> None:
    digest = hashlib.md5(canonical_json(figures).encode()).hexdigest()
    (workspace / "dvc.lock").write_text(f"outs:\n- path: metrics/stage.json\n  md5: {digest}\n", encoding="utf-8")


def test_outputs_are_published_by_link_and_figures_returned(root: Path) -> None:
    assert compute_once("stage", KEY, computing("7", []), OUTPUTS) == {"speed": 7.0}
    folder = root / ".work/stage" / KEY[:16]
    assert (root / "data/out/file").samefile(folder / "out/file")
    assert (root / "curve.tsv").samefile(folder / "curve")


@pytest.mark.usefixtures("root")
def test_r21_work_that_failed_is_continued() -> None:
    def fails(folder: Path) -> dict[str, float]:
        (folder / "half").touch()
        raise FileExistsError

    def continues(folder: Path) -> dict[str, float]:
        assert (folder / "half").exists()
        return computing("1", [])(folder)

    with pytest.raises(FileExistsError):
        compute_once("stage", KEY, fails, OUTPUTS)
    compute_once("stage", "another" * 10, computing("2", []), OUTPUTS)  # its own folder, empty
    compute_once("stage", KEY, continues, OUTPUTS)


def test_r21_finished_work_is_taken_until_dvc_has_recorded_it(root: Path) -> None:
    """A kill after the stage's end and before DVC's costs nothing; `dvc repro -f` computes again."""
    calls: list[str] = []
    figures = compute_once("stage", KEY, computing("1", calls), OUTPUTS)
    (root / "data/out/file").unlink()  # DVC removes outputs before it runs a stage again
    assert compute_once("stage", KEY, computing("2", calls), OUTPUTS) == figures
    assert (root / "data/out/file").read_text(encoding="utf-8") == "1"
    with hold_workspace("next"):
        assert (root / ".work/stage" / KEY[:16]).is_dir()  # dvc.lock knows nothing of it
    record_in_dvc_lock(root, figures)
    with hold_workspace("next"):
        assert not (root / ".work/stage" / KEY[:16]).exists()
        compute_once("stage", KEY, computing("3", calls), OUTPUTS)
    assert calls == ["1", "3"]


def test_a_process_that_was_killed_as_it_waited_keeps_nothing(root: Path) -> None:
    figures = compute_once("stage", KEY, computing("1", []), OUTPUTS)
    record_in_dvc_lock(root, figures)
    left = root / f".work/stage/{KEY[:16]}.waits.{os.getpid()}"  # its number is another process's by now
    left.touch()
    with hold_workspace("next"):
        assert not left.exists()
        assert not (root / ".work/stage" / KEY[:16]).exists()


def test_a_wait_that_is_broken_off_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ctrl_c(_line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_distill.pipeline.resumable_work.log", ctrl_c)
    lock = root / f".work/stage/{KEY[:16]}.lock"
    with FileLock(lock), pytest.raises(KeyboardInterrupt):
        compute_once("stage", KEY, computing("1", []), OUTPUTS)
    assert list(lock.parent.iterdir()) == [lock]


def test_finished_work_of_another_version_is_computed_again(root: Path) -> None:
    compute_once("stage", KEY, computing("1", []), OUTPUTS)
    record = root / ".work/stage" / KEY[:16] / "done.json"
    write_checksummed_json(record, {"workspace": ".", "metrics": {}, "outputs": {}, "another": 1})
    with hold_workspace("next"):
        assert compute_once("stage", KEY, computing("2", []), OUTPUTS) == {"speed": 2.0}


@pytest.mark.parametrize(
    ("name", "old", "new"), [("out/file", "1", "3"), ("curve", "1", "3"), ("done.json", '"speed": 1.0', '"speed": 3.0')]
)
def test_finished_work_that_was_changed_is_computed_again(
    root: Path, capsys: pytest.CaptureFixture[str], name: str, old: str, new: str
) -> None:
    calls: list[str] = []
    compute_once("stage", KEY, computing("1", calls), OUTPUTS)
    changed = root / ".work/stage" / KEY[:16] / name
    content = changed.read_text(encoding="utf-8")
    assert old in content
    changed.write_text(content.replace(old, new), encoding="utf-8")
    with hold_workspace("next"):  # a broken record stands in nobody's way
        assert compute_once("stage", KEY, computing("2", calls), OUTPUTS) == {"speed": 2.0}
    assert calls == ["1", "2"]
    assert "is not what its done.json says; it is computed again" in capsys.readouterr().out


def test_r21_a_second_stage_of_the_same_workspace_is_refused_within_two_seconds(root: Path) -> None:
    with workers(root) as start:
        first = start(".", "1")
        assert first.line() == "held"
        began = time.monotonic()
        with (
            pytest.raises(ResourceError, match=rf"^worker already runs .* process {first.process.pid}; .*: kill "),
            hold_workspace("check"),
        ):
            pass
        assert time.monotonic() - began < 2
        assert first.process.poll() is None
        first.end()
        with hold_workspace("check"):
            pass


@pytest.mark.usefixtures("root")
def test_r21_a_holder_that_has_not_said_who_it_is_is_waited_for_all_the_same() -> None:
    Path(".work").mkdir()
    with FileLock(WORKSPACE_LOCK):
        assert workspace_holder() == ("a stage", "?")
        with (
            pytest.raises(ResourceError, match=r"^a stage already runs .* process \?; wait for it$"),
            hold_workspace("a"),
        ):
            pass
        Path(WORKSPACE_OWNER).touch()
        assert workspace_holder() == ("a stage", "?")


@pytest.mark.usefixtures("root")
def test_r21_a_workspace_is_let_go_whatever_still_knows_of_it() -> None:
    try:
        with hold_workspace("first"):
            raise KeyError
    except KeyError as error:
        kept = error  # its traceback has the frame with the lock
        with hold_workspace("second"):
            assert workspace_holder() == ("second", str(os.getpid()))
        assert kept.__traceback__ is not None


def test_r21_other_workspaces_wait_and_take_the_result(root: Path) -> None:
    with workers(root) as start:
        first = start("a", "1")
        assert first.line() == "held"
        waiters = [start(name, "2") for name in "bc"]
        for waiter in waiters:
            expected = f"stage: process {first.process.pid} in {first.workspace} computes the same result; waiting"
            assert waiter.line() == expected
        first.end()
        for waiter in waiters:
            assert f"stage: was finished by a process in {first.workspace}; its result is taken" in waiter.end()
            assert (waiter.workspace / "data/out/file").samefile(first.workspace / "data/out/file")
            assert (waiter.workspace / "curve.tsv").read_text(encoding="utf-8") == "1"


def test_r21_a_result_that_dvc_has_recorded_stays_for_those_who_wait(root: Path) -> None:
    with workers(root) as start:
        first = start("a", "1")
        first.line()
        waiter = start("b", "2")
        waiter.line()
        waiter.process.send_signal(signal.SIGSTOP)  # it cannot take the result yet
        first.end()
        record_in_dvc_lock(first.workspace, {"speed": 1.0})
        with hold_workspace("next"):
            assert (root / ".work/stage" / KEY[:16]).is_dir()
        waiter.process.send_signal(signal.SIGCONT)
        assert "{'speed': 1.0}" in waiter.end()
        with hold_workspace("next"):
            assert not (root / ".work/stage" / KEY[:16]).exists()


def test_r21_a_waiter_continues_the_work_of_a_holder_that_dies(root: Path) -> None:
    with workers(root) as start:
        first = start("a", "1")
        first.line()
        waiter = start("b", "2")
        waiter.line()
        first.kill()
        assert waiter.line() == "held"
        assert (root / ".work/stage" / KEY[:16] / "half").exists()
        assert "{'speed': 2.0}" in waiter.end()


def test_work_of_a_workspace_that_is_gone_is_removed(root: Path) -> None:
    with workers(root) as start:
        first = start("a", "1")
        first.line()
        first.end()
        first.workspace.rename(root / "gone")
        with hold_workspace("next"):
            assert not (root / ".work/stage" / KEY[:16]).exists()


def test_r21_finished_work_is_taken_where_the_project_has_been_moved_to(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    workspace = root / "project"
    workspace.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    monkeypatch.chdir(workspace)
    compute_once("stage", KEY, computing("1", calls), OUTPUTS)
    moved = workspace.rename(root / "elsewhere")
    monkeypatch.setenv("DVC_ROOT", str(moved))
    monkeypatch.chdir(moved)
    with hold_workspace("next"):
        assert compute_once("stage", KEY, computing("2", calls), OUTPUTS) == {"speed": 1.0}
    assert calls == ["1"]
