"""Targets where the student stands inside a teacher token: the rest of the token, given the bytes already written.

The teacher's distribution is the one of the common boundary before. Of its kept tokens only those whose bytes begin
with the bytes written since then are still possible; their probabilities, made to sum to 1, go to the student's
tokens that come next in each. A token outside the top-k may be possible too, so a position counts as known only
where the kept part outweighs everything else that the teacher deems possible.

Legend: N positions, K kept logits, R rows of the teacher's output matrix, P places (bytes) in all teacher tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_distill.losses.target import NEGATIVE_INFINITY, SparseTarget, merge, tail_logsumexp_at, without_next
from moe_distill.shards.targets import TeacherRows

MINIMUM_ODDS = 4.0  # of the kept tokens that begin so, against all tokens outside the top-k


@dataclass(frozen=True)
class InsidePlaces:
    """Every place in every teacher token, the places of one token side by side."""

    starts: Tensor  # int64 [R + 1]: first place of each token
    prefixes: Tensor  # int64 [P]: number of the bytes before the place; equal bytes, equal numbers
    student_ids: Tensor  # int64 [P]: the student's token from there on; -1: none

    def to(self, device: torch.device) -> "InsidePlaces":
        return InsidePlaces(self.starts.to(device), self.prefixes.to(device), self.student_ids.to(device))


@dataclass(frozen=True)
class InsideText:
    """What the text says at each position, [N]."""

    teacher_ids: Tensor  # int64: the token that began at the common boundary
    offsets: Tensor  # int64: bytes written since
    student_ids: Tensor  # int64: the token that comes next


def inside_target(
    rows: TeacherRows, text: InsideText, places: InsidePlaces, temperature: float
) -> tuple[SparseTarget, Tensor]:
    """The teacher's tempered distribution of the student's next token, given what has been written of the token.

    Args:
        rows: of the common boundary before each position.

    Returns:
        The target, and which positions are known, bool [N]; the rows of the others mean nothing.
    """
    is_next_NK = rows.topk_ids == text.teacher_ids[:, None]
    ids_NK = torch.cat([rows.topk_ids, text.teacher_ids[:, None]], dim=-1)
    logprobs_NK = torch.cat(
        [rows.topk_logprobs.masked_fill(is_next_NK, NEGATIVE_INFINITY), rows.target_logprob[:, None]], dim=-1
    )
    is_longer_NK = places.starts[ids_NK + 1] - places.starts[ids_NK] > text.offsets[:, None]
    places_NK = torch.where(is_longer_NK, places.starts[ids_NK] + text.offsets[:, None], 0)
    begins_so_NK = is_longer_NK & (places.prefixes[places_NK] == places.prefixes[places_NK[:, -1:]])
    logprobs_NK = logprobs_NK.masked_fill(~begins_so_NK, NEGATIVE_INFINITY)

    outside_N = without_next(tail_logsumexp_at(rows, 1.0), rows, text.teacher_ids, 1.0)
    is_known_N = is_longer_NK[:, -1] & (logprobs_NK.logsumexp(-1) >= outside_N + math.log(MINIMUM_ODDS))

    student_ids_NK = places.student_ids[places_NK]
    student_ids_NK = torch.cat([student_ids_NK[:, :-1], text.student_ids[:, None]], dim=-1)
    tempered_NK = (logprobs_NK / temperature).log_softmax(-1).masked_fill(student_ids_NK < 0, NEGATIVE_INFINITY)
    ids, logprobs = merge(student_ids_NK, tempered_NK)
    residual_N = (1.0 - logprobs.exp().sum(-1)).clamp_min(0.0)
    no_samples = ids[:, :0]
    return SparseTarget(ids, logprobs, residual_N, no_samples, no_samples.float()), is_known_N
