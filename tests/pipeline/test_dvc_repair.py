"""What a killed `dvc exp run` leaves, on a small project with the real dvc and git, and that no edit is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_distill.commands import doctor
from moe_distill.errors import ResourceError
from moe_distill.pipeline.dvc_locks import EXPERIMENTS, RWLOCKS, live_program, stale_locks
from moe_distill.pipeline.dvc_repair import killed_experiment, repair_repository

from .conftest import (
    DVC,
    OF_HEAD,
    PARAMS,
    edit,
    environment,
    everything_is_in_place,
    git,
    head,
    kill_when,
    stage_runs,
    the_users_edits_stand,
)


@pytest.mark.usefixtures("project")
def test_r21_a_killed_experiment_is_found_and_put_right() -> None:
    pid = kill_when(stage_runs)
    assert "temperature: 3.0" in Path("params.yaml").read_text()
    said = {finding.subject: finding.text for finding in doctor._killed_dvc()}
    assert "HEAD was left detached from branch topic" in said["git"]
    assert "has changed params.yaml" in said["experiment"]
    assert "EXEC_MERGE" in said["references"]
    assert f"process {pid}, which is dead" in said["lock"]
    assert all(text.endswith("moe-distill recover") for text in said.values())
    list(repair_repository(Path()))
    the_users_edits_stand()
    everything_is_in_place()
    assert "temperature: 3.0" in git("stash", "show", "-p")  # what stood there is kept


@pytest.mark.usefixtures("project")
def test_r21_edits_made_after_the_kill_survive_too() -> None:
    kill_when(stage_runs)
    Path(".git/refs/exps/exec/EXEC_HEAD.lock").touch()  # of a process killed while it wrote
    edit("params.yaml", "temperature: 3.0", "temperature: 2.5")
    edit("nötes.md", "of the user", "of the user, again")
    Path("new.txt").write_text("new")
    list(repair_repository(Path()))
    assert "temperature: 2.5" in Path("params.yaml").read_text()
    assert Path("nötes.md").read_text() == "first\nof the user, again\n"
    assert Path("new.txt").exists()
    everything_is_in_place()


@pytest.mark.usefixtures("project")
def test_r21_without_edits_the_branch_s_parameters_come_back() -> None:
    git("checkout", "-q", ".")
    kill_when(stage_runs)
    list(repair_repository(Path()))
    assert Path("params.yaml").read_text() == PARAMS
    assert git("diff", "--name-only") == ""
    everything_is_in_place()


@pytest.mark.usefixtures("project")
def test_r21_a_user_who_has_attached_head_and_dropped_the_edits_keeps_that() -> None:
    kill_when(stage_runs)
    git("checkout", "-q", "-f", "topic")
    list(repair_repository(Path()))
    assert {name: Path(name).read_text() for name in OF_HEAD} == OF_HEAD
    everything_is_in_place()


@pytest.mark.usefixtures("project")
def test_r21_edits_of_a_binary_file_are_compared_too() -> None:
    Path("old.md").write_bytes(bytes(range(256)))
    kill_when(stage_runs)
    list(repair_repository(Path()))
    the_users_edits_stand()
    assert Path("old.md").read_bytes() == bytes(range(256))


@pytest.mark.usefixtures("project")
def test_what_the_user_has_staged_after_a_finished_experiment_is_left_alone() -> None:
    edit("dvc.yaml", "sleep 60", "echo made > model")
    subprocess.run([DVC, "exp", "run", "-q", "-S", "temperature=3.0"], env=environment(), check=True)
    git("add", "-A")
    assert killed_experiment() is None
    assert list(repair_repository(Path())) == []
    assert git("diff", "--cached", "--name-only")


@pytest.mark.usefixtures("project")
def test_a_finished_experiment_leaves_nothing_to_put_right() -> None:
    edit("dvc.yaml", "sleep 60", "echo made > model")
    subprocess.run([DVC, "exp", "run", "-q", "-S", "temperature=3.0"], env=environment(), check=True)
    assert git("for-each-ref", "refs/exps/exec")  # DVC leaves EXEC_HEAD
    assert killed_experiment() is None
    assert "temperature: 3.0" in Path("params.yaml").read_text()
    assert list(repair_repository(Path())) == []
    assert "temperature: 3.0" in Path("params.yaml").read_text()


@pytest.mark.usefixtures("project")
def test_the_users_own_detached_head_and_stash_are_left_alone() -> None:
    git("stash")
    git("commit", "-q", "--allow-empty", "-m", "second")
    git("checkout", "-q", "HEAD~1")
    before = head()
    assert killed_experiment() is None
    assert list(repair_repository(Path())) == []
    assert head() == before
    assert git("stash", "list")


@pytest.mark.usefixtures("project")
def test_a_head_that_its_user_detached_at_the_tip_of_the_branch_stays() -> None:
    git("checkout", "-q", "topic~0")
    assert killed_experiment() is None
    assert list(repair_repository(Path())) == []
    assert not head().startswith("ref:")


DEAD_HOLDER = {"read": {}, "write": {"workspace": {"pid": 2**22 + 1, "cmd": "dvc exp run"}}}  # no pid is that high


def leave_the_lock_of_a_dead_experiment() -> None:
    EXPERIMENTS.parent.mkdir(parents=True, exist_ok=True)
    EXPERIMENTS.write_text(json.dumps(DEAD_HOLDER))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("options", [("-m", "my own work"), ("-u", "-m", "and new files")])
def test_a_stash_with_words_of_its_user_is_left_alone_beside_a_dead_lock(options: tuple[str, ...]) -> None:
    leave_the_lock_of_a_dead_experiment()
    Path("new.txt").write_text("new")
    git("stash", "push", "-q", *options)
    assert len(list(repair_repository(Path()))) == 1
    assert git("stash", "list")
    assert Path("params.yaml").read_text() == PARAMS


@pytest.mark.usefixtures("project")
def test_a_head_that_its_user_detached_at_a_tag_stays_beside_a_dead_lock() -> None:
    git("tag", "v1")
    git("commit", "-q", "--allow-empty", "-m", "second")
    git("checkout", "-q", "v1")
    git("add", "params.yaml")
    leave_the_lock_of_a_dead_experiment()
    assert len(list(repair_repository(Path()))) == 1
    assert not head().startswith("ref:")
    assert git("diff", "--cached", "--name-only") == "params.yaml"


@pytest.mark.usefixtures("project")
def test_r21_a_new_file_with_a_value_of_the_experiment_gets_its_own_back() -> None:
    Path("mine two.yaml").write_text("lr: 1\n")
    git("add", "mine two.yaml")
    kill_when(stage_runs, "-S", "mine two.yaml:lr=5")
    assert "lr: 5" in Path("mine two.yaml").read_text()
    assert any("mine two.yaml" in finding.text for finding in doctor._killed_dvc())
    list(repair_repository(Path()))
    assert Path("mine two.yaml").read_text() == "lr: 1\n"
    the_users_edits_stand()


def test_git_in_another_checkout_of_the_repository_is_seen(project: Path) -> None:
    git("worktree", "add", "-q", "../other", "-b", "other")
    with subprocess.Popen(
        ["git", "cat-file", "--batch"], cwd=project.parent / "other", stdin=subprocess.PIPE
    ) as process:
        try:
            assert live_program(project) == ("git", process.pid)
        finally:
            process.kill()


def test_nothing_is_put_right_while_dvc_is_alive(project: Path) -> None:
    dvc = subprocess.Popen([DVC, "repro"], env=environment(), start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        while not stage_runs():
            assert dvc.poll() is None
            time.sleep(0.02)
        with pytest.raises(ResourceError, match=rf"dvc runs here as process {dvc.pid}; .*: kill {dvc.pid}"):
            list(repair_repository(Path()))
        assert [finding.text for finding in doctor._killed_dvc()] == [f"runs here as process {dvc.pid}"]
        assert live_program(project.parent) == ("dvc", dvc.pid)
        (project.parent / "elsewhere").mkdir()
        assert live_program(project.parent / "elsewhere") is None
    finally:
        os.killpg(dvc.pid, signal.SIGKILL)
        dvc.wait()


@pytest.mark.usefixtures("project")
def test_a_lock_of_a_living_process_is_not_stale() -> None:
    held = {"write": {"model": {"pid": os.getpid(), "cmd": "dvc"}}, "read": {}}
    Path(".dvc/tmp").mkdir(exist_ok=True)
    Path(".dvc/tmp/rwlock").write_text(json.dumps(held))
    assert stale_locks() == []
    assert list(repair_repository(Path())) == []
    assert Path(".dvc/tmp/rwlock").exists()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("path", RWLOCKS, ids=str)
@pytest.mark.parametrize("content", ['{"read": {"/x": [{"pid": 9', "[]", ""])
def test_a_lock_that_was_cut_off_is_named_and_removed(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(content)
    [found] = doctor._killed_dvc()
    assert found.text == f"{path} is half written; put right by: moe-distill recover"
    assert list(repair_repository(Path())) == [f"removed {path}, which is half written"]
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "is_seen"),
    [
        (["-m", "dvc", "repro"], True),
        (["dvc", "repro"], True),
        (["-m", "dvc", "daemon", "-q"], False),
        (["x", "dvc"], False),
    ],
    ids=lambda each: str(each),
)
def test_a_dvc_is_seen_however_it_was_started(project: Path, words: list[str], is_seen: bool) -> None:
    """But not the process that a dvc leaves behind to look for a newer one."""
    for folder in ("dvc", "x"):
        (project / folder).mkdir()
        (project / folder / "__main__.py").write_text("import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, *words], cwd=project) as process:
        try:
            assert live_program(project) == (("dvc", process.pid) if is_seen else None)
        finally:
            process.kill()


def test_a_folder_without_git_has_no_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert killed_experiment() is None
    assert list(repair_repository(tmp_path)) == []
