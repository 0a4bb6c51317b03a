"""Targets where the student stands inside a teacher token: the rest of the token, given the bytes already written.

The teacher's distribution is the one of the common boundary before. Of its kept tokens only those whose bytes begin
with the bytes written since then are still possible; their probabilities, made to sum to 1, go to the student's
tokens that come next in each. Tokens outside the top-k may be possible too: they are expected to have the part of the
tail's mass that they have of its tokens in the text. That part stays in the residual, and a position counts as known
only where the kept part outweighs it. Tokens are tempered first, then merged, whatever the order elsewhere.

Legend: N positions, K kept logits and the next token, R rows of the teacher's output matrix, P places (bytes) in all
teacher tokens, B byte strings that teacher tokens begin with.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_distill.shards.teacher_store import TeacherRows
from moe_distill.targets.sparse_rows import NEGATIVE_INFINITY, merged, padded
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.tail import outside_logsumexp

MINIMUM_ODDS = 4.0  # of the kept tokens that begin so, against what is expected of the others
LEAST_FREQUENCY = 1e-9  # of all that is not kept, so that nothing is divided by 0


@dataclass(frozen=True)
class InsidePlaces:
    """Every place in every teacher token, the places of one token side by side."""

    starts: Tensor  # int64 [R + 1]: first place of each token
    prefixes: Tensor  # int64 [P]: number of the bytes before the place; equal bytes, equal numbers
    student_ids: Tensor  # int64 [P]: the student's token from there on; -1: none
    frequencies: Tensor  # fp32 [R]: of each teacher id in the text; they sum to 1
    prefix_frequencies: Tensor  # fp32 [B]: of all ids that go on after the bytes of that number


def inside_places(counts_R: Tensor, prefixes_P: Tensor, student_ids_P: Tensor, frequencies_R: Tensor) -> InsidePlaces:
    """The places of a vocabulary map beside the text's frequencies.

    Args:
        counts_R: places of each token.
    """
    of_places_P = frequencies_R.double().repeat_interleave(counts_R)
    sums_B = torch.zeros(int(prefixes_P.max()) + 1, dtype=torch.float64).index_add(0, prefixes_P, of_places_P)
    starts = F.pad(counts_R.cumsum(0), (1, 0))
    return InsidePlaces(starts, prefixes_P, student_ids_P, frequencies_R, sums_B.float())


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

    is_twice_NK = F.pad(is_next_NK, (0, 1))  # the next token stands at the end
    log_part_N = _expected_part(places, ids_NK, places_NK[:, -1], begins_so_NK, is_twice_NK).log()
    expected_N = log_part_N + outside_logsumexp(rows, 1.0, text.teacher_ids)
    is_known_N = is_longer_NK[:, -1] & (logprobs_NK.logsumexp(-1) >= expected_N + math.log(MINIMUM_ODDS))

    student_ids_NK = places.student_ids[places_NK]
    student_ids_NK = torch.cat([student_ids_NK[:, :-1], text.student_ids[:, None]], dim=-1)
    tempered_NK = logprobs_NK / temperature
    outside_N = log_part_N + outside_logsumexp(rows, temperature, text.teacher_ids)
    normalizer_N = torch.logaddexp(tempered_NK.logsumexp(-1), outside_N)
    tempered_NK = tempered_NK - normalizer_N[:, None]
    rows_X, columns_X = (student_ids_NK >= 0).nonzero(as_tuple=True)
    entries = merged(rows_X, student_ids_NK[rows_X, columns_X], tempered_NK[rows_X, columns_X])
    ids = padded(entries.rows, entries.ids, len(ids_NK), 0)
    logprobs = padded(entries.rows, entries.logprobs, len(ids_NK), NEGATIVE_INFINITY)
    residual_N = (1.0 - logprobs.exp().sum(-1)).clamp_min(0.0)
    no_samples = ids[:, :0]
    return SparseTarget(ids, logprobs, residual_N, no_samples, no_samples.float()), is_known_N


def _expected_part(
    places: InsidePlaces, ids_NK: Tensor, place_N: Tensor, begins_so_NK: Tensor, is_twice_NK: Tensor
) -> Tensor:
    """Share of the tail's mass that is expected to begin so, [N]: what it has of the tail's tokens in the text."""
    frequencies_NK = places.frequencies[ids_NK].masked_fill(is_twice_NK, 0.0)
    begin_so_N = places.prefix_frequencies[places.prefixes[place_N]] - (frequencies_NK * begins_so_NK).sum(-1)
    others_N = 1.0 - frequencies_NK.sum(-1)
    return (begin_so_N.clamp_min(0.0) / others_N.clamp_min(LEAST_FREQUENCY)).clamp_max(1.0)
