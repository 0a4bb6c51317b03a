"""Batches by request: what they hold, and that the number of worker processes changes nothing."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

from moe_distill.batches.batch import Batch
from moe_distill.batches.loader import BatchReader, BatchRequest, LoaderSettings, load_batches, requests
from moe_distill.batches.split import Split, open_split
from moe_distill.errors import DataError
from moe_distill.shards import reader as shard_reader
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.vocabulary_store import Merges
from moe_distill.targets.canonical import merge_rules
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_rows import pair_keys
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.token_shares import VocabularyMap, rule_map
from moe_distill.targets.window_targets import TargetSettings, WindowTargets
from moe_distill.tracking.curves import CURVE_NAME, VALIDATION_CURVE_NAME
from moe_distill.training import loop
from moe_distill.training.phases import train_kd, train_router
from moe_distill.training.step import Update, optimizer_step
from moe_distill.utils.tensors import map_tensors
from tests.stores import PREFIX, STUDENT_VOCABULARY, Stores
from tests.teacher.conftest import make_teacher
from tests.training.conftest import target_of
from tests.training.folders import WINDOWS, Folders, make_folders, make_params

SETTINGS = TargetSettings(2.0, "map_then_temper", "sampled")
WORKERS = (0, 1, 2)
ALL_WINDOWS = (0, 1, 2, 3, 4)
NO_TENSOR = torch.zeros(())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("loader"), make_teacher("qwen3_moe_top1"))


def batch_reader(folders: Folders, memory_bytes: int = 10**6) -> BatchReader:
    split = open_split(folders.root / "windows/train", folders.root / "targets/train")
    vocabulary_map = load_vocabulary_map(folders.root / "windows/vocabulary_map", split.windows)
    assert split.shards is not None
    targets = WindowTargets(split.windows, split.shards, vocabulary_map, SETTINGS, memory_bytes)
    return BatchReader(split, targets, with_states=True, chunk_tokens=50)


def of_stores(stores: Stores, **changes: Any) -> BatchReader:
    """A reader of small stores whose teacher has no states."""
    targets = WindowTargets(stores.student, stores.targets, rule_map(stores.student_ids), SETTINGS)
    known: dict[str, Any] = {"targets": targets, "with_states": True, "chunk_tokens": 7}
    return BatchReader(Split(stores.student, stores.targets), **known | changes)


def tensors_of(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return NO_TENSOR

    map_tensors(batch, keep)
    return found


def assert_same(found: Batch, expected: Batch) -> None:
    """To the bit."""
    assert map_tensors(found, lambda _tensor: NO_TENSOR) == map_tensors(expected, lambda _tensor: NO_TENSOR)
    pairs = list(zip(tensors_of(found), tensors_of(expected), strict=True))
    assert len(pairs) > 15
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)


def two_epochs() -> Iterator[BatchRequest]:
    """Every window twice, in another order, with other noise."""
    for step, window in enumerate([*range(0, 24, 4), *range(20, -1, -4)]):
        yield from requests(range(window, window + 4), 2, noise_seed=step)


def test_a_batch_holds_the_windows_of_its_request(stores: Stores) -> None:
    batch = of_stores(stores).read(BatchRequest(ALL_WINDOWS))
    longest, first = max(map(len, stores.token_ids)), 0
    assert batch.windows == ALL_WINDOWS
    assert batch.input_ids_BL.shape == (5, longest)
    for place, (ids, rows) in enumerate(zip(stores.token_ids, stores.teacher_rows, strict=True)):
        assert batch.input_ids_BL[place].tolist() == [PREFIX, *ids, *[PREFIX] * longest][:longest]
        positions = slice(first, first + len(ids))
        assert batch.text.labels_N[positions].tolist() == ids
        assert batch.places_N[positions].tolist() == [place * longest + each for each in range(len(ids))]
        assert target_of(batch).has_target_N[positions].tolist() == [row >= 0 for row in rows]
        first += len(ids)
    counts = batch.counts
    assert (counts.tokens, counts.places, counts.hidden) == (first, 5 * longest, 0)
    assert counts.with_target == sum(row >= 0 for rows in stores.teacher_rows for row in rows)
    assert counts.n_bytes == 3 * first
    assert [(each.start, each.stop) for each in batch.text.stretches] == list(
        itertools.pairwise([*range(0, first, 7), first])
    )


def test_each_micro_batch_of_each_step_has_dropout_of_its_own(stores: Stores) -> None:
    reader = of_stores(stores)
    wanted = [request for step in (0, 1) for request in requests(ALL_WINDOWS, 2, noise_seed=step)]
    seeds = [reader.read(request).dropout_seed for request in wanted]
    assert len(set(seeds)) == len(seeds) == 6
    assert [reader.read(request).dropout_seed for request in reversed(wanted)] == seeds[::-1], "whoever reads them"


def test_a_batch_holds_the_targets_of_its_windows_one_after_the_other(stores: Stores) -> None:
    targets = WindowTargets(stores.student, stores.targets, rule_map(stores.student_ids), SETTINGS)
    whole, first = target_of(of_stores(stores).read(BatchRequest((2, 0)))), 0
    for number in (2, 0):
        target, n = targets.of(number), len(stores.token_ids[number])
        own = (whole.entry_positions_Z >= first) & (whole.entry_positions_Z < first + n)
        assert torch.equal(whole.entry_positions_Z[own] - first, target.entry_positions_Z)
        assert torch.equal(whole.entry_ids_Z[own], target.entry_ids_Z)
        assert torch.equal(whole.entry_probs_Z[own], target.entry_probs_Z)
        first += n
    assert len(whole) == first


def test_what_is_not_wanted_is_not_read(folders: Folders) -> None:
    split = open_split(folders.root / "windows/train", folders.root / "targets/train")
    batch = BatchReader(split, None, with_states=False, chunk_tokens=50).read(BatchRequest((0, 1)))
    assert (batch.text.target, batch.runs) == (None, None)
    assert split.shards is not None
    assert not split.shards._shards, "no file of the shards was opened"


def test_without_shards_there_is_text_alone(stores: Stores) -> None:
    batch = BatchReader(Split(stores.student, None), None, True, 7).read(BatchRequest(ALL_WINDOWS))
    assert (batch.text.target, batch.runs) == (None, None)
    assert (batch.counts.with_target, batch.counts.hidden) == (0, 0)
    assert [(each.entries, each.samples) for each in batch.text.stretches] == [((0, 0), (0, 0))] * 7


def test_the_target_of_a_position_knows_the_token_before_it(stores: Stores) -> None:
    """With a merge of every two ids, of which one pair never meets: the first token, and an odd one after it."""
    ids = torch.arange(STUDENT_VOCABULARY)
    lefts, rights = (each.flatten() for each in torch.meshgrid(ids, ids, indexing="ij"))
    results = len(ids) + torch.arange(len(ids) ** 2)
    rules = merge_rules(Merges(lefts, rights, results), len(ids) + len(results))
    window = 4
    previous = [PREFIX, *stores.token_ids[window][:-1]]
    aligned = [place for place, row in enumerate(stores.teacher_rows[window]) if row >= 0]
    last = previous[aligned[0]]
    met = pair_keys(lefts, rights)[(lefts != last) | (rights % 2 == 0)]
    plain = rule_map(stores.student_ids)

    def target(vocabulary_map: VocabularyMap) -> SparseTarget:
        return WindowTargets(stores.student, stores.targets, vocabulary_map, SETTINGS).of(window)

    before, after = target(plain), target(replace(plain, merges=replace(rules, met=met)))
    changed = {place for place in aligned if entries_at(before, place) != entries_at(after, place)}
    assert aligned[0] in changed
    assert changed <= {place for place in aligned if previous[place] == last}


def entries_at(target: SparseTarget, position: int) -> list[int]:
    ids: list[int] = target.entry_ids_Z[target.entry_positions_Z == position].tolist()
    return ids


def test_requests_divide_the_windows_of_a_step() -> None:
    assert requests([5, 3, 9, 1, 4], 2, noise_seed=8) == [
        BatchRequest((5, 3), 8),
        BatchRequest((9, 1), 8),
        BatchRequest((4,), 8),
    ]


@pytest.mark.parametrize("memory_bytes", [0, 30_000, 10**8])
@pytest.mark.parametrize("workers", WORKERS)
def test_batches_are_the_same_for_any_number_of_workers(folders: Folders, workers: int, memory_bytes: int) -> None:
    expected = [batch_reader(folders, 0).read(request) for request in two_epochs()]
    before = torch.get_rng_state()
    found = list(load_batches(batch_reader(folders, memory_bytes), two_epochs(), LoaderSettings(workers, False)))
    assert [batch.windows for batch in found] == [request.windows for request in two_epochs()]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert torch.equal(torch.get_rng_state(), before), "no number of the global generator is drawn"
    assert not multiprocessing.active_children()


PARENT = """
import multiprocessing, os, sys, time
from filelock import FileLock
from torch.utils.data import Dataset
from moe_distill.batches.loader import LoaderSettings, load_batches
from moe_distill.utils.signals import postponed_signals

