"""The outputs that dvc.lock records: their files, the MD5 of each, and its place in DVC's cache."""

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moe_distill.errors import DataError


@dataclass(frozen=True)
class Output:
    """An output of a stage in dvc.lock."""

    path: Path  # of a file or a folder, below the workspace
    md5: str  # of a folder: MD5 of the list of its files, with `.dir` at the end


def recorded_stages(root: Path) -> dict[str, Any]:
    """What `root/dvc.lock` says of each stage; nothing where none has run yet."""
    lock = root / "dvc.lock"
    stages: dict[str, Any] = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.is_file() else {}
    return stages


def recorded_outputs(root: Path) -> list[Output]:
    """The outputs in `root/dvc.lock`; none where nothing has run yet."""
    return [Output(Path(out["path"]), out["md5"]) for stage in recorded_stages(root).values() for out in stage["outs"]]


def cache_folder(root: Path) -> Path:
    """The folder of DVC's cache for the workspace `root` that holds files by their MD5."""
    return Path(subprocess.check_output(["dvc", "cache", "dir"], cwd=root, text=True).strip()) / "files/md5"


def cached(cache: Path, md5: str) -> Path:
    """Path in the cache of the content with that MD5; there may be no such file."""
    return cache / md5[:2] / md5[2:]


def files_of(output: Output, cache: Path) -> dict[Path, str] | None:
    """Path and MD5 of each file of an output; None where the cache lacks the list of a folder's files.

    Raises:
        DataError: the list differs from its MD5.
    """
    if not output.md5.endswith(".dir"):
        return {output.path: output.md5}
    path = cached(cache, output.md5)
    if not path.is_file():
        return None
    found = md5_file(path)
    if f"{found}.dir" != output.md5:
        raise DataError(
            f"{path}, the list of the files of {output.path}, is corrupt",
            f"md5 {found}, dvc.lock says {output.md5.removesuffix('.dir')}",
            f"run: rm -f {path}; then: dvc pull, or dvc repro",
        )
    return {output.path / each["relpath"]: each["md5"] for each in json.loads(path.read_bytes())}


def md5_file(path: Path) -> str:
    """MD5 of a file's bytes, as 32 hexadecimal digits; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
