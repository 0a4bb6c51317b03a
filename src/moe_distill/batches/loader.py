"""Batches, read and made ready outside the training step, by a DataLoader.

What a batch holds depends on its request alone, so any number of worker processes gives the same batches in the same
order; an order that is a function of seed and step needs no state to be resumed.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from moe_distill.batches.batch import Batch, Counts
from moe_distill.batches.hidden_runs import read_hidden_runs
from moe_distill.batches.split import Split
from moe_distill.errors import MoeDistillError
from moe_distill.losses.text_loss import Text
from moe_distill.shards.window_store import model_inputs
from moe_distill.targets.sparse_target import joined
from moe_distill.targets.stretches import stretches
from moe_distill.targets.window_targets import WindowTargets
from moe_distill.utils.processes import Processes


@dataclass(frozen=True)
class BatchRequest:
    """Which windows a micro-batch has, and the seed of the gate's noise and of dropout."""

    windows: tuple[int, ...]
    noise_seed: int = 0


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are read; none of it changes what they hold."""

    workers: int  # processes; 0: in the process that trains
    pin_memory: bool


class BatchReader(Dataset[Batch | MoeDistillError]):
    """Micro-batches by request. An error that a user can mend is returned, for a worker's would lose its form."""

    def __init__(self, split: Split, targets: WindowTargets | None, with_states: bool, chunk_tokens: int) -> None:
        self._split, self._targets = split, targets
        self._with_states, self._chunk_tokens = with_states, chunk_tokens

    def __getitem__(self, request: BatchRequest) -> Batch | MoeDistillError:
        try:
            return self.read(request)
        except MoeDistillError as error:
            return error

    def read(self, request: BatchRequest) -> Batch:
        """Read a micro-batch."""
        split, numbers = self._split, request.windows
        input_ids_BL, labels = model_inputs(split.windows, numbers)
        length = input_ids_BL.shape[1]
        places_N = torch.cat([torch.arange(len(ids)) + place * length for place, ids in enumerate(labels)])
        target = None if self._targets is None else joined([self._targets.of(number) for number in numbers])
        runs = None
        if self._with_states and split.shards is not None:
            runs = read_hidden_runs(split.windows, split.shards, numbers, length, request.noise_seed)
        return Batch(
            windows=numbers,
            input_ids_BL=input_ids_BL,
            places_N=places_N,
            text=Text(torch.cat(labels), target, stretches(len(places_N), self._chunk_tokens, target)),
            runs=runs,
            counts=Counts(
                tokens=len(places_N),
                with_target=0 if target is None else int(target.has_target_N.sum()),
                hidden=0 if runs is None else len(runs.filled_N),
                n_bytes=int(split.windows.byte_counts[list(numbers)].sum()),
                places=input_ids_BL.numel(),
            ),
            dropout_seed=(request.noise_seed * 1_000_003 + numbers[0]) % 2**63,
        )


def requests(windows: Sequence[int], micro_batch_windows: int, noise_seed: int = 0) -> list[BatchRequest]:
    """The micro-batches of a step or validation set, in order."""
    starts = range(0, len(windows), micro_batch_windows)
    return [BatchRequest(tuple(windows[start : start + micro_batch_windows]), noise_seed) for start in starts]


def share_of(wanted: list[BatchRequest], lengths: Tensor, processes: Processes) -> list[int]:
    """Which of the micro-batches of a step or validation set this process reads: numbers, ascending.

    They are dealt out longest first, there and back, so that all processes have about as much to do.

    Args:
        lengths: tokens of each window of the split, int64.
    """
    places = [len(request.windows) * int(lengths[list(request.windows)].max()) for request in wanted]
    order = sorted(range(len(wanted)), key=lambda number: -places[number])
    turns = (processes.rank, 2 * processes.count - 1 - processes.rank)
    return sorted(number for turn, number in enumerate(order) if turn % (2 * processes.count) in turns)


def load_batches(reader: BatchReader, wanted: Iterable[BatchRequest], settings: LoaderSettings) -> Iterator[Batch]:
    """The micro-batches of all requests, in order, made ahead of time where there are workers.

    Raises:
        MoeDistillError: that reading one raised.
    """
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=wanted,
        num_workers=settings.workers,
        pin_memory=settings.pin_memory,
        worker_init_fn=_belong_to_the_parent,
        generator=torch.Generator(),  # else it would draw a number from the global one
    )
    for batch in loader:
        if isinstance(batch, MoeDistillError):
            raise batch
        yield batch


def _belong_to_the_parent(_worker: int) -> None:
    """Signals to a group of processes (Ctrl-C, `timeout`) are for the one that trains: it decides when to stop.

    A worker ends with it, whatever ended it: locks of the parent are open in a worker too.
    """
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
