"""The whole pipeline in fp16 with a scaled loss, as a P100 or T4 runs it, on the CPU: minutes, so in the slow tier."""

import csv
import json

import pytest

from tests.end_to_end.conftest import Checkout, ran

TOLERANCE = 1e-2  # bits per byte
BEFORE = {"corpus", "models@teacher", "models@student", "self_test", "tokenize"}  # stages that know no precision


def validation(checkout: Checkout, stage: str) -> dict[int, float]:
    """Bits per byte by step."""
    with (checkout.folder / f"metrics/curves/{stage}_validation.tsv").open() as file:
        return {int(row["step"]): float(row["bits_per_byte"]) for row in csv.DictReader(file, delimiter="\t")}


@pytest.mark.slow
def test_fp16_ends_where_fp32_does(checkout: Checkout, own_checkout: Checkout) -> None:
    own_checkout.edit("params.yaml", "precision: auto", "precision: fp16")
    own_checkout.edit("profiles/test.yaml", "precision: auto", "precision: fp16")
    output = own_checkout.run("dvc", "repro")
    assert not ran(output) & BEFORE
    assert "teacher: CPU, float16" in output
    for stage in ("train_router", "control"):
        assert f"{stage}: CPU, float16" in output
        fp32, fp16 = validation(checkout, stage), validation(own_checkout, stage)
        assert fp16[50] == pytest.approx(fp32[50], abs=TOLERANCE)
        assert fp16[50] != fp32[50]
        with (own_checkout.folder / f"metrics/curves/{stage}.tsv").open() as file:
            scales = {float(row["loss_scale"]) for row in csv.DictReader(file, delimiter="\t")}
        assert min(scales) > 1.0
        assert json.loads((own_checkout.folder / f"metrics/{stage}.json").read_text())["skipped_steps"] < 5
    figures = [json.loads((each.folder / "metrics/evaluate.json").read_text()) for each in (checkout, own_checkout)]
    for name in ("teacher", "student", "lm_only"):
        fp32, fp16 = (each[f"{name}_bits_per_byte"] for each in figures)
        assert fp16 == pytest.approx(fp32, abs=TOLERANCE), name
