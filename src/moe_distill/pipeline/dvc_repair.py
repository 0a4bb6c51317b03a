"""Find and repair what a killed `dvc` leaves behind in git and in .dvc/tmp.

`dvc exp run` detaches HEAD, names its commits under refs/exps/exec, and writes the values of `-S` and all results
into the workspace. At its end it attaches HEAD again and resets the index. A killed one does neither.

How the user's own edits are told from DVC's: DVC first stashes them (stash U), then restores them, changes params.yaml
and stashes both together (EXEC_MERGE), which it unpacks to run. It drops U, but git keeps the commit for weeks. So what
differs between U and EXEC_MERGE was written by DVC, and all else in the workspace by the user or by a stage. Before DVC
unpacks EXEC_MERGE it resets the files: a file that the user had edited and that equals HEAD has not been unpacked yet.

How a killed run is told where it has left no references: its lock names a dead process (dvc_locks.py), and HEAD's log
tells what DVC did last.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from moe_distill.errors import ResourceError
from moe_distill.pipeline.dvc_locks import RWLOCKS, experiment_began, live_program, stale_locks

EXEC_REFS = "refs/exps/exec"
MERGE = f"{EXEC_REFS}/EXEC_MERGE"
OF_FINISHED_RUNS = {f"{EXEC_REFS}/EXEC_HEAD", f"{EXEC_REFS}/EXEC_APPLY"}  # DVC leaves them in place
QUEUED = "refs/exps/stash"  # an experiment that is about to run in the workspace; `--queue` has another place
STASH = "refs/stash"
RUNS = Path(".dvc/tmp/exps/run")
STASH_SECONDS = 60  # between the stash of the user's edits and what DVC does before and after it
COMMITTED, ATTACHED = "commit: dvc: commit experiment", "dvc: Restore HEAD to"  # in HEAD's log


@dataclass(frozen=True)
class KilledExperiment:
    """An unfinished `dvc exp run` in the workspace."""

    branch: str | None  # branch that HEAD was detached from; None: HEAD is attached
    edits: str  # commit with the user's files as they were when the experiment began
    overwritten: tuple[str, ...]  # files that hold values of the experiment, or none of the user's edits
    removed: tuple[str, ...]  # files that the user had removed, and that DVC has put back
    refs: tuple[str, ...]  # git references of the experiment


def killed_experiment() -> KilledExperiment | None:
    """The traces of a killed `dvc exp run` in the git repository of the current folder; None where there are none."""
    if not Path(".git").exists():
        return None
    all_refs = _git("for-each-ref", "--format=%(refname)", EXEC_REFS, QUEUED).split()
    refs = tuple(each for each in all_refs if each not in OF_FINISHED_RUNS)
    is_attached = _git("rev-parse", "--abbrev-ref", "HEAD") != "HEAD"
    branch = None if is_attached else _branch_before_detachment()
    if branch is None and not is_attached:
        return None
    began = experiment_began()
    if not (refs or (began is not None if branch is None else _has_dvc_detached(branch))):
        return None
    edits, overwritten = "HEAD", tuple[str, ...]()
    start = f"refs/heads/{branch}" if branch else "HEAD"  # where the experiment began; HEAD may be at its own commit
    if MERGE in refs and not (is_attached and _has_head_moved_since_merge()):
        edits = _stash_before(MERGE) or f"{EXEC_REFS}/EXEC_HEAD"
        overwritten = _overwritten(start, edits)
    elif MERGE not in refs and _is_stash_of_dvc(refs, began if is_attached else None):
        edits = _git("rev-parse", STASH)
        overwritten = _differing(edits)
    if branch is None and edits == "HEAD" and not refs:
        return None
    removed = set(_names("--diff-filter=D", start, edits)) - set(_differing(start)) if edits != "HEAD" else set()
    return KilledExperiment(branch, edits, overwritten, tuple(sorted(removed)), refs)


def repair_repository(root: Path) -> Iterator[str]:
    """Repair what a killed `dvc` left in git and in .dvc/tmp; yields a line for each repair.

    Raises:
        ResourceError: a `dvc` or `git` is running; names its pid.
    """
    alive = live_program(root)
    if alive is not None:
        name, pid = alive
        raise ResourceError(f"{name} runs here as process {pid}", fix=f"wait for it, or stop it with: kill {pid}")
    found, locks = killed_experiment(), stale_locks()
    for lock in locks:  # git's stand in the way of the repair; those of dvc tell what to repair, so they go at the end
        if lock.path not in RWLOCKS:
            lock.path.unlink(missing_ok=True)
    if found is not None:
        yield from _repair_git(found)
    for lock in locks:
        lock.path.unlink(missing_ok=True)
        yield f"removed {lock.path}, which {lock.fault}"


def _repair_git(found: KilledExperiment) -> Iterator[str]:
    if found.branch is not None:
        _git("symbolic-ref", "HEAD", f"refs/heads/{found.branch}")
        _build_index()
        yield f"HEAD is on branch {found.branch} again, and nothing is staged"
    if found.overwritten or found.removed:
        _build_index()
        before = _git("stash", "create")
        if before:
            _git("stash", "store", "-m", "before moe-distill recover", before)
        if found.overwritten:
            _git("checkout", found.edits, "--", *found.overwritten)
        if found.removed:
            _git("rm", "--quiet", "--force", "--", *found.removed)
        _build_index()
        kept = "; what stood there: git stash show -p" if before else ""
        yield f"{', '.join([*found.overwritten, *found.removed])} as before the experiment{kept}"
    stashes = _git("stash", "list", "--format=%H").splitlines()
    if found.edits in stashes:  # DVC would have popped it
        _git("stash", "drop", f"stash@{{{stashes.index(found.edits)}}}")
        yield "dropped the stash that dvc had made of your edits, which stand in the files"
    for ref in found.refs:
        runs = [_git("rev-parse", ref), "workspace"] if ref == MERGE else []
        for run in runs:
            shutil.rmtree(RUNS / run, ignore_errors=True)
        _git("update-ref", "--no-deref", "-d", ref)  # EXEC_BRANCH is a link to the experiment, which stays
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
        return tuple(_names(**index))


def _overwritten(start: str, edits: str) -> tuple[str, ...]:
    """Files that hold values of EXEC_MERGE, or none of the user's edits, or were cut off while git wrote them."""
    written = _names("--diff-filter=M", edits, MERGE)
    found = set(written) - set(_differing(MERGE))
    edited = _names("--diff-filter=M", start, edits)
    found |= set(edited) - set(_differing(start))
    found |= {each for each in _names("--diff-filter=A", start, edits) if not Path(each).exists()}
    return tuple(sorted(found | {each for each in [*written, *edited] if _is_half_written(each, start)}))


