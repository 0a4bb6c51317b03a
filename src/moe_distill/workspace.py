"""Unfinished work lives in `.work/<stage>/<fingerprint>/`; finished work is published by hard link.

DVC deletes a stage's outputs before it runs the stage again, so nothing that must survive a kill may
live in an output. A long stage works in a folder named after everything that determines its result;
killed and started again with the same inputs it finds its own work, with other inputs it starts afresh.
Every file is written under a temporary name, synced, then renamed: a name that exists is complete.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from moe_distill.errors import ResourceError
from moe_distill.progress import say

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]

SAME_WORKSPACE_SECONDS = 1.0
WAIT_MESSAGE_SECONDS = 60.0


def project_root() -> Path:
    """The main checkout: `DVC_ROOT` also inside `dvc exp run --temp` and `--queue`, else the current folder."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def canonical_json(value: Json) -> str:
    """Equal values give equal text: sorted keys, no spaces to vary, a final newline.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
    """
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def fingerprint(value: Json) -> str:
    """SHA-256 over the canonical JSON of `value`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """One fingerprint over the names and bytes of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint({path.relative_to(folder).as_posix(): sha256_file(path) for path in files})


def sync(path: Path) -> None:
    """Ask the operating system to put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either what it held before or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)  # half a file, where the disk is full
    sync(path.parent)


def write_json(path: Path, value: Json) -> None:
    """Write `value` as canonical JSON, atomically."""
    write_atomically(path, canonical_json(value).encode())


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
    return target


def publish(folder: Path, destination: Path) -> None:
    """Give the finished `folder` its final name by hard links, in place of what stood there."""
    incoming = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    shutil.rmtree(incoming, ignore_errors=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, incoming, copy_function=_link_or_copy)
    shutil.rmtree(destination, ignore_errors=True)
    incoming.rename(destination)
    sync(destination.parent)


@contextmanager
def fresh_folder(destination: Path) -> Iterator[Path]:
    """An empty folder that becomes `destination` when the block ends without an error: for short stages."""
    folder = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process whose number is ours now
    folder.mkdir(parents=True)
    try:
        yield folder
        shutil.rmtree(destination, ignore_errors=True)
        folder.rename(destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def work_folder(stage: str, key: str) -> Iterator[Path]:
    """Hold `.work/<stage>/<key>/` alone; remove it when the block ends without an error.

    A second process of the same workspace is refused at once; one of another workspace
    (`dvc exp run --temp`, `--queue`) waits for the first to end.

    Raises:
        ResourceError: another process of this workspace holds the folder; names its pid.
    """
    home = project_root() / ".work" / stage
    home.mkdir(parents=True, exist_ok=True)
    folder, owner = home / key[:16], home / f"{key[:16]}.owner"
    lock = FileLock(home / f"{key[:16]}.lock")
    _acquire(lock, owner, stage)
    try:
        owner.write_text(f"{os.getpid()} {Path.cwd()}", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, owner: Path, stage: str) -> None:
    timeout = SAME_WORKSPACE_SECONDS
    while True:
        try:
            lock.acquire(timeout=timeout)
            return
        except Timeout:
            held = owner.read_text(encoding="utf-8") if owner.is_file() else "? ?"
            pid, _, workspace = held.partition(" ")
            if workspace == str(Path.cwd()):
                raise ResourceError(
                    f"stage {stage} already runs in this workspace as process {pid}",
                    fix=f"wait for it, or stop it with: kill {pid}",
                ) from None
            say(f"{stage}: process {pid} in {workspace} computes the same result; waiting")
            timeout = WAIT_MESSAGE_SECONDS
