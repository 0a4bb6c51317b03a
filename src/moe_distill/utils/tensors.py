"""Dataclasses of tensors."""

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Tensors = TypeVar("Tensors")


def to_device(value: Tensors, device: torch.device) -> Tensors:
    """A copy of a dataclass with every tensor in it, also in nested dataclasses, on `device`."""
    moved: Tensors = _moved(value, device)
    return moved


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return value
