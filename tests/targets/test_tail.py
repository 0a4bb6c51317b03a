"""The tail's log-sums between and at the recorded temperatures, against dense float64."""

import math

import pytest
import torch

from moe_distill.shards.teacher_store import TAIL_TEMPERATURES
from moe_distill.targets.tail import interpolation_weights, outside_logsumexp, tail_logsumexp_at
from tests.targets.reference import (
    TEACHER_VOCABULARY,
    identity_map,
    random_logits,
    random_map,
    rows_without_a_tail,
    target_of_all,
    teacher_rows,
)


@pytest.mark.parametrize("temperature", [0.99, 4.01, math.nan])
def test_a_temperature_outside_the_recorded_ones_is_refused(temperature: float) -> None:
    rows = teacher_rows(random_logits(1, TEACHER_VOCABULARY, seed=8), 8)
    with pytest.raises(ValueError, match=r"outside \[1, 4\]"):
        target_of_all(rows, random_map(), temperature)


def test_interpolation_is_exact_at_the_nodes() -> None:
    for number, temperature in enumerate(TAIL_TEMPERATURES):
        assert interpolation_weights(temperature).tolist() == [float(number == g) for g in range(5)]


@pytest.mark.parametrize("logit_scale", [1.0, 3.0, 8.0])  # flat; like a language model's; spread over 60 nats
def test_interpolation_errs_little_between_the_nodes(logit_scale: float) -> None:
    logits = random_logits(16, 3000, seed=9, scale=logit_scale)
    rows = teacher_rows(logits, 64)
    logprobs = logits.double().log_softmax(-1).scatter(1, rows.topk_ids, float("-inf"))
    for temperature in (1.1, 1.2, 1.5, 1.8, 2.5, 3.5, 3.8):
        exact = (logprobs / temperature).logsumexp(-1)
        log_error = float((tail_logsumexp_at(rows, temperature) - exact).abs().max())
        assert log_error <= (2e-3 if logit_scale < 8 else 2e-2)
        kept = (logits.double() / temperature).softmax(-1).gather(1, rows.topk_ids).sum(-1)
        target = target_of_all(rows, identity_map(3000), temperature)
        assert float((target.residual_N - (1.0 - kept)).abs().max()) <= 5e-4


@pytest.mark.parametrize(
    "temperature",
    [1.0, 2.0, 2.5],
)
def test_an_empty_tail_stays_empty(temperature: float) -> None:
    rows = rows_without_a_tail(random_logits(2, TEACHER_VOCABULARY, seed=10))
    assert tail_logsumexp_at(rows, temperature).tolist() == [float("-inf")] * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_next_token_is_taken_out_of_the_tail_unless_it_is_kept(temperature: float) -> None:
    logits = random_logits(3, TEACHER_VOCABULARY, seed=11)
    following = logits.argsort(-1, descending=True)[torch.arange(3), torch.tensor([0, 8, 40])]
    rows = teacher_rows(logits, 8, targets_N=following)
    outside = (
        logits.log_softmax(-1).scatter(1, rows.topk_ids, float("-inf")).scatter(1, following[:, None], float("-inf"))
    )
    expected = (outside / temperature).logsumexp(-1)
    torch.testing.assert_close(outside_logsumexp(rows, temperature, following), expected, atol=2e-3, rtol=0)


def test_a_next_token_that_is_the_whole_tail_leaves_next_to_nothing() -> None:
    logits = random_logits(1, 9, seed=12)
    following = logits.argmin(-1)
    left = outside_logsumexp(teacher_rows(logits, 8, targets_N=following), 1.0, following)
    assert -40.0 < float(left) < -10.0
