"""What `moe-distill doctor` finds in seconds (R25)."""

from pathlib import Path

import pytest
import torch

from moe_distill import doctor
from moe_distill.config import Params, load_params

ROOT = Path(__file__).parents[1]


def findings(params: Params) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine(params)}


def test_r25_doctor_says_parameters_device_precision_and_disk() -> None:
    found = findings(load_params(ROOT))
    assert "profile tiny" in found["parameters"].text
    assert "GiB free" in found["disk"].text
    assert found["device"].ok


def test_r25_doctor_finds_a_gpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla P100")
    monkeypatch.setattr("moe_distill.runtime.probe", lambda _device: "no kernel image is available")
    found = findings(load_params(ROOT))["device"]
    assert not found.ok
    assert "Tesla P100" in found.text
    assert "cu126" in found.text


def test_r25_doctor_finds_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SPARE_BYTES", 1 << 60)
    assert not findings(load_params(ROOT))["disk"].ok
