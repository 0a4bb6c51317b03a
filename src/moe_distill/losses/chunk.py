"""Chunk likelihood: teacher and student agree on how likely a stretch of text is, however each cuts it into tokens.

Approximate likelihood matching (Minixhofer, Vulic and Ponti 2025, arXiv:2503.20083): between two common boundaries
each model gives the text one probability, the product over its own tokens. The two are compared as outcomes of a coin
that shows this text or any other, tempered: KL((p^(1/tau), 1 - p^(1/tau)) || (q^(1/tau), 1 - q^(1/tau))), times tau, so
that the gradient keeps its scale as tau grows.

Legend: J chunks.
"""

import torch
from torch import Tensor

LARGEST_LOGPROB = -1e-6  # of a tempered chunk: log(1 - p) stays finite


def chunk_kl(student_logprobs_J: Tensor, teacher_logprobs_J: Tensor, chunk_temperature: float) -> Tensor:
    """Binarised KL(teacher || student) of each chunk in nats, fp32 [J].

    Args:
        student_logprobs_J, teacher_logprobs_J: log-probability of each chunk's text, at most 0.
        chunk_temperature: tau, at least 1.
    """
    student = (student_logprobs_J.float() / chunk_temperature).clamp_max(LARGEST_LOGPROB)
    teacher = (teacher_logprobs_J.float() / chunk_temperature).clamp_max(LARGEST_LOGPROB)
    this = teacher.exp() * (teacher - student)
    other = -teacher.expm1() * (_log1mexp(teacher) - _log1mexp(student))
    return chunk_temperature * (this + other)


def _log1mexp(logprobs: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, accurate near 0."""
    return torch.log(-torch.expm1(logprobs))
