"""Find the files that the `paths` of a source stand for; relative paths lie below the main checkout.

There may be millions of files, and a `Path` takes a kilobyte: names are held as text, and none is made of them.
"""

import errno
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
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
        return cast(Suffix, _suffix(self.system_name))  # `_is_text`


def local_files(paths: Sequence[str]) -> Iterator[LocalFile]:
    """Find the files of `paths` (files, folders and globs), and yield them in that order, sorted within each path.

    A file is yielded once.

    Raises:
        DataError: a path matches nothing, or a folder cannot be listed.
    """
    root = project_root()
    names = dict.fromkeys(name for path in paths for name in _texts(path, root))
    return map(LocalFile, names)


def left_out(paths: Sequence[str]) -> Counter[str]:
    """How many files below `paths` are not read, by the end of their names; folders that are links count as one."""
    root = project_root()
    names = dict.fromkeys(name for path in paths for name in _matches(path, root))
    return Counter(_kind(name, root) for name in names if not _is_text(name, root))


def printable(name: str) -> str:
    """A path as text of UTF-8, whatever the bytes of its name."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _texts(path: str, root: Path) -> list[str]:
    names = [name for name in _matches(path, root) if _is_text(name, root)]
    if not names:
        raise DataError(f"`{path}` matches no {', '.join(SUFFIXES)} file", fix="change `paths` in corpus.sources")
    return names


def _is_text(name: str, root: Path) -> bool:
    if _suffix(name) not in SUFFIXES:
        return False
    try:
        return stat.S_ISREG(os.stat(os.path.join(root, name)).st_mode)
    except PermissionError as error:  # the rights of its folder
        fix = "give its folder the right to be opened, or change `paths` in corpus.sources"
        raise DataError(f"`{printable(name)}` cannot be read", str(error), fix) from error
    except (OSError, ValueError):  # a link to nowhere, or a name that no file can have
        return False


def _kind(name: str, root: Path) -> str:
    path = os.path.join(root, name)
    if os.path.isfile(path):
        return _suffix(name) or "no suffix"
    return "folder that is a link" if os.path.isdir(path) else "no regular file"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _matches(path: str, root: Path) -> list[str]:
    """Whatever `path` stands for and what lies below it, but for folders; all relative to `root`, or absolute."""
    try:
        # Path.glob refuses absolute patterns
        is_name = bool(path) and (root / path).exists()
        matches = [path] if is_name else sorted(glob.glob(path, root_dir=root, recursive=True))
        return [name for match in matches for name in _below(str(Path(match)), root)]
    except (OSError, ValueError) as error:  # a name that no file can have, or a folder that cannot be listed
        raise DataError(f"`{path}` cannot be read", str(error), "change `paths` in corpus.sources") from error


def _below(name: str, root: Path) -> Iterator[str]:
    """The files below a folder, sorted, and links to folders, which are not followed; a file itself."""
    folder = os.path.join(root, name)
    if not os.path.isdir(folder):
        yield name
        return
    if not os.access(folder, os.X_OK):  # a folder that can be listed, and whose files cannot be read
        raise PermissionError(errno.EACCES, "its rights do not let its files be read", folder)
    for each in sorted(os.listdir(folder)):
        below = each if name == os.curdir else os.path.join(name, each)
        if os.path.islink(os.path.join(root, below)):
            yield below
        else:
            yield from _below(below, root)
