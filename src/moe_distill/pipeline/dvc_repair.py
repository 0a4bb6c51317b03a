"""Find and repair what a killed `dvc` leaves behind in git and in .dvc/tmp.

`dvc exp run` detaches HEAD, names its commits under refs/exps/exec, and writes the values of `-S` and all results
into the workspace. At its end it attaches HEAD again and resets the index. A killed one does neither.

How the user's own edits are told from DVC's: DVC first stashes them (stash U), then restores them, changes params.yaml
and stashes both together (EXEC_MERGE), which it unpacks to run. It drops U, but git keeps the commit for weeks. So what
differs between U and EXEC_MERGE was written by DVC, and all else in the workspace by the user or by a stage. Before DVC
unpacks EXEC_MERGE it resets the files: a file that the user had edited and that equals HEAD has not been unpacked yet.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from moe_distill.errors import ResourceError

EXEC_REFS = "refs/exps/exec"
MERGE = f"{EXEC_REFS}/EXEC_MERGE"
OF_FINISHED_RUNS = {f"{EXEC_REFS}/EXEC_HEAD", f"{EXEC_REFS}/EXEC_APPLY"}  # DVC leaves them in place
QUEUED = "refs/exps/stash"  # an experiment that is about to run in the workspace; `--queue` has another place
STASH = "refs/stash"
DVC_TMP = Path(".dvc/tmp")
STASH_SECONDS = 60  # between the stash of the user's edits and what DVC does next


@dataclass(frozen=True)
class KilledExperiment:
    """An unfinished `dvc exp run` in the workspace."""

    branch: str | None  # branch that HEAD was detached from; None: HEAD is attached
    edits: str  # commit with the user's files as they were when the experiment began
    overwritten: tuple[str, ...]  # files that hold values of the experiment
    refs: tuple[str, ...]  # git references of the experiment


def live_program(root: Path) -> tuple[str, int] | None:
    """Name and pid of a running `dvc` or `git` whose current folder is `root` or below; None: there is none."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words, folder = process.info["cmdline"] or [], process.info["cwd"]
        words = words[2:3] if words[1:2] == ["-m"] else words[:2]
        programs = [name for name in (Path(word).name for word in words) if name in ("dvc", "git")]
        if programs and folder and Path(folder).is_relative_to(root.resolve()):
            return programs[0], int(process.pid)
    return None


def stale_rwlock_pids() -> list[int]:
    """Processes in .dvc/tmp/rwlock that are dead. DVC removes such entries itself unless the pid is in use again."""
    path = DVC_TMP / "rwlock"
    if not path.is_file():
        return []
    if is_rwlock_broken():
        return []
    content = json.loads(path.read_text(encoding="utf-8") or "{}")
    readers = [reader for readers in content.get("read", {}).values() for reader in readers]
    holders = {holder["pid"] for holder in [*readers, *content.get("write", {}).values()]}
    return sorted(pid for pid in holders if not psutil.pid_exists(pid))


def is_rwlock_broken() -> bool:
    """Whether .dvc/tmp/rwlock was cut off: DVC writes it in place, and can be killed meanwhile."""
    path = DVC_TMP / "rwlock"
    try:
        return path.is_file() and not isinstance(json.loads(path.read_text(encoding="utf-8") or "{}"), dict)
    except ValueError:
        return True


def killed_experiment() -> KilledExperiment | None:
    """The traces of a killed `dvc exp run` in the git repository of the current folder; None where there are none."""
    if not Path(".git").exists():
        return None
    all_refs = _git("for-each-ref", "--format=%(refname)", EXEC_REFS, QUEUED).split()
    refs = tuple(each for each in all_refs if each not in OF_FINISHED_RUNS)
    is_attached = _git("rev-parse", "--abbrev-ref", "HEAD") != "HEAD"
    branch = None if is_attached else _branch_before_detachment()
    is_of_dvc = refs or (branch is not None and _git("rev-parse", branch) == _git("rev-parse", "HEAD"))
    if not is_of_dvc or (branch is None and not is_attached):
        return None
    if MERGE in refs and not is_attached:
        edits = _stash_before(MERGE) or f"{EXEC_REFS}/EXEC_HEAD"
        written = _git("diff", "--name-only", "--diff-filter=M", edits, MERGE).splitlines()
        touched_since = _differing(MERGE)
        overwritten = {each for each in written if each not in touched_since}
        edited = _git("diff", "--name-only", "--diff-filter=M", "HEAD", edits).splitlines()
        overwritten |= set(edited) - set(_differing("HEAD"))
        overwritten |= {each for each in [*written, *edited] if _is_half_written(each, MERGE)}
        return KilledExperiment(branch, edits, tuple(sorted(overwritten)), refs)
    is_queued = QUEUED in refs and _git("rev-parse", QUEUED) != _git("rev-parse", "HEAD")  # DVC sets it to HEAD first
    if MERGE not in refs and _is_stash_of_dvc(is_queued):
        edits = _git("rev-parse", STASH)
        return KilledExperiment(branch, edits, _differing(edits), refs)
    return KilledExperiment(branch, "HEAD", (), refs)


