"""The teacher's cached distribution at a temperature, moved to the student's vocabulary.

Legend: N positions, K kept logits, M tail samples, G temperature nodes, S support entries.

Two orders exist, and they have different minimisers. *Temper then map*: q(s) is the sum over map(t) = s of
p_T(t); the student's tempered distribution is asked to equal the mapped tempered teacher. *Map then temper*:
q(s) is proportional to (sum over map(t) = s of p(t))^(1/T); the student is asked to equal the mapped teacher
itself, seen at temperature T. They agree at T = 1 and wherever the map is one to one.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from moe_distill.shards.targets import TAIL_TEMPERATURES, TeacherRows

Order = Literal["temper_then_map", "map_then_temper"]
Tail = Literal["sampled", "residual"]
NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True)
class VocabularyMap:
    """Where each teacher id goes, and how many come to each student id."""

    student_ids: Tensor  # int64 [rows of the teacher's output matrix]; -1: no student token
    preimages: Tensor  # fp32 [student vocabulary]: teacher ids that map to each student id
    unreached: Tensor  # int64: student ids that no teacher id maps to


def make_vocabulary_map(student_ids: Tensor, student_vocabulary: int) -> VocabularyMap:
    """Count the preimages of a map.

    Args:
        student_ids: int64, each below `student_vocabulary`, or -1.
    """
    preimages = torch.bincount(student_ids[student_ids >= 0], minlength=student_vocabulary)
    return VocabularyMap(student_ids, preimages.float(), (preimages == 0).nonzero().squeeze(1))


@dataclass(frozen=True)
class SparseTarget:
    """A distribution over the student's vocabulary: exact entries, one bucket for all the rest, samples of the rest.

    `probs` of a row and its `residual` sum to 1; the samples' probabilities sum, on average, to the part of the
    residual that has a place in the student's vocabulary.
    """

    ids: Tensor  # int64 [N, S], each once in a row; a place without an entry has id 0 and probability 0
    logprobs: Tensor  # [N, S]; -inf at a place without an entry
    preimage_share: Tensor  # [N, S]: share of the entry's preimages that are in the top-k
    residual: Tensor  # [N]: mass outside the entries
    tail_ids: Tensor  # int64 [N, M]; samples may repeat
    tail_probs: Tensor  # [N, M]: probability of the sampled teacher id over M times its density
    tail_baseline: Tensor  # [N, M]: 1 / (M * density * preimages of the student id): makes a student's p comparable

    @property
    def probs(self) -> Tensor:
        return self.logprobs.exp()


def interpolation_weights(temperature: float) -> Tensor:
    """Lagrange weights over TAIL_TEMPERATURES, as a polynomial in 1/T, fp32 [G].

    The log of the tail's sum is smooth and convex in 1/T; the polynomial passes through every node.

    Raises:
        ValueError: `temperature` lies outside the nodes.
    """
    nodes = 1.0 / np.array(TAIL_TEMPERATURES)
    if not min(TAIL_TEMPERATURES) <= temperature <= max(TAIL_TEMPERATURES):
        raise ValueError(f"temperature {temperature} lies outside [1, 4], where the tail was recorded")
    point = 1.0 / temperature
    weights = [np.prod([(point - other) / (node - other) for other in nodes if other != node]) for node in nodes]
    return torch.tensor(np.array(weights), dtype=torch.float32)


def tail_logsumexp_at(rows: TeacherRows, temperature: float) -> Tensor:
    """Log of the sum of exp(logprob / T) outside the top-k, [N]; -inf for an empty tail."""
    weights_G = interpolation_weights(temperature).to(rows.tail_logsumexp.device)
    is_empty = rows.tail_logsumexp[:, 0] == NEGATIVE_INFINITY
    finite_NG = rows.tail_logsumexp.masked_fill(is_empty[:, None], 0.0)
    return (finite_NG * weights_G).sum(-1).masked_fill(is_empty, NEGATIVE_INFINITY)


def sparse_target(
    rows: TeacherRows, vocabulary_map: VocabularyMap, temperature: float, order: Order, tail: Tail
) -> SparseTarget:
    """The teacher's distribution at `temperature` over the student's vocabulary.

    The top-k part is exact, and so is the mass of the rest. With `tail="sampled"` the tail samples come with it, so
    that on average the gradient is that of the full distribution. Mass on ids that map to nothing stays in the
    residual.
    """
    tail_N = tail_logsumexp_at(rows, temperature)
    mapped_ids = vocabulary_map.student_ids[rows.topk_ids]
    if order == "temper_then_map":
        normalizer_N = torch.logaddexp((rows.topk_logprobs / temperature).logsumexp(-1), tail_N)
        ids, logprobs, counts = _merge(mapped_ids, rows.topk_logprobs / temperature - normalizer_N[:, None])
    else:
        ids, merged, counts = _merge(mapped_ids, rows.topk_logprobs)
        unmapped = (rows.topk_logprobs / temperature).masked_fill(mapped_ids >= 0, NEGATIVE_INFINITY)
        head_N = torch.cat([merged / temperature, unmapped], -1).logsumexp(-1)
        normalizer_N = torch.logaddexp(head_N, tail_N)
        logprobs = merged / temperature - normalizer_N[:, None]
    n_samples = rows.tail_ids.shape[1] if tail == "sampled" else 0
    return SparseTarget(
        ids,
        logprobs,
        counts / vocabulary_map.preimages[ids].clamp_min(1.0),
        (1.0 - logprobs.exp().sum(-1)).clamp_min(0.0),
        *_tail_samples(rows, vocabulary_map, temperature, normalizer_N, n_samples),
    )


def _tail_samples(
    rows: TeacherRows, vocabulary_map: VocabularyMap, temperature: float, normalizer_N: Tensor, n_samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Student ids, importance-weighted probabilities and baselines of the tail samples, each [N, M]; 0 if unmapped."""
    ids_NM = vocabulary_map.student_ids[rows.tail_ids[:, :n_samples]]
    logprobs_NM = rows.tail_logprobs[:, :n_samples] / temperature - normalizer_N[:, None]
    log_weight_NM = -rows.tail_log_density[:, :n_samples] - math.log(max(n_samples, 1))
    unmapped = ids_NM < 0
    ids_NM = ids_NM.clamp_min(0)
    baseline_NM = log_weight_NM.exp() / vocabulary_map.preimages[ids_NM].clamp_min(1.0)
    return (
        ids_NM,
        (logprobs_NM + log_weight_NM).exp().masked_fill(unmapped, 0.0),
        baseline_NM.masked_fill(unmapped, 0.0),
    )


