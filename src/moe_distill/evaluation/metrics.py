"""Figures from sums: pure functions (R18, R19, R20)."""

import math

import torch
from torch import Tensor

UNDEFINED_GAP = 0.02  # bits per byte between teacher and untrained student below which retention says nothing
CALIBRATION_BINS = 15


def bits_per_byte(nll_nats: float, n_bytes: int) -> float:
    """Negative log-likelihood of a text in bits, per byte of it: comparable across tokenizers."""
    return nll_nats / math.log(2) / n_bytes


def perplexity(nll_per_token_nats: float) -> float:
    """exp of the mean NLL, never capped; infinity where it overflows."""
    try:
        return math.exp(nll_per_token_nats)
    except OverflowError:
        return math.inf


def retention(bpb_init: float, bpb_student: float, bpb_teacher: float) -> float | None:
    """Share of the teacher's gain over the untrained student that the student has kept.

    (BPB_init - BPB_student) / (BPB_init - BPB_teacher); 1 equals the teacher, 0 the untrained student. None where the
    teacher is not clearly better than the untrained student, for then the quotient means nothing.
    """
    gap = bpb_init - bpb_teacher
    return None if gap < UNDEFINED_GAP else (bpb_init - bpb_student) / gap


def expected_calibration_error(confidence_N: Tensor, correct_N: Tensor) -> float:
    """Mean distance between confidence and accuracy over equal-width bins, weighted by their size (Guo et al. 2017).

    Args:
        confidence_N: probability of the most likely token, in [0, 1].
        correct_N: whether that token came next.
    """
    bins = (confidence_N * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)
    gaps = gaps.index_add(0, bins, correct_N.double() - confidence_N.double())
    return float(gaps.abs().sum() / len(confidence_N))
