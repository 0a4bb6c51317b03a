"""Work folders `.work/<stage>/<fingerprint>/`: a killed stage continues in its own, and a result is computed once.

DVC deletes a stage's outputs before it runs the stage again, so what must survive a kill cannot be in an output. A long
stage works in a folder named by a fingerprint of everything that determines its result. Started again with the same
inputs, it finds its unfinished work; with other inputs it starts in another folder. A process of another workspace
(`dvc exp run --temp`, `--queue`) that needs the same result waits for it.
Finished work is published by hard links. Its folder is removed when dvc.lock has recorded the result: a kill before
that costs nothing, and `dvc repro -f` after it computes again.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from moe_distill.errors import DataError, ResourceError
from moe_distill.log import log
from moe_distill.utils.checksummed_json import read_json_object, verified_content, write_checksummed_json
from moe_distill.utils.files import (
    canonical_json,
    folder_fingerprint,
    project_root,
    publish,
    sha256_file,
    write_atomically,
)

SAME_WORKSPACE_SECONDS = 0.5
WAIT_MESSAGE_SECONDS = 60.0
RECORD_NAME = "done.json"
WORKSPACE_LOCK, WORKSPACE_OWNER = ".work/workspace.lock", ".work/workspace.owner"
NOT_SAID_YET = "a stage", "?"  # name and pid of a holder that has just come


class _Record(BaseModel):
    """The content of done.json, which stands beside finished outputs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workspace: Path  # from the main checkout, which may be moved before DVC records the result
    metrics: dict[str, float]  # metrics/<stage>.json
    outputs: dict[str, str]  # name -> SHA-256 of a file, fingerprint of a folder


@contextmanager
def hold_workspace(name: str) -> Iterator[None]:
    """Hold the lock of the current folder while outputs are written in it.

    A stage goes on when its `dvc` is killed, and a second stage beside it would write the same outputs.

    Args:
        name: one word for the holder, shown to a process that is refused.

    Raises:
        ResourceError: another process holds the lock; names its pid.
    """
    lock, owner = FileLock(WORKSPACE_LOCK), Path(WORKSPACE_OWNER)
    owner.parent.mkdir(exist_ok=True)
    try:
        lock.acquire(timeout=SAME_WORKSPACE_SECONDS)
    except Timeout:
        running, pid = _owner(owner) or NOT_SAID_YET
        raise ResourceError(
            f"{running} already runs in this workspace as process {pid}",
            fix="wait for it" if pid == "?" else f"wait for it, or stop it with: kill {pid}",
        ) from None
    try:
        write_atomically(owner, f"{name} {os.getpid()}".encode())
        _remove_what_dvc_has_recorded()
        yield
    finally:
        lock.release()


def workspace_holder() -> tuple[str, str] | None:
    """Name and pid of the stage that runs in the current folder; None: no stage runs."""
    if not Path(WORKSPACE_LOCK).is_file():
        return None
    try:
        with FileLock(WORKSPACE_LOCK, timeout=0):
            return None
    except Timeout:
        return _owner(Path(WORKSPACE_OWNER)) or NOT_SAID_YET


def _owner(path: Path) -> tuple[str, str] | None:
    """The first word of what the holder of a lock has written, and the rest; None: it has not yet."""
    name, _, rest = (path.read_text(encoding="utf-8") if path.is_file() else "").partition(" ")
    return (name, rest) if rest else None


def compute_once(
    stage: str, key: str, compute: Callable[[Path], dict[str, float]], outputs: Mapping[str, Path]
) -> dict[str, float]:
    """Compute a result, or take it from a process of another workspace that has just computed it, and publish it.

    Args:
        stage: name of the stage, the folder below `.work`.
        key: fingerprint of everything that determines the result.
        compute: fills an empty folder, or continues in one that a killed process left; returns metrics.
        outputs: name of a folder or file in that folder -> where it is published.

    Returns:
        The metrics that `compute` returned.
    """
    home = project_root() / ".work" / stage
    home.mkdir(parents=True, exist_ok=True)
    folder = home / key[:16]
    with _held(folder, stage):
        record = _finished(folder)
        if record is None:
            folder.mkdir(exist_ok=True)
            metrics = compute(folder)
            workspace = Path(os.path.relpath(Path.cwd(), project_root()))
            record = _Record(workspace=workspace, metrics=metrics, outputs=_fingerprints(folder, outputs))
            write_checksummed_json(folder / RECORD_NAME, record.model_dump(mode="json"))
        else:
            log(f"{stage}: was finished by a process in {_home(record)}; its result is taken")
        for name, destination in outputs.items():
            publish(folder / name, destination)
    return record.metrics


