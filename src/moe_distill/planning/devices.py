"""Devices that a run is planned for: what they sustain, not what their data sheets promise.

A share of the peak is what training a small transformer in eager PyTorch gets of it. Shares are guesses by experience
until `moe-distill plan --measure` has run on the device.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from moe_distill.errors import ConfigError
from moe_distill.utils.machine import usable_cores

GB = 1e9
TERA = 1e12


@dataclass(frozen=True)
class Device:
    """What a device sustains."""

    name: str
    capability: tuple[int, int] | None  # compute capability; None: a CPU
    memory: float | None  # bytes; None: the machine's
    flops: Mapping[str, float]  # FLOP/s of matrix products by precision; a precision that is left out does not exist
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s from one to the next, for gradients

    @property
    def fuses_attention(self) -> bool:
        """Whether it has flash attention, which never holds the attention's probabilities."""
        return self.capability is not None and self.capability >= (8, 0)


# fp32, fp16, bf16: peak in TFLOP/s times the share of it
DEVICES = {
    each.name: each
    for each in (
        # fp16 without tensor cores: products run at about the speed of fp32, and read half the bytes
        Device("P100", (6, 0), 16 * GB, {"fp32": 9.3 * 0.30 * TERA, "fp16": 18.7 * 0.16 * TERA}, 0.5e12, 5e9),
        Device("T4", (7, 5), 16 * GB, {"fp32": 8.1 * 0.30 * TERA, "fp16": 65.0 * 0.15 * TERA}, 0.22e12, 5e9),
        Device("V100", (7, 0), 16 * GB, {"fp32": 15.7 * 0.35 * TERA, "fp16": 125.0 * 0.20 * TERA}, 0.7e12, 50e9),
        Device(
            "A100",
            (8, 0),
            40 * GB,
            {"fp32": 19.5 * 0.50 * TERA, "fp16": 312.0 * 0.30 * TERA, "bf16": 312.0 * 0.30 * TERA},
            1.2e12,
            150e9,
        ),
        Device(
            "H100",
            (9, 0),
            80 * GB,
            {"fp32": 67.0 * 0.40 * TERA, "fp16": 989.0 * 0.25 * TERA, "bf16": 989.0 * 0.25 * TERA},
            2.3e12,
            250e9,
        ),
    )
}
CPU_CORE_FLOPS = {"fp32": 40e9, "fp16": 4e9, "bf16": 10e9}  # of one core with AVX2, without units for half precision
CPU = "CPU"
NAMES = (*DEVICES, CPU)


def find_device(name: str | None) -> Device:
    """A device of the table; None: the one that is here.

    Raises:
        ConfigError: the table has no device of that name.
    """
    if name is None:
        return this_device()
    known = {each.lower(): each for each in NAMES}
    if name.lower() not in known:
        raise ConfigError(f"`--device {name}` is not known", fix=f"choose one of {', '.join(NAMES)}")
    return _cpu() if known[name.lower()] == CPU else DEVICES[known[name.lower()]]


def this_device() -> Device:
    """The GPU that is here, with its own memory, else the CPU. One that the table lacks is taken for the nearest."""
    if not torch.cuda.is_available():
        return _cpu()
    properties, capability = torch.cuda.get_device_properties(0), torch.cuda.get_device_capability()
    named = [device for name, device in DEVICES.items() if re.search(rf"\b{name}\b", properties.name)]  # no T400
    older = [each for each in DEVICES.values() if each.capability is not None and each.capability <= capability]
    found = named[0] if named else max(older, key=lambda each: each.capability or (0, 0), default=DEVICES["P100"])
    name = properties.name if named else f"{properties.name}, taken for a {found.name}"
    return replace(found, name=name, capability=capability, memory=float(properties.total_memory))


def _cpu() -> Device:
    cores = usable_cores()
    flops = {precision: cores * each for precision, each in CPU_CORE_FLOPS.items()}
    return Device(CPU, None, None, flops, bandwidth=10e9, link=1e9)
