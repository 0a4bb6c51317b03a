"""The table of devices, and the one that is here."""

from types import SimpleNamespace

import pytest
import torch

from moe_distill.errors import ConfigError
from moe_distill.planning.devices import CPU_CORE_FLOPS, DEVICES, find_device, this_device


def test_a_device_is_found_by_its_name() -> None:
    assert find_device("p100") is DEVICES["P100"]
    assert find_device("cpu").capability is None
    with pytest.raises(ConfigError, match="`--device TPU` is not known; choose one of P100, T4, V100, A1"):
        find_device("TPU")


@pytest.mark.parametrize("name", DEVICES)
def test_bf16_exists_from_compute_capability_8_on(name: str) -> None:
    device = DEVICES[name]
    assert device.capability is not None
    assert ("bf16" in device.flops) == (device.capability >= (8, 0)) == device.fuses_attention
    assert {"fp32", "fp16"} <= set(device.flops)


def test_without_a_gpu_the_cpu_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {0, 1, 2})
    assert this_device().flops == {precision: 3 * flops for precision, flops in CPU_CORE_FLOPS.items()}
    assert this_device().memory is None


@pytest.mark.parametrize(
    ("named", "capability", "taken_for"),
    [
        ("Tesla P100-PCIE-16GB", (6, 0), "P100"),
        ("Tesla T4", (7, 5), "T4"),
        ("NVIDIA H100 80GB HBM3", (9, 0), "H100"),
        ("NVIDIA L4", (8, 9), "A100"),
        ("NVIDIA T400", (7, 5), "T4"),
        ("Tesla K80", (3, 7), "P100"),
    ],
)
def test_a_gpu_that_is_here_has_its_own_memory(
    monkeypatch: pytest.MonkeyPatch, named: str, capability: tuple[int, int], taken_for: str
) -> None:
    properties = SimpleNamespace(name=named, total_memory=12 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    device = this_device()
    assert (device.memory, device.flops) == (12e9, DEVICES[taken_for].flops)
    assert device.name.startswith(named)
    assert ("taken for" in device.name) == (taken_for not in named.replace("-", " ").split())
