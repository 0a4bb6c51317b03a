"""The teacher's cached distribution at a temperature, moved to the student's vocabulary.

Legend: N positions, K kept logits, M tail samples, G temperature nodes, J student tokens of a teacher id, S entries.

Two orders exist, and they have different minimisers. *Temper then map*: q(s) is the sum of p_T(t) share(t, s); the
student's tempered distribution is asked to equal the mapped tempered teacher. *Map then temper*: q(s) is proportional
to (sum of p(t) share(t, s))^(1/T); the student is asked to equal the mapped teacher itself, seen at temperature T. They
agree at T = 1 and wherever the map is one to one. Outside the kept ids the first order is exact on average; for the
second, what merges with a sampled id is estimated (losses/merging). Without samples that part is tempered first.

Where the text's own next tokens are given, the text says which student token the teacher's next token became: its
probability goes there whole, whatever the map would say of it.
"""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from moe_distill.losses.merging import merged_tail_ratio, merging_factors
from moe_distill.losses.segmentation import resegmented
from moe_distill.losses.vocabulary import VocabularyMap
from moe_distill.shards.targets import TAIL_TEMPERATURES, TeacherRows

Order = Literal["temper_then_map", "map_then_temper"]
Tail = Literal["sampled", "residual"]
NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True)
class NextTokens:
    """What follows in the text at each position, [N]: the teacher's token and the student's."""

    teacher_ids: Tensor
    student_ids: Tensor


