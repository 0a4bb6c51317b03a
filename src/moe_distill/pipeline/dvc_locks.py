"""Who works in a repository: running `dvc` and `git` processes, and the locks that dead ones have left."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

EXPERIMENTS = Path(".dvc/tmp/exps/rwlock")  # `dvc exp run` holds it until the experiment has its commit
RWLOCKS = (Path(".dvc/tmp/rwlock"), EXPERIMENTS)


@dataclass(frozen=True)
class StaleLock:
    """A lock file that no process will let go of, and what is wrong with it."""

    path: Path
    fault: str


def live_program(root: Path) -> tuple[str, int] | None:
    """Name and pid of a running `dvc` or `git` in `root` or another checkout of its repository; None: there is none.

    `dvc daemon`, which a dvc leaves behind to look for a newer version, does nothing in a repository.
    """
    folders = [root.resolve(), *_worktrees(root)]
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words, folder = process.info["cmdline"] or [], process.info["cwd"]
        for place in (2,) if words[1:2] == ["-m"] else (0, 1):
            program, argument = [*words[place:], "", ""][:2]
            name = Path(program).name
            is_one = name in ("dvc", "git") and argument != "daemon"
            if is_one and folder and any(map(Path(folder).is_relative_to, folders)):
                return name, int(process.pid)
    return None


def _worktrees(root: Path) -> list[Path]:
    """All checkouts of a repository, which share its references; none where there is no git."""
    command = ["git", "worktree", "list", "--porcelain"]
    try:
        said = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    lines = said.stdout.splitlines()
    return [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]


def stale_locks() -> list[StaleLock]:
    """Lock files to remove from the current folder's repository, in which no `dvc` or `git` runs (`live_program`).

    DVC forgets dead holders itself unless a pid is in use again, and a file that was cut off stops it.
    """
    found = []
    for path in RWLOCKS:
        dead = _dead_holders(path)
        if dead is None:
            found.append(StaleLock(path, "is half written"))
        elif dead:
            found.append(StaleLock(path, f"names process {', '.join(map(str, dead))}, which is dead"))
    git = Path(".git")
    locks = [*git.glob("*.lock"), *(git / "refs").rglob("*.lock"), *(git / "logs").rglob("*.lock")]
    return found + [StaleLock(path, "was left by a process that was killed") for path in locks]


def experiment_began() -> float | None:
    """When a `dvc exp run` that died began, or came to run its stages, in seconds since 1970; None: none died."""
    return EXPERIMENTS.stat().st_mtime if _dead_holders(EXPERIMENTS) else None


def _dead_holders(path: Path) -> list[int] | None:
    """Dead processes that a rwlock names; None: it was cut off, as DVC writes it in place."""
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    readers = [reader for readers in content.get("read", {}).values() for reader in readers]
    holders = {int(holder["pid"]) for holder in [*readers, *content.get("write", {}).values()]}
    return sorted(pid for pid in holders if not psutil.pid_exists(pid))
