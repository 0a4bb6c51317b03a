"""One flipped bit, modification time kept: found and named, by `verify` and by the stage, before a value is used."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from moe_distill.alignment.corpus_windows import SKIPPED_NAME
from moe_distill.batches.loader import BatchReader, BatchRequest
from moe_distill.batches.split import open_split
from moe_distill.commands.verify import verify
from moe_distill.errors import DataError
from moe_distill.replay.block import load_teacher_head
from moe_distill.shards.checkpoint import newest_checkpoint
from moe_distill.shards.window_store import SPLITS, TEACHER_WINDOWS, WindowStore
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.window_targets import TargetSettings, WindowTargets
from moe_distill.training.phases import train_kd
from tests.chain import Chain

STAGE = ".work/train_kd/key"


@pytest.fixture(scope="module")
def interrupted(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The outputs up to the teacher's, and a first phase that ended in the middle: two checkpoints."""
    copied = chain.copy(tmp_path_factory.mktemp("flips") / "chain")
    outputs = replace(copied.outputs(), work=copied.folder / STAGE)
    outputs.work.mkdir(parents=True)
    experiment = copied.params.experiment.model_copy(
        update={"curriculum": copied.params.experiment.curriculum.model_copy(update={"phase1_share": 0.5})}
    )
    train_kd(copied.params.model_copy(update={"experiment": experiment}), copied.inputs(), outputs)
    assert len(list(outputs.work.glob("checkpoint_*"))) == 2
    return copied


def hashed_files(chain: Chain) -> list[Path]:
    """All that carries hashes of its own; the list of skipped documents has one in dvc.lock alone."""
    roots = [chain.folder / "data/windows", chain.targets, chain.head, *(chain.folder / STAGE).glob("checkpoint_*")]
    return [path for root in roots for path in sorted(root.rglob("*")) if path.is_file() and path.name != SKIPPED_NAME]


def read_all(chain: Chain) -> Iterator[object]:
    """All that teacher, training and evaluation read, as they read it."""
    splits = {split: open_split(chain.windows / split, chain.targets / split) for split in SPLITS}
    vocabulary_map = load_vocabulary_map(chain.windows / "vocabulary_map", splits["train"].windows, inside_tokens=True)
    settings = TargetSettings(temperature=1.0, order="map_then_temper", tail="sampled")
    for split, opened in splits.items():
        yield WindowStore(chain.folder / "data/windows/teacher" / split, TEACHER_WINDOWS)
        assert opened.shards is not None
        targets = WindowTargets(opened.windows, opened.shards, vocabulary_map, settings)
        reader = BatchReader(opened, targets, with_states=True, chunk_tokens=64)
        for number in range(len(opened.windows)):
            yield reader.read(BatchRequest((number,)))
    yield load_teacher_head(chain.head, torch.device("cpu"))


def flip(path: Path, random: Random) -> None:
    before, content = path.stat(), bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)


def assert_found(chain: Chain, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults = [each for each in verify(chain.folder, chain.folder / ".work") if each.fault]
    if path.parent.name.startswith("checkpoint_"):
        assert [each.path for each in faults] == [path.parent]
        taken = newest_checkpoint(chain.folder / STAGE)
        names = sorted(folder.name for folder in (chain.folder / STAGE).glob("checkpoint_*"))
        is_newest = path.parent.name == names[-1]
        assert taken is not None
        assert f"checkpoint_{taken.step:06d}" == names[-2 if is_newest else -1]
        assert (f"{path.parent.name} is broken" in capsys.readouterr().out) == is_newest
        return
    assert len(faults) == 1
    assert str(path) in str(faults[0].fault)
    with pytest.raises(DataError) as caught:
        for _ in read_all(chain):
            pass
    assert str(path) in str(caught.value)
    if path.is_file():
        for fault in (faults[0].fault, caught.value):
            assert str(fault).endswith(f"run: moe-distill recover --shard {path}; then: dvc pull, or dvc repro")


@pytest.mark.parametrize("flips", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found(interrupted: Chain, flips: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the places are drawn over all bytes, half file by file, so that the small files have their turn."""
    files, random = hashed_files(interrupted), Random(flips)
    sizes = [path.stat().st_size for path in files]
    assert {path.name for path in files} >= {"index.json", "teacher_head.json", "manifest.json", "state.json"}
    for number in range(flips):
        path = random.choices(files, sizes)[0] if number % 2 else files[random.randrange(len(files))]
        content = path.read_bytes()
        flip(path, random)
        assert_found(interrupted, path, capsys)
        path.write_bytes(content)
    assert not [each for each in verify(interrupted.folder, interrupted.folder / ".work") if each.fault]
    assert len(list(read_all(interrupted))) > 60


def test_a_missing_or_truncated_file_is_named_too(interrupted: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    for path in hashed_files(interrupted):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert_found(interrupted, path, capsys)
        path.write_bytes(content)
    for path in hashed_files(interrupted):
        content = path.read_bytes()
        path.unlink()
        assert_found(interrupted, path, capsys)
        path.write_bytes(content)


def test_every_broken_file_of_a_store_is_named(interrupted: Chain) -> None:
    files = sorted((interrupted.targets / "train").glob("*.safetensors"))[:2]
    contents = [path.read_bytes() for path in files]
    for path in files:
        flip(path, Random(0))
    faults = [each.path for each in verify(interrupted.folder, interrupted.folder / ".work") if each.fault]
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    assert faults == files
