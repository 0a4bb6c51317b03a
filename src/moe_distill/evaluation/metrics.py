"""Metrics as pure functions of sums and counts (R18, R19, R20)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Metrics = Mapping[str, float]

RESAMPLES = 2000
CONFIDENCE = 0.95
UNDEFINED_GAP = 0.02  # bits per byte from untrained student to teacher below which retention is undefined
CALIBRATION_BINS = 15


def bits_per_byte(nll_nats: float, n_bytes: int) -> float:
    """Negative log-likelihood of a text in bits per byte, which can be compared between tokenizers."""
    return nll_nats / math.log(2) / n_bytes


def perplexity(nll_per_token_nats: float) -> float:
    """exp of the mean negative log-likelihood in nats; infinity where it overflows."""
    try:
        return math.exp(nll_per_token_nats)
    except OverflowError:
        return math.inf


def retention(bpb_init: float, bpb_student: float, bpb_teacher: float) -> float | None:
    """Share of the teacher's gain over the untrained student that the student has kept.

    (BPB_init - BPB_student) / (BPB_init - BPB_teacher), in bits per byte: 1 for a student as good as the teacher, 0 for
    the untrained one. None where the teacher is not better by UNDEFINED_GAP, as the quotient then means nothing.
    """
    gap = bpb_init - bpb_teacher
    return None if gap < UNDEFINED_GAP else (bpb_init - bpb_student) / gap


def resampled_gain(gain_X: Tensor, bytes_X: Tensor) -> tuple[float, float]:
    """Where the gain in bits per byte lies, were other texts of the kind measured: a paired bootstrap's 95% interval.

    Both models have read each text, so a resample takes the texts with both: what makes a text easy for the two of them
    cancels. It is the spread over texts alone; another seed of the training is not in it.

    Args:
        gain_X: nats that one model saves beside the other on each text, fp64.
        bytes_X: of each text.
    """
    generator, n = torch.Generator().manual_seed(0), len(gain_X)
    gains = torch.empty(RESAMPLES, dtype=torch.float64)
    for number in range(RESAMPLES):
        drawn = torch.randint(n, (n,), generator=generator)
        gains[number] = gain_X[drawn].sum() / bytes_X[drawn].sum() / math.log(2)
    low, high = gains.quantile(torch.tensor([0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], dtype=torch.float64)).tolist()
    return low, high


class CalibrationBin(NamedTuple):
    """The positions at which a student was about as sure."""

    confidence: float  # mean probability of the likeliest token
    accuracy: float  # how often it came next
    share: float  # of all positions


def calibration_sums(confidence_N: Tensor, correct_N: Tensor) -> Tensor:
    """What `calibration_bins` needs of some positions, fp64 [3, bins]: how many, their confidence, and how many right.

    Args:
        confidence_N: probability of the most likely token at each position.
        correct_N: bool; whether that token came next.
    """
    bins = (confidence_N * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    values = torch.stack([torch.ones_like(confidence_N).double(), confidence_N.double(), correct_N.double()])
    return values.new_zeros(3, CALIBRATION_BINS).index_add(1, bins, values)


def calibration_bins(sums: Tensor) -> list[CalibrationBin]:
    """The bins of equal width that have positions, the least sure first.

    Args:
        sums: the `calibration_sums` of all positions, added up.
    """
    n_positions = float(sums[0].sum())
    return [CalibrationBin(sure / n, right / n, n / n_positions) for n, sure, right in sums.T.tolist() if n]


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by their size (Guo et al. 2017)."""
    return sum(each.share * abs(each.accuracy - each.confidence) for each in bins)
