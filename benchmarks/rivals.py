"""The other objectives of the field, on the same cached rows: losses of each aligned position at T = 1.

Legend: N positions, A of them aligned, V student vocabulary, K kept logits of the teacher.
"""

import torch
from torch import Tensor

from moe_distill.shards.teacher_store import TeacherRows


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


def all_chunks(rows_of_windows: list[Tensor], target_logprobs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Every stretch between neighbouring common boundaries, one token on both sides included.

    Args:
        rows_of_windows: aligned teacher row of each student position, or -1.
        target_logprobs: the teacher's log-probabilities of each window's rows, from its first aligned row on.

    Returns:
        The chunk of each position [N] (-1: none), and the teacher's log-probability of each chunk [J].
    """
    chunk_of, teacher_logprobs, n_chunks = [], [], 0
    for rows, logprobs in zip(rows_of_windows, target_logprobs, strict=True):
        shared = (rows >= 0).nonzero().squeeze(1)
        chunk = torch.searchsorted(shared, torch.arange(len(rows)), right=True) - 1
        last = len(shared) - 1  # its end is not known
        chunk_of.append(torch.where((chunk >= 0) & (chunk < last), chunk + n_chunks, -1))
        edges = rows[shared] - rows[shared[0]]
        total = torch.cat([torch.zeros(1), logprobs.cumsum(0)])
        teacher_logprobs.append(total[edges].diff())
        n_chunks += last
    return torch.cat(chunk_of), torch.cat(teacher_logprobs)