@dataclass(frozen=True)
class SparseTarget:
    """A distribution over the student's vocabulary: exact entries, one bucket for all the rest, samples of the rest.

    `probs` of a row and its `residual` sum to 1. The samples' probabilities sum, on average, to the part of the
    residual that has a place in the student's vocabulary.
    """

    ids: Tensor  # int64 [N, S], each once in a row where its probability is above 0
    logprobs: Tensor  # [N, S]; -inf at a place without an entry
    residual: Tensor  # [N]: mass outside the entries
    tail_ids: Tensor  # int64 [N, M * J]; samples may repeat
    tail_probs: Tensor  # [N, M * J]

    @property
    def probs(self) -> Tensor:
        return self.logprobs.exp()

    def take(self, rows: Tensor) -> "SparseTarget":
        """Some of the rows, by number or by mask."""
        return SparseTarget(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class _Head:
    """Teacher ids whose log-probability at T = 1 is known, handed out to student ids; not yet merged."""

    student_ids: Tensor  # int64 [N, S']
    logprobs: Tensor  # [N, S']; of the teacher id; -inf where there is none
    log_shares: Tensor  # [N, S']; of the teacher id's probability that the student id gets
    unmapped: Tensor  # [N, K]: kept ids without a student token; -inf elsewhere


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


def without_next(tail_N: Tensor, rows: TeacherRows, next_ids_N: Tensor, temperature: float) -> Tensor:
    """A tail's log-sum at `temperature` less the token that follows in the text, where that is not kept, [N]."""
    is_kept_N = (rows.topk_ids == next_ids_N[:, None]).any(-1)
    share_N = (rows.target_logprob / temperature - tail_N).exp().clamp_max(1.0 - 1e-6)  # fp16 may put it above 1
    return torch.where(is_kept_N, tail_N, tail_N + torch.log1p(-share_N))


def sparse_target(
    rows: TeacherRows,
    vocabulary_map: VocabularyMap,
    temperature: float,
    order: Order,
    tail: Tail,
    text: NextTokens | None = None,
    previous_ids_N: Tensor | None = None,
) -> SparseTarget:
    """The teacher's distribution at `temperature` over the student's vocabulary.

    The kept part is exact, and so is the mass of the rest. With `tail="sampled"` the tail samples come with it, so
    that on average the gradient is that of the full distribution. Mass on ids that map to nothing stays in the
    residual.

    Args:
        text: the next tokens; None where the map alone decides.
        previous_ids_N: the student's last token; entries that its tokenizer would have joined to it are left out
            (losses/segmentation). None: that is not asked.
    """
    n_samples = rows.tail_ids.shape[1] if tail == "sampled" else 0
    head = _head(rows, vocabulary_map, text)
    outside_N, factors_NMJ = _outside(rows, temperature, text), None
    if order == "temper_then_map":
        ids, merged = merge(head.student_ids, head.logprobs / temperature + head.log_shares)
    else:
        ids, at_one = merge(head.student_ids, head.logprobs + head.log_shares)
        merged = at_one / temperature
        if n_samples and temperature > 1.0:
            factors_NMJ = merging_factors(rows, vocabulary_map, temperature, (ids, at_one))
            is_entry_NM = _is_next(rows.tail_ids, text)
            outside_N = outside_N + merged_tail_ratio(rows, vocabulary_map, temperature, factors_NMJ, is_entry_NM).log()
    if previous_ids_N is not None and vocabulary_map.merges is not None:
        next_ids_N = None if text is None else text.student_ids
        at_one = merged * temperature  # exact where the map came first or nothing merged
        gone_NS = resegmented(vocabulary_map.merges, ids, at_one, previous_ids_N, next_ids_N)
        merged = merged.masked_fill(gone_NS, NEGATIVE_INFINITY)
    known_N = torch.cat([merged, head.unmapped / temperature], dim=-1).logsumexp(-1)
    normalizer_N = torch.logaddexp(known_N, outside_N)
    logprobs = merged - normalizer_N[:, None]
    return SparseTarget(
        ids,
        logprobs,
        (1.0 - logprobs.exp().sum(-1)).clamp_min(0.0),
        *_tail_samples(rows, vocabulary_map, temperature, normalizer_N, n_samples, text, factors_NMJ),
    )


def _outside(rows: TeacherRows, temperature: float, text: NextTokens | None) -> Tensor:
    """Log-sum at `temperature` of all that is neither kept nor next in the text, [N]."""
    tail_N = tail_logsumexp_at(rows, temperature)
    return tail_N if text is None else without_next(tail_N, rows, text.teacher_ids, temperature)


def _is_next(teacher_ids_NX: Tensor, text: NextTokens | None) -> Tensor:
    if text is None:
        return torch.zeros_like(teacher_ids_NX, dtype=torch.bool)
    return teacher_ids_NX == text.teacher_ids[:, None]


def _head(rows: TeacherRows, vocabulary_map: VocabularyMap, text: NextTokens | None) -> _Head:
    ids_NKJ = vocabulary_map.student_ids[rows.topk_ids]
    log_shares_NKJ = vocabulary_map.log_shares[rows.topk_ids]
    # the next token is handed out below, by the text
    logprobs_NK = rows.topk_logprobs.masked_fill(_is_next(rows.topk_ids, text), NEGATIVE_INFINITY)
    is_mapped_NK = log_shares_NKJ[:, :, 0] > NEGATIVE_INFINITY
    unmapped_NK = logprobs_NK.masked_fill(is_mapped_NK, NEGATIVE_INFINITY)
    ids, log_shares = ids_NKJ.flatten(1), log_shares_NKJ.flatten(1)
    logprobs = logprobs_NK[:, :, None].expand(ids_NKJ.shape).flatten(1)
    if text is not None:
        ids = torch.cat([ids, text.student_ids[:, None]], dim=1)
        logprobs = torch.cat([logprobs, rows.target_logprob[:, None]], dim=1)
        log_shares = torch.cat([log_shares, torch.zeros_like(log_shares[:, :1])], dim=1)
    return _Head(ids, logprobs.masked_fill(log_shares == NEGATIVE_INFINITY, NEGATIVE_INFINITY), log_shares, unmapped_NK)


def _tail_samples(
    rows: TeacherRows,
    vocabulary_map: VocabularyMap,
    temperature: float,
    normalizer_N: Tensor,
    n_samples: int,
    text: NextTokens | None,
    factors_NMJ: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Student ids and importance-weighted probabilities of the tail samples, each [N, M * J]; 0 if unmapped.

    Args:
        factors_NMJ: what merging makes of a sample that was tempered first; None: nothing.
    """
    teacher_ids = rows.tail_ids[:, :n_samples]
    logprobs_NM = rows.tail_logprobs[:, :n_samples] / temperature - normalizer_N[:, None]
    probs_NM = (logprobs_NM - rows.tail_log_density[:, :n_samples]).exp() / max(n_samples, 1)
    probs_NM = probs_NM.masked_fill(_is_next(teacher_ids, text), 0.0)  # an entry, not a part of the tail
    probs_NMJ = probs_NM[:, :, None] * vocabulary_map.log_shares[teacher_ids].exp()
    if factors_NMJ is not None:
        probs_NMJ = probs_NMJ * factors_NMJ
    return vocabulary_map.student_ids[teacher_ids].flatten(1), probs_NMJ.flatten(1)


def merge(ids_NS: Tensor, logprobs_NS: Tensor) -> tuple[Tensor, Tensor]:
    """Add up the entries of a row that share an id; those of log-probability -inf are dropped.

    Returns:
        Ids and log-probabilities, [N, S]: each id once, the remaining places id 0 with log-probability -inf.
    """
    is_entry = logprobs_NS > NEGATIVE_INFINITY
    last = torch.iinfo(torch.int64).max
    sorted_ids, order = torch.where(is_entry, ids_NS, last).sort(dim=-1, stable=True)
    sorted_logprobs = logprobs_NS.gather(-1, order)
    is_first = torch.ones_like(sorted_ids, dtype=torch.bool)
    is_first[:, 1:] = sorted_ids[:, 1:] != sorted_ids[:, :-1]
    group = is_first.cumsum(-1) - 1
    peak_N1 = sorted_logprobs.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    sums = torch.zeros_like(sorted_logprobs).scatter_add(-1, group, (sorted_logprobs - peak_N1).exp())
    is_empty = sums == 0.0  # its logarithm has no gradient
    ids = torch.zeros_like(sorted_ids).scatter(-1, group, sorted_ids)
    logprobs = sums.masked_fill(is_empty, 1.0).log() + peak_N1
    return ids.masked_fill(ids == last, 0), logprobs.masked_fill(is_empty, NEGATIVE_INFINITY)
