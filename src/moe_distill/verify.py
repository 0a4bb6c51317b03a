"""`moe-distill verify`: every byte of windows, shards, teacher head and checkpoints against its recorded hash."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_distill.errors import DataError
from moe_distill.replay.head import DESCRIPTION_NAME, read_head
from moe_distill.shards.format import INDEX_NAME
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.seal import read_object
from moe_distill.shards.targets import TEACHER_TARGETS, open_targets
from moe_distill.shards.windows import (
    SPLITS,
    STUDENT_WINDOWS,
    TEACHER_WINDOWS,
    VOCABULARY_MAP,
    WindowStore,
    open_vocabulary_map,
)
from moe_distill.training.checkpoint import check_checkpoint

STORES = {f"data/windows/teacher/{split}": TEACHER_WINDOWS for split in SPLITS}
STORES |= {f"data/windows/student/{split}": STUDENT_WINDOWS for split in SPLITS}
STORES |= {"data/windows/student/vocabulary_map": VOCABULARY_MAP}
STORES |= {f"data/teacher_shards/{split}": TEACHER_TARGETS for split in SPLITS}
HEAD = "models/teacher_head"
OPEN: dict[str, Callable[[Path], ShardReader]] = {  # with the checks of values that the stages make
    TEACHER_WINDOWS: lambda folder: WindowStore(folder, TEACHER_WINDOWS).reader,
    STUDENT_WINDOWS: lambda folder: WindowStore(folder, STUDENT_WINDOWS).reader,
    VOCABULARY_MAP: open_vocabulary_map,
    TEACHER_TARGETS: open_targets,
}


@dataclass(frozen=True)
class Verified:
    """What was read through: a store, a head, a checkpoint, or a broken file of a store."""

    path: Path
    fault: DataError | None  # None: whole


def verify(root: Path, work: Path) -> Iterator[Verified]:
    """Read all that carries hashes: the outputs below `root`, and unfinished or unrecorded work below `work`."""
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
        yield _verified(checkpoint, check_checkpoint)


def _store(folder: Path, store_format: str | None) -> Iterator[Verified]:
    """The store, or each of its broken files; None stands for the format that its index names."""
    try:
        found = store_format or str(read_object(folder / INDEX_NAME).get("format"))
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
