"""`moe-distill verify`: compare every byte of every output, and of work in progress, with its recorded hash.

Windows, shards, teacher head, checkpoints and finished work have hashes of their own. For everything else (corpus,
model folders, curves, metrics) dvc.lock has an MD5.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_distill.errors import DataError, restore_command
from moe_distill.pipeline.dvc_lock import Output, cache_folder, files_of, md5_file, recorded_outputs
from moe_distill.pipeline.resumable_work import RECORD_NAME, check_finished
from moe_distill.replay.head import DESCRIPTION_NAME, read_head
from moe_distill.shards.checkpoint import check_checkpoint
from moe_distill.shards.format import INDEX_NAME
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import TEACHER_TARGETS, open_targets
from moe_distill.shards.vocabulary_store import VOCABULARY_MAP, open_vocabulary_map
from moe_distill.shards.window_store import SPLITS, STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from moe_distill.utils.checksummed_json import read_json_object
from moe_distill.utils.files import sha256_file

STORES = {f"data/windows/teacher/{split}": TEACHER_WINDOWS for split in SPLITS}
STORES |= {f"data/windows/student/{split}": STUDENT_WINDOWS for split in SPLITS}
STORES |= {"data/windows/student/vocabulary_map": VOCABULARY_MAP}
STORES |= {f"data/teacher_shards/{split}": TEACHER_TARGETS for split in SPLITS}
HEAD = "models/teacher_head"
OPEN: dict[str, Callable[[Path], ShardReader]] = {  # each with the checks of values that the stages make too
    TEACHER_WINDOWS: lambda folder: WindowStore(folder, TEACHER_WINDOWS).reader,
    STUDENT_WINDOWS: lambda folder: WindowStore(folder, STUDENT_WINDOWS).reader,
    VOCABULARY_MAP: open_vocabulary_map,
    TEACHER_TARGETS: open_targets,
}


@dataclass(frozen=True)
class Verified:
    """Result for a store, a head, a checkpoint, finished work, an output, or one corrupt file of these."""

    path: Path
    fault: DataError | None  # None: no fault was found
    unread: str = ""  # why it was not read; empty: it was


def verify(root: Path, work: Path) -> Iterator[Verified]:
    """Verify the outputs below `root`, and unfinished or unrecorded work below `work`."""
    for name, store_format in STORES.items():
        if (root / name).is_dir():
            yield from _store(root / name, store_format)
    for index in sorted(work.glob(f"**/{INDEX_NAME}")):
        yield from _store(index.parent, None)
    heads = [root / HEAD, *(path.parent for path in sorted(work.glob(f"**/{DESCRIPTION_NAME}")))]
    for head in heads:
        if head.is_dir():
            yield _verified(head, lambda folder: read_head(folder, torch.device("cpu")))
    for checkpoint in sorted(work.glob("**/checkpoint_*")):
        found = _verified(checkpoint, check_checkpoint)
        if found.fault is None or checkpoint.is_dir():  # else a training that goes on has removed it meanwhile
            yield found
    finished = [_verified(record.parent, check_finished) for record in sorted(work.glob(f"*/*/{RECORD_NAME}"))]
    yield from finished
    outputs = [output for output in recorded_outputs(root) if (root / output.path).exists()]  # a clone pulls some
    cache = cache_folder(root) if outputs else root
    for output in outputs:
        yield from _output(root, output, cache, [each.path for each in finished if each.fault is None])


def verify_output(root: Path, path: Path) -> Iterator[Verified]:
    """Verify one output, stores and head aside; nothing where dvc.lock records none of that path."""
    for output in recorded_outputs(root):
        if output.path == Path(os.path.relpath(path, root)):
            yield from _output(root, output, cache_folder(root), [])


def _output(root: Path, output: Output, cache: Path, finished: list[Path]) -> Iterator[Verified]:
    """Compare an output, stores and head aside, with dvc.lock; yields each corrupt file, or else the output."""
    try:
        files = files_of(output, cache)
    except DataError as fault:
        yield Verified(root / output.path, fault)
        return
    if files is None:
        why = f"DVC's cache lacks the list of its files; run: dvc fetch {output.path}"
        yield Verified(root / output.path, None, unread=why)
        return
    others = {
        path: md5 for path, md5 in files.items() if not any(path.is_relative_to(each) for each in [*STORES, HEAD])
    }
    faults = [each for path, md5 in others.items() if (each := _file(root / path, md5, finished)).fault]
    if others:
        yield from faults or [Verified(root / output.path, None)]


def _file(path: Path, md5: str, finished: list[Path]) -> Verified:
    """Compare a file with its MD5 in dvc.lock, or with finished work that a killed DVC has not recorded yet."""
    if not path.is_file():
        return Verified(
            path, DataError(f"{path} does not exist", "dvc.lock records it", "run: dvc checkout, or dvc repro")
        )
    found = md5_file(path)
    if found == md5 or _is_among(path, finished):
        return Verified(path, None)
    return Verified(path, DataError(f"{path} is corrupt", f"md5 {found}, dvc.lock says {md5}", restore_command(path)))


def _is_among(path: Path, folders: list[Path]) -> bool:
    """Whether one of the folders holds a file of that name and content."""
    digest = sha256_file(path)
    return any(sha256_file(file) == digest for folder in folders for file in folder.rglob(path.name))


def _store(folder: Path, store_format: str | None) -> Iterator[Verified]:
    """Verify a store; yields each corrupt file, or else the store. A `store_format` of None takes the index's own."""
    try:
        found = store_format or str(read_json_object(folder / INDEX_NAME).get("format"))
        reader = ShardReader(folder, found)
    except DataError as fault:
        yield Verified(folder / INDEX_NAME, fault)
        return
    numbers = range(len(reader.index.files))
    faults = [each for number in numbers if (each := _verified(reader.path(number), _opener(reader, number))).fault]
    yield from faults or [_verified(folder, lambda folder: OPEN[found](folder).verify())]


def _opener(reader: ShardReader, number: int) -> Callable[[Path], object]:
    return lambda _path: reader.verify_file(number)


def _verified(path: Path, read: Callable[[Path], object]) -> Verified:
    try:
        read(path)
    except DataError as fault:
        return Verified(path, fault)
    return Verified(path, None)
