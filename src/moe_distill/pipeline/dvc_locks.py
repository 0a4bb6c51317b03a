"""Who works in a repository: running `dvc` and `git` processes, and the locks that dead ones have left in .dvc/tmp."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

EXPERIMENTS = Path(".dvc/tmp/exps/rwlock")  # held by `dvc exp run` from its beginning to its end
RWLOCKS = (Path(".dvc/tmp/rwlock"), EXPERIMENTS)


@dataclass(frozen=True)
class StaleLock:
    """A lock file that no process will let go of."""

    path: Path
    pids: tuple[int, ...]  # dead processes that hold it; none: the file was cut off, DVC writes it in place

    @property
    def fault(self) -> str:
        """What is wrong with it."""
        return f"names process {', '.join(map(str, self.pids))}, which is dead" if self.pids else "is half written"


def live_program(root: Path) -> tuple[str, int] | None:
    """Name and pid of a running `dvc` or `git` whose current folder is `root` or below; None: there is none."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words, folder = process.info["cmdline"] or [], process.info["cwd"]
        words = words[2:3] if words[1:2] == ["-m"] else words[:2]
        programs = [name for name in (Path(word).name for word in words) if name in ("dvc", "git")]
        if programs and folder and Path(folder).is_relative_to(root.resolve()):
            return programs[0], int(process.pid)
    return None


def stale_locks() -> list[StaleLock]:
    """Locks of the current folder's repository to remove. DVC forgets dead holders itself unless a pid is in use again,
    and a file that was cut off stops it."""
    return [stale for stale in map(_stale, RWLOCKS) if stale is not None]


def experiment_began() -> float | None:
    """When a `dvc exp run` that died began, or came to run its stages, in seconds since 1970; None: none died."""
    stale = _stale(EXPERIMENTS)
    return EXPERIMENTS.stat().st_mtime if stale is not None and stale.pids else None


def _stale(path: Path) -> StaleLock | None:
    if not path.is_file():
        return None
    content = _content(path)
    if content is None:
        return StaleLock(path, ())
    readers = [reader for readers in content.get("read", {}).values() for reader in readers]
    holders = {int(holder["pid"]) for holder in [*readers, *content.get("write", {}).values()]}
    dead = tuple(sorted(pid for pid in holders if not psutil.pid_exists(pid)))
    return StaleLock(path, dead) if dead else None


def _content(path: Path) -> dict[str, Any] | None:
    """None: it was cut off."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
