"""Precision by hardware, and seeds."""

import random

import numpy as np
import pytest
import torch

from moe_distill.config.values import Precision
from moe_distill.errors import ConfigError, ResourceError
from moe_distill.utils import device as runtime
from moe_distill.utils.device import Runtime, make_runtime, probe, resolve_precision, seconds_when_done, seed_everything

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("precision", "capability", "expected"),
    [
        ("auto", None, FP32),
        ("auto", (6, 0), FP16),
        ("auto", (7, 5), FP16),
        ("auto", (8, 0), BF16),
        ("auto", (9, 0), BF16),
        ("auto", (12, 0), BF16),
        ("fp32", None, FP32),
        ("fp32", (9, 0), FP32),
        ("fp16", (6, 0), FP16),
        ("fp16", (9, 0), FP16),
        ("fp16", None, FP16),
        ("bf16", None, BF16),
        ("bf16", (8, 0), BF16),
    ],
)
def test_r26_precision_by_compute_capability(
    precision: Precision, capability: tuple[int, int] | None, expected: torch.dtype
) -> None:
    assert resolve_precision(precision, capability) is expected


@pytest.mark.parametrize("capability", [(6, 0), (7, 5)])
def test_r26_emulated_bf16_is_refused(capability: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"this GPU has {capability[0]}\.{capability[1]}"):
        resolve_precision("bf16", capability)


@pytest.mark.parametrize(
    ("dtype", "autocast", "scales"), [(FP32, False, False), (FP16, True, True), (BF16, True, False)]
)
def test_r26_fp16_alone_scales_its_loss(dtype: torch.dtype, autocast: bool, scales: bool) -> None:
    made = Runtime(torch.device("cpu"), dtype)
    assert (made.autocast, made.scales_loss) == (autocast, scales)


def test_r26_precision_is_said_aloud() -> None:
    assert Runtime(torch.device("cpu"), BF16).describe().startswith("CPU, bfloat16, ")


def test_r26_without_a_gpu_auto_is_fp32_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert make_runtime("auto") == Runtime(torch.device("cpu"), FP32)


def test_r26_a_p100_gets_fp16_whatever_torch_says_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    monkeypatch.setattr(runtime, "probe", lambda _device: None)
    assert make_runtime("auto") == Runtime(torch.device("cuda"), FP16)


def test_a_device_that_computes_right_passes_the_probe() -> None:
    assert probe(torch.device("cpu")) is None


def test_a_product_that_is_wrong_fails_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ones", torch.zeros)
    assert probe(torch.device("cpu")) == "a product of ones summed to 0.0"


def test_a_device_without_kernels_fails_the_probe_with_its_reason() -> None:
    failure = probe(torch.device("meta"))  # holds no values: the sum cannot be read
    assert failure is not None
    assert "meta" in failure


def test_a_gpu_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P100")
    monkeypatch.setattr(runtime, "probe", lambda _device: "no kernel image is available")
    with pytest.raises(ResourceError, match=r"Tesla P100.*no kernel image"):
        make_runtime("auto")


def test_seeds_repeat_every_generator() -> None:
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        drawn = []
        for seed in (3, 3, 4):
            seed_everything(seed)
            drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    assert drawn[0] == drawn[1]
    assert all(first != other for first, other in zip(drawn[0], drawn[2], strict=True))


def test_the_clock_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    seconds_when_done(torch.device("cpu"))
    assert not waited
    seconds_when_done(torch.device("cuda"))
    assert waited == [torch.device("cuda")]
