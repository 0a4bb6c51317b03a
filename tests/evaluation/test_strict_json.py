"""metrics/evaluate.json is strict JSON whatever the student is like (R18)."""

import json
import math

import pytest
import torch

from moe_distill.evaluation.agreement import NO_AGREEMENT
from moe_distill.evaluation.evaluate import student_metrics
from moe_distill.evaluation.measure import Comparison, Score
from moe_distill.evaluation.metrics import calibration_sums
from moe_distill.utils.files import canonical_json


def figures(nll_per_token: float) -> dict[str, float]:
    certain, nll_W = torch.ones(4), torch.tensor([4 * nll_per_token], dtype=torch.float64)
    return student_metrics(Score(nll_W, 4, 9, 1.0), Comparison(NO_AGREEMENT, calibration_sums(certain, certain.bool())))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("nll", [2.0, 709.0, 710.0, 1e6])
def test_r18_an_infinite_perplexity_is_said_beside_its_nll(nll: float) -> None:
    read = json.loads(canonical_json(figures(nll)), parse_constant=refuse)
    assert read["student_nll_per_token"] == nll
    if nll < 710:
        assert read["student_perplexity"] == pytest.approx(math.exp(nll))
        assert "student_perplexity_infinite" not in read
    else:
        assert read["student_perplexity_infinite"] == 1.0
        assert "student_perplexity" not in read


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_never_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"figure": value})