def check_finished(folder: Path) -> None:
    """Check the outputs in a work folder against the hashes in its record; unfinished work has none.

    Raises:
        DataError: the record differs from its checksum, or an output from its hash.
    """
    record = _read_record(folder)
    if record is not None and record.outputs != _fingerprints(folder, record.outputs):
        raise DataError(f"{folder} is not what its {RECORD_NAME} says", fix="run: dvc repro; it is computed again")


def _finished(folder: Path) -> _Record | None:
    """The record of finished work; None where work is unfinished, or corrupt and therefore removed."""
    try:
        check_finished(folder)
        return _read_record(folder)
    except DataError:
        log(f"warning: {folder} is not what its {RECORD_NAME} says; it is computed again")
        shutil.rmtree(folder)
        return None


def _read_record(folder: Path) -> _Record | None:
    """The record of finished work; None where work is unfinished.

    Raises:
        DataError: the record differs from its checksum, or is of another version of this project.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        return _Record.model_validate(verified_content(path, read_json_object(path)))
    except ValidationError as error:
        raise DataError(f"{path} is of another version of moe-distill", fix="run: dvc repro") from error


def _fingerprints(folder: Path, outputs: Iterable[str]) -> dict[str, str]:
    paths = {name: folder / name for name in outputs}
    return {name: sha256_file(path) if path.is_file() else folder_fingerprint(path) for name, path in paths.items()}


def unheld_folders() -> Iterator[Path]:
    """Yield the work folders that no process works in; each is locked until the next one is asked for."""
    for path in sorted((project_root() / ".work").glob("*/*.lock")):
        with suppress(Timeout), FileLock(path, timeout=0):
            if path.with_suffix("").is_dir():
                yield path.with_suffix("")


def _remove_what_dvc_has_recorded() -> None:
    for folder in unheld_folders():
        with suppress(DataError):  # a corrupt record: the stage, or `clean`, removes the folder
            record = _read_record(folder)
            if record is not None and _is_recorded(record) and not _is_awaited(folder):
                shutil.rmtree(folder)


def _is_recorded(record: _Record) -> bool:
    """Whether the workspace's dvc.lock has the MD5 of the metrics; true for a workspace that is gone."""
    workspace = _home(record)
    if not workspace.is_dir():
        return True
    lock = workspace / "dvc.lock"
    digest = hashlib.md5(canonical_json(record.metrics).encode(), usedforsecurity=False).hexdigest()
    return lock.is_file() and digest in lock.read_text(encoding="utf-8")


def _home(record: _Record) -> Path:
    """The workspace that computed a result, where it is now."""
    return (project_root() / record.workspace).resolve()


@contextmanager
def _held(folder: Path, stage: str) -> Iterator[None]:
    """Hold the lock of a work folder; wait while another workspace holds it, and log a line a minute."""
    lock, owner = FileLock(f"{folder}.lock"), Path(f"{folder}.owner")
    waits = Path(f"{folder}.waits.{os.getpid()}")
    with FileLock(waits):  # which the system lets go of, however this process ends
        try:
            timeout = SAME_WORKSPACE_SECONDS
            while not lock.is_locked:
                try:
                    lock.acquire(timeout=timeout)
                except Timeout:
                    pid, workspace = _owner(owner) or ("?", "another workspace")
                    log(f"{stage}: process {pid} in {workspace} computes the same result; waiting")
                    timeout = WAIT_MESSAGE_SECONDS
        finally:
            waits.unlink(missing_ok=True)
    try:
        write_atomically(owner, f"{os.getpid()} {Path.cwd()}".encode())
        yield
    finally:
        lock.release()


def _is_awaited(folder: Path) -> bool:
    """Whether a process of another workspace waits for a work folder."""
    for path in folder.parent.glob(f"{folder.name}.waits.*"):
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)  # of a process that is gone
        except Timeout:
            return True
    return False
