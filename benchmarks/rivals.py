"""The other objectives of the field, on the same cached rows at T = 1.

Shapes: N positions, A of them aligned, V student vocabulary, K kept logits of the teacher, J spans of text.
"""

import torch
from torch import Tensor

from moe_distill.targets.teacher_rows import TeacherRows

LARGEST_LOGPROB = -1e-6  # of a tempered span: log(1 - p) stays finite


def shared_strings(logits_AV: Tensor, rows: TeacherRows, student_ids: Tensor, is_exact: Tensor) -> Tensor:
    """Cross-entropy against the kept logits of tokens that both vocabularies have, renormalised to sum to 1, [A].

    Args:
        student_ids: int64, by teacher id.
        is_exact: bool, by teacher id: the student has a token of the same bytes.
    """
    shared_AK = is_exact[rows.topk_ids]
    probs_AK = rows.topk_logprobs.masked_fill(~shared_AK, float("-inf")).softmax(-1).nan_to_num(0.0)
    student_AK = logits_AV.log_softmax(-1).gather(-1, student_ids[rows.topk_ids].clamp_min(0))
    return -(probs_AK * student_AK).sum(-1)


def sorted_l1(logits_AV: Tensor, rows: TeacherRows) -> Tensor:
    """ULD (Boizard et al. 2024, arXiv:2402.12030): L1 between the two distributions, each sorted by size, [A].

    Over the K largest of either side: what the cache holds.
    """
    student_AK = logits_AV.softmax(-1).topk(rows.topk_logprobs.shape[1]).values
    return (student_AK - rows.topk_logprobs.exp().sort(-1, descending=True).values).abs().sum(-1)


def full_vocabulary_kl(logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """KL(teacher || student) over one shared vocabulary, [N]."""
    teacher = teacher_logits_NV.log_softmax(-1)
    return (teacher.exp() * (teacher - logits_NV.log_softmax(-1))).sum(-1)


def all_spans(rows_of_windows: list[Tensor], target_logprobs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Every stretch between neighbouring common boundaries, one token on both sides included.

    Args:
        rows_of_windows: aligned teacher row of each student position, or -1.
        target_logprobs: the teacher's log-probabilities of each window's rows, from its first aligned row on.

    Returns:
        The span of each position [N] (-1: none), and the teacher's log-probability of each span [J].
    """
    span_of, teacher_logprobs, n_spans = [], [], 0
    for rows, logprobs in zip(rows_of_windows, target_logprobs, strict=True):
        shared = (rows >= 0).nonzero().squeeze(1)
        span = torch.searchsorted(shared, torch.arange(len(rows)), right=True) - 1
        last = len(shared) - 1  # its end is not known
        span_of.append(torch.where((span >= 0) & (span < last), span + n_spans, -1))
        edges = rows[shared] - rows[shared[0]]
        total = torch.cat([torch.zeros(1), logprobs.cumsum(0)])
        teacher_logprobs.append(total[edges].diff())
        n_spans += last
    return torch.cat(span_of), torch.cat(teacher_logprobs)


def span_kl(student_logprobs_J: Tensor, teacher_logprobs_J: Tensor, span_temperature: float) -> Tensor:
    """Approximate likelihood matching (Minixhofer, Vulic and Ponti 2025, arXiv:2503.20083), fp32 [J].

    Each model gives a span of text one probability, the product over its own tokens. The two are compared as outcomes
    of a coin that shows this text or any other, tempered: KL((p^(1/tau), 1 - p^(1/tau)) || (q^(1/tau), 1 - q^(1/tau))),
    times tau, so that the gradient keeps its scale as tau grows.

    Args:
        student_logprobs_J, teacher_logprobs_J: log-probability of each span's text, at most 0.
        span_temperature: tau, at least 1.
    """
    student = (student_logprobs_J / span_temperature).clamp_max(LARGEST_LOGPROB)
    teacher = (teacher_logprobs_J / span_temperature).clamp_max(LARGEST_LOGPROB)
    this = teacher.exp() * (teacher - student)
    other = -teacher.expm1() * (_log1mexp(teacher) - _log1mexp(student))
    return span_temperature * (this + other)


def _log1mexp(logprobs_J: Tensor) -> Tensor:
    """log(1 - exp(x)) for x below 0."""
    return (-logprobs_J.expm1()).log()
