"""Remove corrupt files wherever they are stored, and work folders that nobody continues."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from moe_distill.errors import ConfigError, DataError
from moe_distill.pipeline.dvc_lock import cache_folder, cached, files_of, md5_file, recorded_outputs
from moe_distill.pipeline.resumable_work import hold_workspace, unheld_folders
from moe_distill.utils.files import outside_the_root, project_root, sha256_file

SECONDS_PER_DAY = 86_400.0


def remove_corrupt(path: Path) -> Iterator[Path]:
    """Remove a file of an output from the workspace and `.work`, and from DVC's cache where it is corrupt there.

    All three may be one inode, and DVC takes a file of unchanged size and time for unchanged, so corrupt bytes would
    come back from its cache. A cached file that equals its MD5 stays.

    Args:
        path: an output that is a file, or a file in one that is a folder; or a file in `.work`.

    Yields:
        Each path that was removed.

    Raises:
        ConfigError: the current folder is not the root of the project.
        DataError: the path is a folder, or no output recorded in dvc.lock holds it.
        ResourceError: a stage runs here; names its pid.
    """
    path, work = Path(os.path.relpath(path)), project_root() / ".work"
    if not Path(".dvc").is_dir():
        raise ConfigError(*outside_the_root(Path()))
    if path.is_dir():
        raise DataError(f"{path} is a folder", fix="name the corrupt file in it, as `moe-distill verify` does")
    with hold_workspace("recover"):
        outputs = [path] if path.resolve().is_relative_to(work) else [path, *_corrupt_in_cache(path)]
        digests = {sha256_file(file) for file in outputs if file.is_file()}
        copies = [file for file in work.rglob(path.name) if file.is_file() and sha256_file(file) in digests]
        for file in [*copies, *outputs]:
            if file.is_file():
                file.unlink()
                yield file


def abandoned_folders(days: float) -> Iterator[Path]:
    """Yield the work folders that no process works in and that have not changed for `days`; see `unheld_folders`."""
    for folder in unheld_folders():
        newest = max(each.stat().st_mtime for each in [folder, *folder.rglob("*")])
        if time.time() - newest >= days * SECONDS_PER_DAY:
            yield folder


def remove_folder(folder: Path) -> int:
    """Remove a folder; returns the bytes that this frees: those of files without another hard link."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    shutil.rmtree(folder)
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def _corrupt_in_cache(path: Path) -> list[Path]:
    """The file of DVC's cache for `path`, in a list, where it differs from the MD5 in dvc.lock; else an empty list.

    Raises:
        DataError: no output in dvc.lock holds `path`, or the cache lacks the list of that output's files.
    """
    cache = cache_folder(Path())
    for output in recorded_outputs(Path()):
        if not path.is_relative_to(output.path):
            continue
        files = files_of(output, cache)
        if files is None:
            raise DataError(
                f"DVC's cache lacks the list of the files of {output.path}", fix=f"run: dvc fetch {output.path}"
            )
        if path in files:
            content = cached(cache, files[path])
            return [content] if content.is_file() and md5_file(content) != files[path] else []
    raise DataError(f"{path} belongs to no output in dvc.lock", fix="name a file below an output, as `dvc.lock` does")
