"""Device, precision, seeds and clock of a stage."""

import os
import random
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from moe_distill.errors import ConfigError, ResourceError

MINIMUM_LOSS_SCALE = 1.0  # below it gradients underflow, and a scale of 0 would never grow again
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Runtime:
    """Device and precision of a stage."""

    device: torch.device
    dtype: torch.dtype  # of the forward pass under autocast; losses and weights stay fp32

    @property
    def autocast(self) -> bool:
        return self.dtype is not torch.float32

    @property
    def scales_loss(self) -> bool:
        """Whether gradients are scaled: those in fp16 underflow without it, bf16 has the range of fp32."""
        return self.dtype is torch.float16

    def describe(self) -> str:
        """Device, precision and CPU threads, for a log line."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name}, {str(self.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"


def resolve_precision(
    precision: Literal["auto", "fp32", "fp16", "bf16"], compute_capability: tuple[int, int] | None
) -> torch.dtype:
    """The dtype that a `precision` key stands for on a device.

    `auto` is bf16 from compute capability 8 on, fp16 on older GPUs, fp32 on CPU. `torch.cuda.is_bf16_supported()` is
    no help here: it is True on a P100, where bf16 is emulated.

    Args:
        compute_capability: (major, minor) of the GPU, None for a CPU.

    Raises:
        ConfigError: bf16 on a GPU that only emulates it.
    """
    if precision == "bf16" and compute_capability is not None and compute_capability < (8, 0):
        raise ConfigError(
            "`precision: bf16` needs compute capability 8.0",
            f"this GPU has {compute_capability[0]}.{compute_capability[1]} and would emulate it",
            "set `precision: auto` (fp16 with loss scaling here)",
        )
    if precision != "auto":
        return PRECISIONS[precision]
    if compute_capability is None:
        return torch.float32
    return torch.bfloat16 if compute_capability >= (8, 0) else torch.float16


def probe(device: torch.device) -> str | None:
    """Compute an fp16 matrix product on a device; returns the reason why it failed, None where it is right.

    `torch.cuda.is_available()` is True also on a GPU for which the installed torch has no kernels.
    """
    try:
        ones = torch.ones(64, 64, device=device, dtype=torch.float16)
        total = float((ones @ ones).sum(dtype=torch.float32))  # 262,144 is beyond fp16
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return None if total == 64.0**3 else f"a product of ones summed to {total}"


def make_runtime(precision: Literal["auto", "fp32", "fp16", "bf16"]) -> Runtime:
    """Choose the GPU where there is one, else the CPU, and resolve the precision.

    Raises:
        ResourceError: the installed torch has no kernels for the GPU.
        ConfigError: the device cannot compute in that precision.
    """
    if not torch.cuda.is_available():
        return Runtime(torch.device("cpu"), resolve_precision(precision, None))
    device = torch.device("cuda")
    failure = probe(device)
    if failure is not None:
        raise ResourceError(
            f"the GPU {torch.cuda.get_device_name()} cannot run a kernel of this torch ({torch.__version__})",
            failure,
            "install a wheel with its kernels (a P100 needs a cu126 build), or hide it: CUDA_VISIBLE_DEVICES=",
        )
    return Runtime(device, resolve_precision(precision, torch.cuda.get_device_capability()))


def update_loss_scale(scaler: torch.amp.GradScaler, applied: bool, loss_scale: float) -> None:
    """Let the loss scale grow, or fall after a step that was not applied, to 1 at the lowest.

    Args:
        loss_scale: the present one, which the device would have to be asked for.
    """
    scaler.update()
    if scaler.is_enabled() and not applied and loss_scale * scaler.get_backoff_factor() < MINIMUM_LOSS_SCALE:
        scaler.update(MINIMUM_LOSS_SCALE)


def seconds_when_done(device: torch.device) -> float:
    """A clock, read when the device has done what it was asked: a CUDA kernel runs after its launch returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask torch for deterministic kernels where they exist."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it products on a GPU are not deterministic
    # Nothing reads uninitialised memory here, and filling it takes 5% of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
