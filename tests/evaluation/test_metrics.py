import math
import random

import pytest
import torch

from moe_distill.evaluation.metrics import (
    CALIBRATION_BINS,
    UNDEFINED_GAP,
    bits_per_byte,
    calibration_bins,
    calibration_sums,
    expected_calibration_error,
    perplexity,
    resampled_gain,
    retention,
)


@pytest.mark.parametrize("nll", [0.0, 3.5, 20.0, 21.0, 700.0])
def test_r18_perplexity_is_never_capped(nll: float) -> None:
    assert perplexity(nll) == pytest.approx(math.e**nll, rel=1e-12)


def test_r18_overflow_is_infinity() -> None:
    assert perplexity(710.0) == math.inf


def test_r19_bits_per_byte_do_not_depend_on_the_number_of_tokens() -> None:
    """Eight equally likely symbols: three bits each, however a tokenizer cuts them."""
    assert bits_per_byte(4 * math.log(8), n_bytes=4) == pytest.approx(3.0)
    assert bits_per_byte(2 * math.log(64), n_bytes=4) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("init", "student", "teacher", "expected"),
    [(3.0, 2.0, 2.0, 1.0), (3.0, 3.0, 2.0, 0.0), (3.0, 2.25, 2.0, 0.75), (3.0, 1.5, 2.0, 1.5), (3.0, 3.5, 2.0, -0.5)],
)
def test_r20_retention_is_the_share_of_the_gain(init: float, student: float, teacher: float, expected: float) -> None:
    assert retention(init, student, teacher) == pytest.approx(expected)


def test_r20_retention_is_undefined_where_the_teacher_is_not_clearly_better() -> None:
    assert retention(2.0, 1.9, 2.0 - 0.9 * UNDEFINED_GAP) is None
    assert retention(2.0, 1.9, 2.0) is None
    assert retention(2.0, 1.9, 2.5) is None
    assert retention(2.0, 1.9, 2.0 - 1.1 * UNDEFINED_GAP) is not None


def brute_force_ece(confidence: list[float], correct: list[bool]) -> float:
    total = 0.0
    for number in range(CALIBRATION_BINS):
        low, high = number / CALIBRATION_BINS, (number + 1) / CALIBRATION_BINS
        inside = [i for i, c in enumerate(confidence) if low <= c < high or (c == 1.0 == high)]
        if inside:
            mean_confidence = sum(confidence[i] for i in inside) / len(inside)
            accuracy = sum(correct[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean_confidence)
    return total


@pytest.mark.parametrize("n", [1, 10, 500])
def test_r20_calibration_error_equals_a_loop_over_bins(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    confidence = torch.rand(n, generator=generator, dtype=torch.float64)
    correct = torch.rand(n, generator=generator) < 0.4
    expected = brute_force_ece(confidence.tolist(), correct.tolist())
    parts = zip(confidence.split(7), correct.split(7), strict=True)
    sums = sum((calibration_sums(*part) for part in parts), torch.zeros(()))
    assert expected_calibration_error(calibration_bins(sums)) == pytest.approx(expected, abs=1e-9)


def test_r20_calibration_error_of_certainty() -> None:
    certain = torch.ones(4)
    half, two_of_four = torch.full((4,), 0.5), torch.tensor([True, False] * 2)
    for confidence, correct, error in (
        (certain, certain > 0, 0.0),
        (certain, certain < 0, 1.0),
        (half, two_of_four, 0.0),
    ):
        assert expected_calibration_error(calibration_bins(calibration_sums(confidence, correct))) == error


def test_r20_calibration_bins_have_all_positions_and_the_calibration_error() -> None:
    """Certainty is in the last bin; two positions share a bin, and an edge is of the bin above it."""
    confidence = torch.tensor([1.0, 0.5, 0.52, 0.0, 0.99])
    correct = torch.tensor([True, False, True, True, False])
    found = calibration_bins(calibration_sums(confidence, correct))
    assert [each.confidence for each in found] == pytest.approx([0.0, 0.51, 0.995])
    assert [each.accuracy for each in found] == pytest.approx([1.0, 0.5, 0.5])
    assert [each.share for each in found] == pytest.approx([0.2, 0.4, 0.4])
    error = sum(each.share * abs(each.accuracy - each.confidence) for each in found)
    assert error == pytest.approx(brute_force_ece(confidence.tolist(), correct.tolist()))
    assert error == pytest.approx(expected_calibration_error(found))


def test_a_resampled_gain_is_the_plain_bootstrap() -> None:
    """Against loops over Python's own random numbers: other draws, so the ends agree within their own error."""
    generator = torch.Generator().manual_seed(1)
    bytes_X = torch.randint(50, 500, (60,), generator=generator)
    gain_X = bytes_X * (0.02 + 0.1 * torch.randn(60, generator=generator, dtype=torch.float64))
    drawing, gains = random.Random(2), []
    for _ in range(2000):
        drawn = [drawing.randrange(60) for _ in range(60)]
        nats, n_bytes = sum(float(gain_X[text]) for text in drawn), sum(int(bytes_X[text]) for text in drawn)
        gains.append(nats / n_bytes / math.log(2))
    gains.sort()
    low, high = resampled_gain(gain_X, bytes_X)
    assert low == pytest.approx(gains[50], abs=0.004)
    assert high == pytest.approx(gains[1950], abs=0.004)
    assert high - low > 0.04
    assert resampled_gain(gain_X, bytes_X) == (low, high), "the same texts give the same interval"


def test_of_one_text_the_gain_has_no_spread() -> None:
    low, high = resampled_gain(torch.tensor([3.0 * math.log(2)], dtype=torch.float64), torch.tensor([6]))
    assert low == high == pytest.approx(0.5)