def repair_repository(root: Path) -> Iterator[str]:
    """Repair what a killed `dvc` left in git and in .dvc/tmp; yields a line for each repair.

    Raises:
        ResourceError: a `dvc` or `git` is running; names its pid.
    """
    alive = live_program(root)
    if alive is not None:
        name, pid = alive
        raise ResourceError(f"{name} runs here as process {pid}", fix=f"wait for it, or stop it with: kill {pid}")
    found = killed_experiment()
    if found is not None:
        yield from _repair_git(found)
    if is_rwlock_broken():
        (DVC_TMP / "rwlock").unlink()
        yield "removed .dvc/tmp/rwlock, which a killed dvc has left half written"
    stale = stale_rwlock_pids()
    if stale:
        (DVC_TMP / "rwlock").unlink()
        yield f"removed .dvc/tmp/rwlock of process {', '.join(map(str, stale))}, which is dead"


def _repair_git(found: KilledExperiment) -> Iterator[str]:
    for lock in [*Path(".git").glob("*.lock"), *Path(".git/refs").rglob("*.lock")]:
        lock.unlink()
    if _git("for-each-ref", "--points-at", found.edits, STASH):  # what DVC would have popped
        _git("stash", "drop")
    if found.branch is not None:
        _git("symbolic-ref", "HEAD", f"refs/heads/{found.branch}")
        _build_index()
        yield f"HEAD is on branch {found.branch} again, and nothing is staged"
    if found.overwritten:
        _build_index()
        if _git("diff", "--name-only"):
            _git("stash", "store", "-m", "before moe-distill recover", _git("stash", "create"))
        _git("checkout", found.edits, "--", *found.overwritten)
        _build_index()
        yield f"{', '.join(found.overwritten)} as before the experiment; what stood there: git stash show -p"
    for ref in found.refs:
        runs = [_git("rev-parse", ref), "workspace"] if ref == MERGE else []
        for run in runs:
            shutil.rmtree(DVC_TMP / "exps/run" / run, ignore_errors=True)
        _git("update-ref", "-d", ref)
    if found.refs:
        yield f"removed {', '.join(found.refs)}"


def _build_index() -> None:
    """Write git's index anew from HEAD: the old one, of a killed process, may call changed files unchanged."""
    Path(_git("rev-parse", "--git-path", "index")).unlink(missing_ok=True)
    _git("reset", "--quiet")


def _differing(commit: str) -> tuple[str, ...]:
    """Files of a commit whose content in the workspace differs, found without git's index."""
    with TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        _git("read-tree", commit, **index)
        return tuple(_git("diff", "--name-only", **index).splitlines())


def _is_half_written(name: str, commit: str) -> bool:
    """Whether a file holds only the beginning of its content in a commit: git was killed while it wrote it."""
    if not Path(name).is_file():
        return False
    whole, found = _git("show", f"{commit}:{name}"), Path(name).read_text(encoding="utf-8", errors="replace")
    return len(found.strip()) < len(whole) and whole.startswith(found.strip())


def _branch_before_detachment() -> str | None:
    """The last branch that HEAD was on, by HEAD's log; None: the log names no branch."""
    branches = set(_git("for-each-ref", "--format=%(refname:short)", "refs/heads").split())
    for message in _git("reflog", "--format=%gs", "HEAD").splitlines():
        words = message.removeprefix("checkout: moving from ").split(" to ")
        if message.startswith("checkout: moving from ") and words[0] in branches:
            return words[0]
    return None


def _stash_before(merge: str) -> str | None:
    """The dropped stash of the user's edits: on the same parent as `merge`, at most a minute older; or None."""
    parent, end = _git("log", "-1", "--format=%P %ct", merge).split()[0::2]
    lines = _git("fsck", "--unreachable", "--no-reflogs", "--no-progress").splitlines()
    commits = [line.split()[2] for line in lines if line.startswith("unreachable commit ")]
    stashes = []
    for commit in commits:
        parents, made, subject = _git("log", "-1", "--format=%P|%ct|%s", commit).split("|", 2)
        is_recent = 0 <= int(end) - int(made) <= STASH_SECONDS
        if subject.startswith("WIP on ") and parents.split()[0] == parent and is_recent:
            stashes.append((int(made), commit))
    return max(stashes)[1] if stashes else None


def _is_stash_of_dvc(is_queued: bool) -> bool:
    """Whether the newest stash was made where HEAD is, just before DVC stashed an experiment or detached HEAD."""
    if not _git("for-each-ref", STASH):
        return False
    parent, made = _git("log", "-1", "--format=%P %ct", STASH).split()[0::2]
    detached = _git("reflog", "-1", "--format=%gd", "--date=unix", "HEAD").removeprefix("HEAD@{").removesuffix("}")
    end = _git("log", "-1", "--format=%ct", QUEUED) if is_queued else detached
    return parent == _git("rev-parse", "HEAD") and 0 <= int(end) - int(made) <= STASH_SECONDS


def _git(*arguments: str, **environment: str) -> str:
    command = ["git", "-c", "core.quotePath=false", *arguments]  # names as they are, also with other letters than ASCII
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise ResourceError(f"git {' '.join(arguments)} fails", done.stderr.strip().replace("\n", " "))
    return done.stdout.strip()
