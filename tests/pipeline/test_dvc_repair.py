"""What a killed `dvc exp run` leaves, on a small project with the real dvc and git, and that no edit is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_distill.commands import doctor
from moe_distill.errors import ResourceError
from moe_distill.pipeline.dvc_locks import RWLOCKS, live_program, stale_locks
from moe_distill.pipeline.dvc_repair import EXEC_REFS, MERGE, QUEUED, killed_experiment, repair_repository

PARAMS = "temperature: 1.0 # of the softmax\nkd_weight: 0.9\n"
STAGES = """
stages:
  train:
    cmd: echo begun > begun; sleep 60
    params: [temperature]
    outs: [model]
"""
DVC = str(Path(sys.executable).parent / "dvc")


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    files = {
        "params.yaml": PARAMS,
        "dvc.yaml": STAGES,
        "nötes.md": "first\n",
        "old.md": "old\n",
        ".gitignore": "/begun\n/.work\n",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    commands = [
        ["git", "init", "-q", "-b", "topic"],
        ["git", "config", "user.name", "test"],
        ["git", "config", "user.email", "test@example.com"],
        [DVC, "init", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-q", "-m", "start"],
    ]
    for command in commands:
        subprocess.run(command, cwd=folder, check=True, env=environment())
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Edited by its user: one file and one parameter, not committed."""
    shutil.copytree(template, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    edit("nötes.md", "first\n", "first\nof the user\n")
    edit("params.yaml", "kd_weight: 0.9", "kd_weight: 0.8 # of the user")
    return tmp_path / "project"


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_"))}


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def kill_when(is_time: Callable[[], bool], *arguments: str) -> int:
    """Run `dvc exp run`, and kill it and its stage as soon as `is_time`; the pid of the dead dvc."""
    command = [DVC, "exp", "run", "-S", "temperature=3.0", *arguments]
    dvc = subprocess.Popen(command, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            os.killpg(dvc.pid, signal.SIGSTOP)  # so that it is still true when the kill arrives
            if is_time():
                return dvc.pid
            os.killpg(dvc.pid, signal.SIGCONT)
            assert dvc.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.killpg(dvc.pid, signal.SIGKILL)
        dvc.wait()


KILLED_AT = """
import os, signal, sys
from importlib import import_module
module, owner, name = sys.argv[1].split(":")
owner, calls = getattr(import_module(module), owner), [int(sys.argv[2])]
function = getattr(owner, name)
def killed(*arguments, **keys):
    calls[0] -= 1
    return function(*arguments, **keys) if calls[0] else os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, killed)
from dvc.cli import main
main(["exp", "run", "-S", "temperature=3.0"])
"""


def killed_at(step: str, call: int = 1) -> None:
    """Run `dvc exp run`, killed as it enters a function of DVC's, named module:class:function, for the nth time."""
    command = [sys.executable, "-c", KILLED_AT, step, str(call)]
    done = subprocess.run(command, env=environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def stage_runs() -> bool:
    return Path("begun").is_file()


def head() -> str:
    return Path(".git/HEAD").read_text().strip()


def everything_is_in_place() -> None:
    assert head() == "ref: refs/heads/topic"
    assert git("diff", "--cached", "--name-only") == ""
    assert set(git("for-each-ref", "--format=%(refname)", EXEC_REFS).split()) <= {f"{EXEC_REFS}/EXEC_HEAD"}
    assert git("for-each-ref", QUEUED) == ""
    assert [path.name for path in Path(".git").rglob("*.lock")] == []
    assert killed_experiment() is None
    assert list(doctor._killed_dvc()) == []
    assert list(repair_repository(Path())) == []


def the_users_edits_stand() -> None:
    assert Path("nötes.md").read_text() == "first\nof the user\n"
    assert Path("params.yaml").read_text() == PARAMS.replace("0.9", "0.8 # of the user")


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
@pytest.mark.parametrize(
    "step",
    ["dvc.repo.experiments.stash:ExpStash:apply", "dvc.repo.experiments.queue.base:BaseStashQueue:_update_params"],
)
def test_r21_killed_while_dvc_still_prepares_the_experiment(step: str) -> None:
    """HEAD is detached, the edits are in git's stash, and not yet in the files or there again."""
    killed_at(step)
    assert not head().startswith("ref:")
    assert git("stash", "list")
    list(repair_repository(Path()))
    assert "before moe-distill recover" in git("stash", "list", "-1") or not git("stash", "list")
    the_users_edits_stand()
    everything_is_in_place()


@pytest.mark.usefixtures("project")
def test_r21_killed_while_dvc_writes_its_stash() -> None:
    """It names HEAD as its stash before there is one."""
    killed_at("dvc.repo.experiments.queue.base:BaseStashQueue:_pack_args")
    git("update-ref", "refs/exps/stash", "HEAD")
    assert "temperature: 3.0" in Path("params.yaml").read_text()
    list(repair_repository(Path()))
    the_users_edits_stand()
    everything_is_in_place()


@pytest.mark.usefixtures("project")
def test_r21_killed_before_the_experiment_is_unpacked() -> None:
    """The files have been reset, and the edits are in no stash any more."""
    killed_at("scmrepo.git.stash:Stash:apply", call=3)
    assert git("for-each-ref", "refs/exps/exec/EXEC_MERGE")
    assert Path("params.yaml").read_text() == PARAMS
    assert git("stash", "list") == ""
    list(repair_repository(Path()))
    the_users_edits_stand()
    everything_is_in_place()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("call", [3, 4])
def test_r21_files_that_the_user_removed_or_added_stop_nothing(call: int) -> None:
    """The fourth call does not come: the experiment is unpacked, and killed in its stage."""
    Path("old.md").unlink()
    Path("new.md").write_text("new")
    git("add", "new.md")
    if call == 3:
        killed_at("scmrepo.git.stash:Stash:apply", call=call)
    else:
        kill_when(stage_runs)
        Path("new.md").write_text("newer")
    list(repair_repository(Path()))
    the_users_edits_stand()
    everything_is_in_place()
    if call == 4:
        assert Path("new.md").read_text() == "newer"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("half", ["", "temperature: 3.0 # of t"])
def test_r21_killed_while_a_file_of_the_experiment_is_written(half: str) -> None:
    killed_at("scmrepo.git.stash:Stash:apply", call=3)
    Path("params.yaml").write_text(half)
    Path("nötes.md").write_text("first\nof the us")
    list(repair_repository(Path()))
    the_users_edits_stand()
    everything_is_in_place()


@pytest.mark.usefixtures("project")
def test_r21_killed_after_head_is_back_and_before_the_edits_are() -> None:
    killed_at("scmrepo.git.stash:Stash:pop")
    assert head().startswith("ref:")
    assert git("for-each-ref", "refs/exps/stash")
    assert git("stash", "list")
    list(repair_repository(Path()))
    the_users_edits_stand()
    everything_is_in_place()


USERS = {"nötes.md": "first\nof the user\n", "params.yaml": PARAMS.replace("0.9", "0.8 # of the user")}
OF_HEAD = {"nötes.md": "first\n", "params.yaml": PARAMS}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "files",
    [USERS, OF_HEAD, USERS | {"nötes.md": ""}, OF_HEAD | {"params.yaml": "temperature: 1.0 # of"}, OF_HEAD | {"nötes.md": None}],
    ids=["not yet", "reset", "first file", "second file", "file removed"],
)
@pytest.mark.parametrize("call", [1, 2], ids=["stashed", "to be unpacked"])
def test_r21_killed_while_the_files_are_reset(call: int, files: dict[str, str | None]) -> None:
    """HEAD is still attached, once when the edits have been stashed, once when both are to be unpacked."""
    killed_at("scmrepo.git:Git:checkout", call)
    assert head() == "ref: refs/heads/topic"
    assert git("stash", "list") if call == 1 else git("for-each-ref", MERGE)
    for name, content in files.items():
        if content is None:
            Path(name).unlink()
        else:
            Path(name).write_text(content)
    Path(".git/index.lock").touch()
    Path(".git/logs/refs/stash.lock").touch()
    list(repair_repository(Path()))
    the_users_edits_stand()
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
@pytest.mark.parametrize(
    ("step", "call", "temperature"),
    [("remove_ref", 2, "1.0"), ("remove_ref", 3, "3.0"), ("set_ref", 7, "3.0")],
)
def test_r21_killed_when_the_experiment_has_its_commit(step: str, call: int, temperature: str) -> None:
    """Its values stay in the files, as those of a finished run do, once EXEC_MERGE is gone."""
    edit("dvc.yaml", "sleep 60", "echo made > model")
    git("commit", "-q", "-m", "quick", "dvc.yaml")
    killed_at(f"scmrepo.git:Git:{step}", call)
    assert any("HEAD was left detached" in finding.text for finding in doctor._killed_dvc())
    list(repair_repository(Path()))
    edit("params.yaml", f"temperature: {temperature}", "temperature: 1.0")
    the_users_edits_stand()
    everything_is_in_place()
    assert git("for-each-ref", "refs/exps")  # the experiment itself


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


@pytest.mark.slow
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("seconds", [0.3 + 0.05 * number for number in range(30)])
def test_r21_killed_at_any_time(seconds: float) -> None:
    began = time.monotonic()
    kill_when(lambda: time.monotonic() - began > seconds)
    list(repair_repository(Path()))
    the_users_edits_stand()
    everything_is_in_place()


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
        assert live_program(project / ".dvc") is None
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


def test_dvc_is_seen_as_a_module_of_python_too(project: Path) -> None:
    (project / "dvc").mkdir()
    (project / "dvc/__main__.py").write_text("import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=project) as process:
        try:
            assert live_program(project) == ("dvc", process.pid)
        finally:
            process.kill()


def test_a_folder_without_git_has_no_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert killed_experiment() is None
    assert list(repair_repository(tmp_path)) == []