class Numbers(Dataset):
    def __getitem__(self, number):
        return number

with FileLock("lock"), postponed_signals() as postponed:
    batches = load_batches(Numbers(), iter(range(10**9)), LoaderSettings(2, pin_memory=False))
    next(batches), next(batches)  # one of each worker
    workers = multiprocessing.active_children()
    print(*(worker.pid for worker in workers), flush=True)
    while not postponed.arrived and sys.argv[1] != "exit":
        time.sleep(0.01)
    time.sleep(0.2)  # a worker that has died of the signal is noticed
    print(sum(worker.is_alive() for worker in workers), next(batches), flush=True)
"""


@pytest.mark.parametrize("ends", ["SIGTERM", "SIGINT", "SIGKILL", "exit"])
def test_workers_live_as_long_as_their_parent(tmp_path: Path, ends: str) -> None:
    """Through a signal to the whole group, which the parent obeys later; and no longer, though it could not end them.

    The parent leaves its batches open, and holds a lock.
    """
    command = [sys.executable, "-c", PARENT, ends]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(number)) for number in parent.stdout.readline().split()]
        assert len(workers) == 2
        if ends != "exit":
            os.killpg(parent.pid, signal.Signals[ends])
        if ends != "SIGKILL":
            assert parent.stdout.readline() == "2 2\n"
        assert parent.wait(30) == (-signal.SIGKILL if ends == "SIGKILL" else 0)
    alive = psutil.wait_procs(workers, timeout=2)[1]
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []  # whom init is slow to bury
    with FileLock(tmp_path / "lock", timeout=0):
        pass


def trained(folders: Folders, name: str, **changes: Any) -> tuple[list[bytes], dict[str, Tensor]]:
    """Curves and weights of both phases' steps."""
    params = make_params(max_steps=16, checkpoint_every=100, **changes)
    curves: list[bytes] = []
    weights: dict[str, Tensor] = {}
    for stage in (train_kd, train_router):
        outputs = folders.outputs(f"{name} {stage.__name__}")
        stage(params, folders.inputs, outputs)
        curves += [(outputs.work / each).read_bytes() for each in (CURVE_NAME, VALIDATION_CURVE_NAME)]
        exported = load_file(outputs.student / "model.safetensors")
        weights |= {f"{stage.__name__}.{name}": weight for name, weight in exported.items()}
    return curves, weights


