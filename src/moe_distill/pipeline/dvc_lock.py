"""The outputs that dvc.lock records: their files, the MD5 of each, and its place in DVC's cache."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moe_distill.errors import DataError, ResourceError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where PyYAML has it: the file is long


@dataclass(frozen=True)
class Output:
    """An output of a stage in dvc.lock."""

    path: Path  # of a file or a folder, below the workspace
    md5: str  # of a folder: MD5 of the list of its files, with `.dir` at the end


def recorded_stages(root: Path) -> dict[str, Any]:
    """What `root/dvc.lock` says of each stage; nothing where none has run yet.

    Raises:
        DataError: the file is not what DVC writes, as after a merge in git with a conflict in it.
    """
    lock = root / "dvc.lock"
    if not lock.is_file():
        return {}
    with _written_by_dvc(lock):
        content = yaml.load(lock.read_text(encoding="utf-8"), LOADER)  # both are safe loaders
        return {name: stage | {"params": _params(stage)} for name, stage in content["stages"].items()}


def _params(stage: Any) -> dict[str, dict[str, Any]]:
    return {file: dict(values) for file, values in stage.get("params", {}).items()}


def recorded_outputs(root: Path) -> list[Output]:
    """The outputs in `root/dvc.lock`; none where nothing has run yet.

    Raises:
        DataError: see `recorded_stages`.
    """
    stages = recorded_stages(root).values()
    with _written_by_dvc(root / "dvc.lock"):
        return [Output(Path(out["path"]), out["md5"]) for stage in stages for out in stage["outs"]]


@contextmanager
def _written_by_dvc(lock: Path) -> Iterator[None]:
    """Turn what reading another file than DVC writes raises inside the block into a DataError."""
    try:
        yield
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        fix = f"put it right, or restore it: git checkout HEAD {lock}"
        raise DataError(f"{lock} is not what DVC writes", " ".join(str(error).split()), fix) from error


def cache_folder(root: Path) -> Path:
    """The folder of DVC's cache for the workspace `root` that holds files by their MD5.

    Raises:
        ResourceError: DVC cannot be run.
    """
    try:
        said = subprocess.check_output(["dvc", "cache", "dir"], cwd=root, stderr=subprocess.PIPE, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = str(getattr(error, "stderr", "") or error).strip().replace("\n", " ")
        raise ResourceError("dvc cannot say where its cache is", why, "run: source .venv/bin/activate") from error
    return Path(said.strip()) / "files/md5"


def made_as_asked(*stages: str) -> bool:
    """Whether stages of the current folder were made with the parameters that stand in its files now.

    What dvc.lock does not record, such as a stage that was run by hand, is taken to be.
    """
    recorded = recorded_stages(Path())
    asked = [pair for stage in stages for pair in recorded.get(stage, {}).get("params", {}).items()]
    names = {"params.yaml", *(name for name, _ in asked)}
    files = {name: yaml.load(Path(name).read_bytes(), LOADER) for name in names if Path(name).is_file()}
    profile = _value(files.get("params.yaml"), "profile")
    for name, values in asked:
        path = Path(name)
        if name not in files or (path.parent.name == "profiles" and path.stem != profile):
            return False
        if not all(_equal(_value(files[name], key), value) for key, value in values.items()):
            return False
    return True


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are; 1e-3, which is text for PyYAML and a number for DVC, is 0.001."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    try:
        return bool(one == other or float(one) == float(other))
    except (TypeError, ValueError):
        return False


def _value(content: Any, key: str) -> Any:
    """The value of a key such as `models.teacher`; None where there is none."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


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
