"""The processes that compute one thing together: this one alone, or the ranks that torchrun has started.

Tensors on a GPU travel by NCCL; what lies on the CPU, such as counts and flags, by gloo. A sum arrives with the same
bits in every process, so that all of them take the same decisions.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_ELEMENTS = 2**24  # of gradients that travel together: 64 MB in fp32
PATIENCE = timedelta(days=1)  # in an exchange: at the end of a capture one may wait for a slower GPU's files


class PeerLostError(Exception):
    """Another process has ended; it knows why, this one does not."""


@dataclass(frozen=True)
class Processes:
    """This process among those that compute together. Every method is called by all of them, in the same order."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one logs, saves and publishes."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def totals(self, numbers: Sequence[int]) -> list[int]:
        """The sum of each number over all processes."""
        if self.count == 1:
            return list(numbers)
        summed: list[int] = self.total(torch.tensor(numbers, dtype=torch.int64)).tolist()
        return summed

    def anywhere(self, flags: Sequence[bool]) -> list[bool]:
        """Which flags are set in at least one process."""
        if self.count == 1:
            return list(flags)
        reduced = self._reduced(torch.tensor(flags, dtype=torch.uint8), dist.ReduceOp.MAX)
        return [bool(flag) for flag in reduced.tolist()]

    def rows(self, values: Tensor) -> Tensor:
        """The rows of all processes, those of rank 0 first; each may have its own number of them, or none."""
        if self.count == 1:
            return values
        lengths = self.totals([len(values) if rank == self.rank else 0 for rank in range(self.count)])
        padded = values.new_zeros(max(lengths), *values.shape[1:])
        padded[: len(values)] = values
        gathered = [torch.empty_like(padded) for _ in lengths]
        with _peers():
            dist.all_gather(gathered, padded)
        return torch.cat([rows[:length] for rows, length in zip(gathered, lengths, strict=True)])

    def text(self, value: str) -> str:
        """The text that rank 0 has."""
        if self.count == 1:
            return value
        padded = torch.zeros(4096, dtype=torch.uint8)
        encoded = value.encode()
        if self.is_first:
            padded[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        return bytes(self.total(padded).tolist()).rstrip(b"\0").decode()

    def wait(self) -> None:
        """Go on when all have come here."""
        self.total(torch.zeros(()))

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.count > 1:
            with _peers():
                dist.all_reduce(values, operation)
        return values


ALONE = Processes()


def sum_gradients(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    """Add up the gradients of all processes; a parameter that has none in any of them keeps none."""
    if processes.count == 1:
        return
    wanted = processes.anywhere([parameter.grad is not None for parameter in parameters])
    gradients = []
    for parameter, is_wanted in zip(parameters, wanted, strict=True):
        if is_wanted and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = processes.total(torch.cat([gradient.flatten() for gradient in bucket]))
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(each.numel() for each in bucket) + gradient.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the other processes that torchrun has started; each has a GPU of its own where there are any.

    They part at the end of a block that has gone well. After an error the caller is to end the process instead: to
    part from others that wait in an exchange which this one will not join could take as long as their patience.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _peers():
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=PATIENCE)
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of torch.distributed, whose message says no more
        raise PeerLostError(str(error)) from error
