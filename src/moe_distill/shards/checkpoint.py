"""Checkpoints as atomic, hashed folders: the newest valid one is taken, a broken one is named and skipped.

A folder `checkpoint_000200` holds `tensors.safetensors`, `state.json` and, written last, `manifest.json` with the
SHA-256 of both. It gets its name by a rename when all three are on the disk. An optimizer's moments are tensors among
others, by the names of the parameters.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_distill.errors import DataError
from moe_distill.log import log
from moe_distill.utils.files import Json, sha256_file, sync, write_json

KEPT = 2
FILES = ("tensors.safetensors", "state.json")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW


@dataclass(frozen=True)
class Checkpoint:
    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Json]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint below `folder` and remove all but the newest ones.

    One of more steps is broken, or it had been taken. It is removed too, or the new one would be the oldest.
    """
    final = folder / f"checkpoint_{checkpoint.step:06d}"
    incoming = folder / f".{final.name}.{os.getpid()}.tmp"
    for left in folder.glob(".checkpoint_*.tmp"):  # by a process that was killed while it wrote
        shutil.rmtree(left)
    incoming.mkdir(parents=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, incoming / FILES[0])
        sync(incoming / FILES[0])
        write_json(incoming / FILES[1], checkpoint.state)
        write_json(incoming / "manifest.json", {name: sha256_file(incoming / name) for name in FILES})
        shutil.rmtree(final, ignore_errors=True)
        incoming.rename(final)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)  # half a checkpoint, where the disk is full
    sync(folder)
    folders = _folders(folder)
    for old in [*folders[: folders.index(final)], *folders[folders.index(final) + KEPT :]]:
        shutil.rmtree(old)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint below `folder`, or None."""
    for candidate in _folders(folder):
        reason = _fault(candidate)
        if reason is None:
            state = json.loads((candidate / FILES[1]).read_text(encoding="utf-8"))
            return Checkpoint(_step(candidate), load_file(candidate / FILES[0]), state)
        log(f"warning: {candidate.name} is broken ({reason}); the one before it is taken")
    return None


def check_checkpoint(folder: Path) -> None:
    """Read a checkpoint through.

    Raises:
        DataError: a file of it is missing or differs from its hash.
    """
    reason = _fault(folder)
    if reason is not None:
        raise DataError(f"{folder} is broken", reason, "run: dvc repro; it continues from the one before it")


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    """The moments of each parameter as `moment:parameter name`."""
    return {
        f"{moment}:{names[parameter]}": optimizer.state[parameter][moment]
        for parameter in _parameters(optimizer)
        for moment in MOMENTS
        if parameter in optimizer.state
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: dict[Tensor, str], tensors: dict[str, Tensor]) -> None:
    """Put saved moments back; parameters without any start afresh."""
    for parameter in _parameters(optimizer):
        name = names[parameter]
        if f"step:{name}" in tensors:
            saved = {moment: tensors[f"{moment}:{name}"].clone() for moment in MOMENTS}
            optimizer.state[parameter] = {moment: tensor.to(parameter.device) for moment, tensor in saved.items()}


def _folders(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("checkpoint_*"), key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint_"))


def _fault(candidate: Path) -> str | None:
    try:
        manifest = json.loads((candidate / "manifest.json").read_text(encoding="utf-8"))
        differing = [name for name in FILES if sha256_file(candidate / name) != manifest[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{differing[0]} differs from its hash" if differing else None


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