@pytest.fixture(scope="module")
def without_workers(folders: Folders) -> tuple[list[bytes], dict[str, Tensor]]:
    return trained(folders, "workers 0", loader_workers=0, target_memory_mb=0)


@pytest.mark.parametrize(("workers", "memory_mb"), [(0, 64), (1, 0), (2, 64)])
def test_a_training_is_the_same_for_any_number_of_workers(
    folders: Folders, without_workers: tuple[list[bytes], dict[str, Tensor]], workers: int, memory_mb: int
) -> None:
    name = f"workers {workers} {memory_mb}"
    curves, weights = trained(folders, name, loader_workers=workers, target_memory_mb=memory_mb)
    expected_curves, expected = without_workers
    assert curves == expected_curves
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())


@pytest.mark.parametrize("workers", WORKERS)
def test_what_a_user_can_mend_reaches_the_caller_as_it_is(tmp_path: Path, workers: int) -> None:
    folders = make_folders(tmp_path, make_teacher("dense"))
    path = folders.root / "targets/train/shard_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    good = batch_reader(folders).read(BatchRequest((0, 1)))
    read: list[Batch] = []
    with pytest.raises(DataError) as expected:
        batch_reader(folders).read(BatchRequest((22, 23)))
    with pytest.raises(DataError) as caught:
        read.extend(load_batches(batch_reader(folders), two_epochs(), LoaderSettings(workers, False)))
    assert type(caught.value) is DataError
    assert str(caught.value) == str(expected.value)
    assert "\n" not in str(caught.value)
    assert "shard_00001.safetensors is corrupt; sha256" in str(caught.value)
    assert vars(caught.value) == vars(expected.value)
    assert len(read) >= 6, "all that stand before it"
    assert_same(read[0], good)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_ends_a_training_with_its_message(tmp_path: Path, workers: int) -> None:
    folders = make_folders(tmp_path, make_teacher("dense"))
    (folders.root / "targets/train/shard_00001.safetensors").unlink()
    with pytest.raises(DataError, match=r"shard_00001.safetensors does not exist; its index lists it; run: dvc") as one:
        train_kd(make_params(loader_workers=workers), folders.inputs, folders.outputs("damaged"))
    assert one.value.exit_code == 3
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("stage", [train_kd, train_router])
def test_nothing_is_read_in_a_step(folders: Folders, monkeypatch: pytest.MonkeyPatch, stage: Any) -> None:
    """Not even without workers, and with no target kept."""
    reads: list[str] = []
    is_in_step = False

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            assert not is_in_step, f"{name} is called in a step"
            reads.append(name)
            return function(*arguments)

        monkeypatch.setattr(owner, name, watched)

    def step(*arguments: Any, **keywords: Any) -> Update:
        nonlocal is_in_step
        is_in_step = True
        try:
            return optimizer_step(*arguments, **keywords)
        finally:
            is_in_step = False
            reads.append("step")

    watch(ShardReader, "_open")
    watch(shard_reader, "sha256_file")
    watch(BatchReader, "read")
    watch(WindowTargets, "of")
    monkeypatch.setattr(loop, "optimizer_step", step)
    params = make_params(max_steps=20, loader_workers=0, target_memory_mb=0)
    stage(params, folders.inputs, folders.outputs(f"reads {stage.__name__}"))
    assert reads.count("step") >= 2
    assert reads.count("of") == 8 * reads.count("step") + WINDOWS["validation"]
    assert {"_open", "read", "of"} <= set(reads[reads.index("step") :]), "between the steps"