def _is_half_written(name: str, start: str) -> bool:
    """Whether a file holds only the beginning of its content in EXEC_MERGE or `start`: git was killed as it wrote it.

    One that is not there is one of those: it was there when the experiment began, and git removes what it rewrites.
    """
    if Path(name).is_dir():  # a submodule
        return False
    found = Path(name).read_bytes() if Path(name).is_file() else b""
    wholes = [_content(commit, name) for commit in (MERGE, start)]
    return any(len(found) < len(whole) and whole.startswith(found) for whole in wholes)


def _content(commit: str, name: str) -> bytes:
    """A file of a commit; nothing where it has none."""
    try:
        return _git_bytes("cat-file", "blob", f"{commit}:{name}")
    except ResourceError:
        return b""


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
    parents, end = _git("log", "-1", "--format=%P|%ct", merge).split("|")
    parent = parents.split()[0]
    lines = _git("fsck", "--unreachable", "--no-reflogs", "--no-progress").splitlines()
    commits = [line.split()[2] for line in lines if line.startswith("unreachable commit ")]
    stashes = []
    for commit in commits:
        parents, made, subject = _git("log", "-1", "--format=%P|%ct|%s", commit).split("|", 2)
        is_recent = 0 <= int(end) - int(made) <= STASH_SECONDS
        if subject.startswith("WIP on ") and parents.split()[0] == parent and is_recent:
            stashes.append((int(made), commit))
    return max(stashes)[1] if stashes else None


def _is_stash_of_dvc(refs: tuple[str, ...], began: float | None) -> bool:
    """Whether the newest stash was made where HEAD is, just after DVC began or before what it does next.

    Args:
        began: None: DVC has come to detach HEAD.
    """
    if not _git("for-each-ref", STASH):
        return False
    parents, made, subject = _git("log", "-1", "--format=%P|%ct|%s", STASH).split("|", 2)
    if QUEUED in refs and _git("rev-parse", QUEUED) != _git("rev-parse", "HEAD"):  # DVC sets it to HEAD first
        seconds = int(_git("log", "-1", "--format=%ct", QUEUED)) - int(made)
    elif began is not None:
        seconds = int(made) - int(began)
    else:
        detached = _git("reflog", "-1", "--format=%gd", "--date=unix", "HEAD").removeprefix("HEAD@{").removesuffix("}")
        seconds = int(detached) - int(made)
    is_on_head = parents.split()[0] == _git("rev-parse", "HEAD")
    return is_on_head and subject.startswith("WIP on ") and 0 <= seconds <= STASH_SECONDS


def _has_dvc_detached(branch: str) -> bool:
    """Whether HEAD is where DVC leaves it: at the tip of the branch that it was on, or at an experiment's commit."""
    newest = _git("reflog", "-1", "--format=%gs", "HEAD")
    tip = _git("rev-parse", branch)
    is_at_tip = newest == f"checkout: moving from {branch} to {tip}" and tip == _git("rev-parse", "HEAD")
    return is_at_tip or newest.startswith((COMMITTED, ATTACHED))  # the log is written before HEAD is


def _has_head_moved_since_merge() -> bool:
    """Whether HEAD was attached again, by its user: DVC removes EXEC_MERGE before it does."""
    head, merge = (Path(_git("rev-parse", "--git-path", name)) for name in ("HEAD", MERGE))
    return not merge.is_file() or head.stat().st_mtime_ns > merge.stat().st_mtime_ns


def _names(*arguments: str, **environment: str) -> list[str]:
    """Files that a `git diff` names, whatever letters they have."""
    said = _git_bytes("diff", "-z", "--name-only", *arguments, **environment)
    return said.decode("utf-8", "surrogateescape").split("\0")[:-1]


def _git(*arguments: str, **environment: str) -> str:
    return _git_bytes(*arguments, **environment).decode("utf-8", "surrogateescape").strip()


def _git_bytes(*arguments: str, **environment: str) -> bytes:
    done = subprocess.run(["git", "--literal-pathspecs", *arguments], capture_output=True, env=os.environ | environment)
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().replace("\n", " ")
        raise ResourceError(f"git {' '.join(arguments)} fails", reason)
    return done.stdout
