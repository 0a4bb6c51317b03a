"""Write files and folders so that they are complete or absent, and take fingerprints of their content.

Every file is written under a temporary name, synced, then renamed, so a file under its final name is complete.
A temporary name begins with a dot and ends with `.tmp`; a file that a killed process left under one is never read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]


def project_root() -> Path:
    """The main checkout: `DVC_ROOT`, which `dvc exp run --temp` and `--queue` set, else the current folder."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def canonical_json(value: Json) -> str:
    """JSON text that is equal for equal values: sorted keys, fixed indentation, a final newline.

    Raises:
        ValueError: a number is not finite, which JSON has no notation for.
    """
    return "".join(_canonical_pieces(value))


def _canonical_pieces(value: Json) -> Iterator[str]:
    encoder = json.JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    yield from encoder.iterencode(value)
    yield "\n"


def fingerprint(value: Json) -> str:
    """SHA-256 over the canonical JSON of `value`, as 64 hexadecimal digits; the text is never whole in memory."""
    return fingerprint_each([value])


def fingerprint_each(values: Iterable[Json]) -> str:
    """SHA-256 over the canonical JSON of one value after the other; none is kept."""
    digest = hashlib.sha256()
    for value in values:
        for piece in _canonical_pieces(value):
            digest.update(piece.encode("utf-8", "surrogatepass"))  # any file name
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """One fingerprint over the names and bytes of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint({path.relative_to(folder).as_posix(): sha256_file(path) for path in files})


def sync(path: Path) -> None:
    """Ask the operating system to write a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either its old content or all of the new, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)  # an incomplete file, where the disk is full
    sync(path.parent)


def write_json(path: Path, value: Json) -> None:
    """Write `value` as canonical JSON, atomically."""
    write_atomically(path, canonical_json(value).encode())


def link_or_copy(source: str, target: str) -> str:
    """Give a file a second name, or make a copy of it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
    return target


def publish(source: Path, destination: Path) -> None:
    """Put the finished folder or file `source` at `destination` by hard links, in place of what is there."""
    incoming = _incoming(destination)
    if source.is_dir():
        ignored = shutil.ignore_patterns(".*.tmp")  # left by a process that was killed while it wrote
        shutil.copytree(source, incoming, copy_function=link_or_copy, ignore=ignored)
    else:
        link_or_copy(str(source), str(incoming))
    shutil.rmtree(destination, ignore_errors=True)
    incoming.rename(destination)
    sync(destination.parent)


def _incoming(destination: Path) -> Path:
    """The temporary path for `destination`; removes what killed processes left under such names."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    for left in destination.parent.glob(f".{destination.name}.*.tmp"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return destination.with_name(f".{destination.name}.{os.getpid()}.tmp")


@contextmanager
def fresh_folder(destination: Path) -> Iterator[Path]:
    """An empty folder that becomes `destination` when the block ends without an error; for short stages."""
    folder = _incoming(destination)
    folder.mkdir()
    try:
        yield folder
        shutil.rmtree(destination, ignore_errors=True)
        folder.rename(destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def outside_the_root(folder: Path) -> tuple[str, str, str]:
    """What, why and fix of the error for a command that is given in a folder without params.yaml."""
    above = next((each for each in folder.resolve().parents if (each / "dvc.yaml").is_file()), None)
    fix = f"run: cd {above}" if above else "run it in the folder of the project that has params.yaml and dvc.yaml"
    return f"{folder.resolve()} is not the root of the project", "it has no params.yaml", fix
