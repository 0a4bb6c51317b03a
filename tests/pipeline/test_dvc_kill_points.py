"""A `dvc exp run` killed at chosen points, and at each change that it makes to a file: no edit of the user is lost."""

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from moe_distill.commands import doctor
from moe_distill.pipeline.dvc_repair import EXEC_REFS, MERGE, killed_experiment, repair_repository

from .conftest import (
    DVC,
    OF_HEAD,
    PARAMS,
    USERS,
    edit,
    environment,
    everything_is_in_place,
    git,
    head,
    kill_when,
    stage_runs,
    the_users_edits_stand,
    write_users_edits,
)

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
    assert Path("new.md").read_text() == ("newer" if call == 4 else "new")
    assert not Path("old.md").exists()


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


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "files",
    [
        USERS,
        OF_HEAD,
        USERS | {"nötes.md": ""},
        OF_HEAD | {"params.yaml": "temperature: 1.0 # of"},
        OF_HEAD | {"nötes.md": None},
    ],
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
@pytest.mark.parametrize(
    ("step", "call", "temperature"),
    [("remove_ref", 1, "1.0"), ("remove_ref", 2, "1.0"), ("remove_ref", 3, "3.0"), ("set_ref", 7, "3.0")],
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
    assert Path("dvc.lock").exists(), "new in the experiment's commit, and no file that the user had removed"
    assert git("for-each-ref", "refs/exps/*/*/*")  # the experiment itself
    assert not Path(".git", EXEC_REFS, "EXEC_BRANCH").exists()  # a link to it, with which the next run would fail


@pytest.mark.usefixtures("project")
def test_killed_before_anything_is_stashed_leaves_the_lock_of_the_index() -> None:
    killed_at("scmrepo.git.stash:Stash:push")
    Path(".git/index.lock").touch()
    assert killed_experiment() is None
    [of_dvc, of_git] = [finding.text for finding in doctor._killed_dvc()]
    assert of_dvc.startswith(".dvc/tmp/exps/rwlock names process ")
    assert of_git == ".git/index.lock was left by a process that was killed; put right by: moe-distill recover"
    assert [line.split()[1] for line in repair_repository(Path())] == [".dvc/tmp/exps/rwlock,", ".git/index.lock,"]
    the_users_edits_stand()
    everything_is_in_place()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("step", ["scmrepo.git:Git:checkout", "dvc.repo.experiments.stash:ExpStash:apply"])
def test_r21_a_file_that_the_user_removed_or_added_is_so_again(step: str) -> None:
    """The edits are in git's stash alone."""
    Path("old.md").unlink()
    Path("new.md").write_text("new")
    git("add", "new.md")
    killed_at(step)
    assert Path("old.md").exists()
    assert not Path("new.md").exists()
    list(repair_repository(Path()))
    assert not Path("old.md").exists()
    assert Path("new.md").read_text() == "new"
    the_users_edits_stand()
    everything_is_in_place()
    assert git("stash", "list") == ""


CHANGES = "openat,write,rename,link,unlink,rmdir,mkdir,ftruncate"  # the calls with which dvc and git change files
RUN = [DVC, "exp", "run", "-n", "fixed", "-S", "temperature=3.0"]
PARTS = 10


@pytest.fixture(scope="module")
def quick(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, committed with a stage that ends at once."""
    folder = tmp_path_factory.mktemp("quick") / "project"
    shutil.copytree(template, folder, symlinks=True)
    path = folder / "dvc.yaml"
    path.write_text(path.read_text().replace("sleep 60", "echo made > model"))
    for command in (["git", "add", "-A"], ["git", "commit", "-q", "-m", "quick"]):
        subprocess.run(command, cwd=folder, check=True, env=environment())
    return folder


def fresh(quick: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(quick, folder, symlinks=True)
    write_users_edits(folder)
    return folder


def under_strace(folder: Path, *options: str) -> int:
    """Run an experiment; the exit status."""
    return subprocess.run(["strace", *options, *RUN], cwd=folder, env=environment(), capture_output=True).returncode


@pytest.fixture(scope="module")
def changes(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """Each call of a whole run that changes a file of the project: its name, and the how manieth of that name it is."""
    if shutil.which("strace") is None:
        pytest.skip("no strace here")
    folder = fresh(quick, tmp_path_factory.mktemp("traced") / "project")
    log = folder.parent / "log"
    if under_strace(folder, "-y", "-o", str(log), "-e", f"trace={CHANGES}"):
        pytest.skip("strace can trace no process here")
    counts, found = Counter[str](), list[tuple[str, int]]()
    for line in log.read_text(errors="replace").splitlines():
        name = line.partition("(")[0]
        counts[name] += 1
        is_change = str(folder) in line and (name != "openat" or re.search("O_WRONLY|O_RDWR|O_CREAT", line))
        if is_change and not re.search(r"\.git/objects|\.dvc/cache|\.dvc/tmp/(?!exps/rwlock\b)", line):
            found.append((name, counts[name]))
    assert len(found) > 200
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_r21_killed_at_each_change_of_a_file(
    part: int, quick: Path, changes: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = 0
    for name, call in changes[part::PARTS]:
        folder = fresh(quick, tmp_path / "project")
        monkeypatch.chdir(folder)
        killed += under_strace(folder, "-o", "/dev/null", "-e", f"inject={name}:signal=KILL:when={call}") != 0
        has_commit = bool(git("for-each-ref", "refs/exps/*/*/fixed"))
        list(repair_repository(Path()))
        assert bool(git("for-each-ref", "refs/exps/*/*/fixed")) == has_commit
        if has_commit and "temperature: 3.0" in Path("params.yaml").read_text():  # as a finished run leaves it
            edit("params.yaml", "temperature: 3.0", "temperature: 1.0")
            git("reset", "-q")  # nothing tells what is staged then from what its user has staged
        the_users_edits_stand()
        everything_is_in_place()
    assert killed > 0.9 * len(changes) / PARTS
