"""Find the files that the `paths` of a source stand for; relative paths lie below the main checkout."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_distill.errors import DataError
from moe_distill.utils.files import project_root

SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class LocalFile:
    """A file of a source."""

    name: str  # as the user wrote it
    path: Path


def local_files(paths: Sequence[str]) -> list[LocalFile]:
    """The files of `paths` (files, folders and globs) in that order, sorted within each path; each file once.

    Raises:
        DataError: a path matches nothing.
    """
    root = project_root()
    names = dict.fromkeys(name for path in paths for name in _expand(path, root))
    return [LocalFile(str(name), root / name) for name in names]


def _expand(path: str, root: Path) -> list[Path]:
    # Path.glob refuses absolute patterns
    is_name = bool(path) and (root / path).exists()
    matches = [path] if is_name else sorted(glob.glob(path, root_dir=root, recursive=True))  # noqa: PTH207
    names = [name for match in map(Path, matches) for name in _below(match, root)]
    names = [name for name in names if name.suffix.lower() in SUFFIXES and (root / name).is_file()]
    if not names:
        raise DataError(f"`{path}` matches no {', '.join(SUFFIXES)} file", fix="change `paths` in corpus.sources")
    return names


def _below(name: Path, root: Path) -> Iterator[Path]:
    if not (root / name).is_dir():
        return iter([name])
    return (name / found.relative_to(root / name) for found in sorted((root / name).rglob("*")))
