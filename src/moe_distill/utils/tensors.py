"""Dataclasses of tensors, treated as one."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Tensors = TypeVar("Tensors")


def to_device(value: Tensors, device: torch.device) -> Tensors:
    """A copy of a (nested) dataclass with every tensor of it on `device`; all else is as it was."""
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=True))


def map_tensors(value: Tensors, function: Callable[[Tensor], Tensor]) -> Tensors:
    """A copy of a (nested) dataclass with every tensor of it replaced; all else is as it was."""
    mapped: Tensors = _mapped(value, function)
    return mapped


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: _mapped(getattr(value, field.name), function) for field in fields(value)})
    return value
