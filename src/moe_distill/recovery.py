"""Corrupt bytes and abandoned work, removed from everywhere they stand."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from moe_distill.errors import DataError
from moe_distill.work import hold_workspace, unheld_folders
from moe_distill.workspace import project_root

SECONDS_PER_DAY = 86_400.0


def evict(path: Path) -> Iterator[Path]:
    """Remove an output's file, or a file below an output, from workspace, DVC cache and `.work`.

    All three may be one inode, and DVC trusts a file whose size and time are as before, so that corrupt bytes
    come back from its cache until they are removed there.

    Yields:
        Each path that was removed.

    Raises:
        DataError: no output recorded in dvc.lock holds the path.
        ResourceError: a stage runs here; names its pid.
    """
    path = Path(os.path.relpath(path))
    with hold_workspace("recover"):
        copies = [_cache_object(path), path]
        if path.exists():
            copies += [file for file in (project_root() / ".work").rglob(path.name) if file.samefile(path)]
        for copy in copies:
            if copy.exists():
                copy.unlink()
                yield copy


def abandoned_folders(days: float) -> Iterator[Path]:
    """Work folders that nobody works in and nobody has touched for `days`; each is held while the caller looks."""
    for folder in unheld_folders():
        newest = max(each.stat().st_mtime for each in [folder, *folder.rglob("*")])
        if time.time() - newest >= days * SECONDS_PER_DAY:
            yield folder


def remove_folder(folder: Path) -> int:
    """Remove a folder; the bytes that this frees: those of files that have no other name."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    shutil.rmtree(folder)
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def _cache_object(path: Path) -> Path:
    """Where DVC's cache keeps the content that dvc.lock records for a path."""
    cache = Path(subprocess.check_output(["dvc", "cache", "dir"], text=True).strip()) / "files/md5"
    stages = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    for out in (out for stage in stages.values() for out in stage["outs"]):
        content = _object(cache, out["md5"])
        if path == Path(out["path"]):
            return content
        if path.is_relative_to(out["path"]) and content.is_file():  # a folder's list of files
            for entry in json.loads(content.read_text(encoding="utf-8")):
                if path == Path(out["path"], entry["relpath"]):
                    return _object(cache, entry["md5"])
    raise DataError(f"{path} belongs to no output in dvc.lock", fix="name a file below an output, as `dvc.lock` does")


def _object(cache: Path, digest: str) -> Path:
    return cache / digest[:2] / digest[2:]
