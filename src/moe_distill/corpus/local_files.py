"""Find the files that the `paths` of a source stand for; relative paths lie below the main checkout.

There may be millions of files, and a `Path` takes a kilobyte: names are held as text.
"""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from moe_distill.errors import DataError
from moe_distill.utils.files import project_root

Suffix = Literal[".txt", ".jsonl", ".parquet"]
SUFFIXES: tuple[Suffix, ...] = get_args(Suffix)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of a source, by its name below the main checkout, or its absolute one, as the system has it."""

    system_name: str

    @property
    def name(self) -> str:
        """As the user wrote it; bytes that are not UTF-8 stand in it as \\xe9."""
        return printable(self.system_name)

    @property
    def path(self) -> Path:
        """Where to read it."""
        return project_root() / self.system_name

    @property
    def suffix(self) -> Suffix:
        """Its format."""
        return cast(Suffix, Path(self.system_name).suffix.lower())  # `_is_text`


def local_files(paths: Sequence[str]) -> list[LocalFile]:
    """The files of `paths` (files, folders and globs) in that order, sorted within each path; each file once.

    Raises:
        DataError: a path matches nothing, or a folder cannot be listed.
    """
    root = project_root()
    names = dict.fromkeys(name for path in paths for name in _texts(path, root))
    return [LocalFile(name) for name in names]


def left_out(paths: Sequence[str]) -> Counter[str]:
    """How many files below `paths` are not read, by the end of their names; folders that are links count as one."""
    root = project_root()
    names = dict.fromkeys(name for path in paths for name in _matches(path, root))
    return Counter(_kind(root / name) for name in names if not _is_text(root / name))


def printable(name: str) -> str:
    """A path as text of UTF-8, whatever the bytes of its name."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _texts(path: str, root: Path) -> list[str]:
    names = [name for name in _matches(path, root) if _is_text(root / name)]
    if not names:
        raise DataError(f"`{path}` matches no {', '.join(SUFFIXES)} file", fix="change `paths` in corpus.sources")
    return names


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _kind(path: Path) -> str:
    if path.is_file():
        return path.suffix.lower() or "no suffix"
    return "folder that is a link" if path.is_dir() else "no regular file"


def _matches(path: str, root: Path) -> list[str]:
    """Whatever `path` stands for and what lies below it, but for folders; all relative to `root`, or absolute."""
    try:
        # Path.glob refuses absolute patterns
        is_name = bool(path) and (root / path).exists()
        matches = [path] if is_name else sorted(glob.glob(path, root_dir=root, recursive=True))  # noqa: PTH207
        return [name for match in matches for name in _below(str(Path(match)), root)]
    except (OSError, ValueError) as error:  # a name that no file can have, or a folder that cannot be listed
        raise DataError(f"`{path}` cannot be read", str(error), "change `paths` in corpus.sources") from error


def _below(name: str, root: Path) -> list[str]:
    """The files below a folder, sorted, and links to folders, which are not followed; a file itself."""
    if not (root / name).is_dir():
        return [name]
    found: list[str] = []
    for folder, folders, files in os.walk(root / name, onerror=_raise):
        links = [each for each in folders if Path(folder, each).is_symlink()]
        below = name / Path(folder).relative_to(root / name)
        found += [str(below / each) for each in [*files, *links]]
    return sorted(found, key=lambda each: each.replace(os.sep, "\0"))  # by their folders first, as paths are sorted


def _raise(error: OSError) -> None:
    raise error