def _merge(ids_NK: Tensor, logprobs_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add up the entries of a row that share an id; ids below 0 are dropped.

    Returns:
        Ids, log-probabilities and numbers of merged entries, [N, K]: each id once, the remaining places id 0 with
        log-probability -inf and number 0.
    """
    sorted_ids, order = ids_NK.sort(dim=-1, stable=True)
    sorted_logprobs = logprobs_NK.gather(-1, order).masked_fill(sorted_ids < 0, NEGATIVE_INFINITY)
    is_first = torch.ones_like(sorted_ids, dtype=torch.bool)
    is_first[:, 1:] = sorted_ids[:, 1:] != sorted_ids[:, :-1]
    group = is_first.cumsum(-1) - 1
    peak_N1 = sorted_logprobs.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    sums = torch.zeros_like(sorted_logprobs).scatter_add(-1, group, (sorted_logprobs - peak_N1).exp())
    ids = torch.zeros_like(sorted_ids).scatter(-1, group, sorted_ids.clamp_min(0))
    counts = torch.zeros_like(sums).scatter_add(-1, group, (sorted_ids >= 0).float())
    is_empty = sums == 0.0  # its logarithm has no gradient
    logprobs = sums.masked_fill(is_empty, 1.0).log() + peak_N1
    return ids, logprobs.masked_fill(is_empty, NEGATIVE_INFINITY), counts
