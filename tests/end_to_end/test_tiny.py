"""The embedded default itself: minutes, so in the slow tier."""

import json
import math
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Checkout, copy_of_the_project, ran


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = copy_of_the_project(tmp_path_factory.mktemp("tiny"))
    made.edit("params.yaml", "profile: test", "profile: tiny")
    return made


@pytest.mark.slow
def test_distillation_beats_lm_alone_on_the_embedded_default(tiny: Checkout) -> None:
    output = tiny.run("dvc", "repro")
    assert "evaluate" in ran(output)
    figures = json.loads((Path(tiny.folder) / "metrics/evaluate.json").read_text())
    assert all(math.isfinite(value) for value in figures.values())
    order = ("teacher", "student", "lm_only", "student_init")
    values = [figures[f"{name}_bits_per_byte"] for name in order]
    assert values == sorted(values)
    assert len(set(values)) == 4
