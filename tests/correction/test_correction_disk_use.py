"""Estimates against real adapters, checkpoints and models."""

from pathlib import Path

import pytest

from moe_distill.correction.adapters import adapter_parameters, attach_adapters
from moe_distill.correction.correction_disk_use import least_memory, model_bytes, most_adapter_weights, work_bytes
from moe_distill.models.model_weights import tensor_shapes
from tests.correction.conftest import PARAMS, Corrected
from tests.teacher.conftest import FAMILIES, make_teacher


@pytest.mark.parametrize("family", FAMILIES)
def test_no_more_adapter_weights_than_estimated_from_the_folder(family: str, tmp_path: Path) -> None:
    model = make_teacher(family)
    model.save_pretrained(tmp_path)
    estimated = most_adapter_weights(tensor_shapes(tmp_path), rank=4)
    adapters = adapter_parameters(attach_adapters(model, PARAMS, seed=0))
    trained = sum(each.numel() for each in adapters.values())
    assert trained <= estimated <= 1.5 * trained
    assert family != "dense" or trained == estimated


def test_the_work_folder_takes_no_more_than_estimated(corrected: Corrected) -> None:
    folder, metrics = corrected
    checkpoints = sum(path.stat().st_size for path in folder.glob("checkpoint_*/*.safetensors"))
    trained = 4 * int(metrics["trained_parameters"])
    assert 2 * 3 * trained <= checkpoints <= work_bytes(trained)


def test_memory_counts_weights_adapters_and_logits() -> None:
    model = make_teacher("dense").half()
    weights = sum(each.numel() for each in model.parameters())
    expected = model_bytes(model) + 16 * 1000 + 4 * 16 * 300 * 16  # two fp16 and three fp32 numbers a logit
    assert least_memory(weights, 1000, item_bytes=2, positions=4 * 16, output_rows=300) == expected
