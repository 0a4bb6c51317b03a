"""A step does not wait for the device: it reads from it once, and sends nothing to it that Python made.

Counted on the CPU, where an operation that a GPU would have to be waited for is called all the same.
"""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from moe_distill.batches.batch import Batch
from moe_distill.config.params import ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS, TEXT_TERMS
from moe_distill.training.objective import Objective, Student
from moe_distill.training.schedule import LM_ONLY, objective_at
from moe_distill.training.step import optimizer_step
from moe_distill.training.trainer import make_trainer
from moe_distill.utils.device import Runtime
from tests.training.conftest import make_batch

TERMS = {
    "train_kd": {"lm", "kd"},
    "train_router": {*TEXT_TERMS, *HIDDEN_TERMS, *ROUTER_TERMS},
    "control": {"lm"},
}
aten = torch.ops.aten
READS = {  # what they give, or its shape, depends on values
    aten._local_scalar_dense: "item",
    aten.equal: "equal",
    aten.is_nonzero: "is_nonzero",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten.bincount: "bincount",
    aten.repeat_interleave: "repeat_interleave",
    aten._unique: "unique",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten.unique_dim_consecutive: "unique",
}
INDEXED = {aten.index: 1, aten.index_put: 1, aten.index_put_: 1, aten._index_put_impl_: 1}  # argument of the indices
# Once a forward pass: transformers asks whether windows are packed into one row, which positions alone tell it.
EXEMPT = "find_packed_sequence_indices"
TO_HOST = {Tensor.tolist: "tolist", Tensor.cpu: "cpu", Tensor.numpy: "numpy"}  # seen by no dispatcher on the CPU


class WaitsForTheDevice(TorchDispatchMode):
    """Counts what would stop a GPU's queue, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()
        self._calls = _Calls(self.seen)

    def __enter__(self) -> "WaitsForTheDevice":
        self._stack = ExitStack()
        self._stack.enter_context(self._calls)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_dispatch__(
        self, function: Any, _types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        packet = function.overloadpacket
        if packet is aten._local_scalar_dense and _is_called_by(EXEMPT):
            self.seen[EXEMPT] += 1
        elif packet in READS:
            self.seen[READS[packet]] += 1
        elif packet is aten.lift_fresh:
            self.seen["a tensor of Python values"] += 1
        elif packet in INDEXED and any(_is_mask(each) for each in arguments[INDEXED[packet]]):
            self.seen["a mask as index"] += 1
        return function(*arguments, **(keywords or {}))


class _Calls(TorchFunctionMode):
    """Counts copies to the host."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, function: Any, _types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        if function in TO_HOST:
            self._seen[TO_HOST[function]] += 1
        return function(*arguments, **(keywords or {}))


def _is_called_by(name: str) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


class _ReadsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float(gradients[0].sum())


def _backward(values: Tensor) -> None:
    free = values.float().requires_grad_()
    _ReadsInBackward.apply(free).sum().backward()  # type: ignore[no-untyped-call]


OFFENCES: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "item": (lambda values: values[0].item(), "item"),
    "float": (lambda values: float(values[0]), "item"),
    "bool": (lambda values: bool((values > 1).all()), "item"),
    "in the backward pass": (_backward, "item"),
    "tolist": (lambda values: values.tolist(), "tolist"),
    "cpu": (lambda values: values.cpu(), "cpu"),
    "numpy": (lambda values: values.numpy(), "numpy"),
    "nonzero": (lambda values: values.nonzero(), "nonzero"),
    "where": (lambda values: torch.where(values > 1), "nonzero"),
    "unique": (lambda values: values.unique(return_inverse=True), "unique"),
    "unique_consecutive": (lambda values: values.unique_consecutive(), "unique"),
    "masked_select": (lambda values: values.masked_select(values > 1), "masked_select"),
    "bincount": (lambda values: values.bincount(), "bincount"),
    "repeat_interleave": (lambda values: values.repeat_interleave(values), "repeat_interleave"),
    "equal": (lambda values: torch.equal(values, values), "equal"),
    "mask": (lambda values: values[values > 1], "a mask as index"),
    "assignment to a mask": (lambda values: values.clone().__setitem__(values > 1, values[:1]), "a mask as index"),
    "tensor": (lambda _values: torch.tensor([1.0, 2.0]), "a tensor of Python values"),
    "list as index": (lambda values: values[[0, 1]], "a tensor of Python values"),
}
HARMLESS: dict[str, Callable[[Tensor], object]] = {
    "arange": lambda values: torch.arange(3) + values,
    "zeros": lambda values: torch.zeros(3) + values,
    "masked_fill": lambda values: values.masked_fill(values > 1, 0),
    "index": lambda values: values[values],
    "index_select": lambda values: values.index_select(0, values),
    "slice": lambda values: values[1:],
    "constant": lambda values: values * 2.5 + 1,
}


@pytest.mark.parametrize("name", OFFENCES)
def test_the_counter_sees(name: str) -> None:
    offend, expected = OFFENCES[name]
    values = torch.tensor([0, 2, 1])
    with WaitsForTheDevice() as waits:
        offend(values)
    assert waits.seen[expected] >= 1


@pytest.mark.parametrize("name", HARMLESS)
def test_the_counter_does_not_see(name: str) -> None:
    values = torch.tensor([0, 2, 1])
    with WaitsForTheDevice() as waits:
        HARMLESS[name](values)
    assert not waits.seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("stage", ["train_kd", "train_router", "control"])
def test_a_step_reads_from_the_device_once(
    student: Student, experiment: ExperimentParams, train: Train, stage: str, dtype: torch.dtype
) -> None:
    runtime = Runtime(torch.device("cpu"), dtype)
    trainer = make_trainer(student, train, runtime, 0)
    objective = LM_ONLY if stage == "control" else objective_at(0 if stage == "train_kd" else 90, experiment, train, {})

    def step(parts: list[Batch], objective: Objective) -> set[str]:
        update = optimizer_step(
            student, parts, objective, trainer.optimizer, trainer.scaler, runtime, train.gradient_clip
        )
        assert update.applied
        return set(update.metrics.terms)

    def parts(seed: int) -> list[Batch]:
        return [make_batch(seed + each, [12, 9], stage == "train_router", stage != "control") for each in range(2)]

    for seed in (0, 10):  # the first step makes the optimizer's state
        batches = parts(seed)
        with WaitsForTheDevice() as waits:
            terms = step(batches, objective)
        assert waits.seen.pop(EXEMPT) == len(batches)
        assert waits.seen == {"tolist": 1}
        assert terms == TERMS[stage]
