"""Map, then temper, outside the kept ids: what merges with a sampled id there is not known, and is estimated.

Let a student id s have the probability a from the kept ids and b from all others. Merged before tempering, it has the
mass (a + b)^(1/T), of which the others add (a + b)^(1/T) - a^(1/T). Handed out to them by what they bring, a sampled id
t stands for

    p(t) share(t, s) * ((a + b)^(1/T) - a^(1/T)) / b

where it would stand for p(t)^(1/T) share(t, s) if it were tempered first. What else becomes s is expected to have the
proportion to t that it has in the text: b = p(t) F(s) / F(t), where F are the frequencies of the teacher's tokens there
and of what they become, the kept ids included. Weighted by p(t) that is b or more on average, b where the teacher's
proportions are the text's: what merges in the tail gets too little rather than too much.

Legend: N positions, S entries, M tail samples, J student tokens of a teacher id.
"""

import torch
from torch import Tensor

from moe_distill.losses.vocabulary import VocabularyMap
from moe_distill.shards.targets import TeacherRows

LEAST = 1e-30  # of what is divided by


def merging_factors(
    rows: TeacherRows, vocabulary_map: VocabularyMap, temperature: float, entries: tuple[Tensor, Tensor]
) -> Tensor:
    """What a sample stands for when merged first, over what it stands for when tempered first, [N, M, J].

    Args:
        entries: ids and log-probabilities at T = 1 of what the kept ids become, [N, S], each id once.
    """
    student_ids_NMJ = vocabulary_map.student_ids[rows.tail_ids]
    probs_NM1 = rows.tail_logprobs.exp()[:, :, None]
    frequencies_NM1 = vocabulary_map.frequencies[rows.tail_ids][:, :, None]
    proportion_NMJ = vocabulary_map.student_frequencies[student_ids_NMJ] / frequencies_NM1.clamp_min(LEAST)
    brought_NMJ = (probs_NM1 * proportion_NMJ).clamp_min(LEAST)
    kept_NMJ = _probs_at(student_ids_NMJ, *entries)
    slope_NMJ = _added(kept_NMJ, brought_NMJ, 1.0 / temperature) / brought_NMJ
    return slope_NMJ * probs_NM1 ** (1.0 - 1.0 / temperature)


def merged_tail_ratio(
    rows: TeacherRows,
    vocabulary_map: VocabularyMap,
    temperature: float,
    factors_NMJ: Tensor,
    is_entry_NM: Tensor,
) -> Tensor:
    """The tail's mass when merged first over its mass when tempered first, [N], as the samples tell; 1 without any.

    Args:
        is_entry_NM: samples that are no part of the tail.
    """
    shares_NMJ = vocabulary_map.log_shares[rows.tail_ids].exp()
    has_place_NM = shares_NMJ[:, :, 0] > 0.0
    ratios_NM = torch.where(has_place_NM, (shares_NMJ * factors_NMJ).sum(-1), 1.0)
    masses_NM = (rows.tail_logprobs / temperature - rows.tail_log_density).exp().masked_fill(is_entry_NM, 0.0)
    total_N = masses_NM.sum(-1)
    return torch.where(total_N > 0.0, (masses_NM * ratios_NM).sum(-1) / total_N.clamp_min(LEAST), 1.0)


def _probs_at(wanted_NMJ: Tensor, ids_NS: Tensor, logprobs_NS: Tensor) -> Tensor:
    """Probability of the wanted ids among a row's entries, in the shape of the wanted; 0 where there is no entry."""
    last = torch.iinfo(torch.int64).max
    sorted_NS, order = ids_NS.masked_fill(logprobs_NS == float("-inf"), last).sort(dim=-1)
    wanted_NX = wanted_NMJ.flatten(1)
    found_NX = torch.searchsorted(sorted_NS, wanted_NX).clamp_max(ids_NS.shape[1] - 1)
    probs_NX = logprobs_NS.exp().gather(-1, order).gather(-1, found_NX)
    return probs_NX.masked_fill(sorted_NS.gather(-1, found_NX) != wanted_NX, 0.0).view(wanted_NMJ.shape)


def _added(kept: Tensor, brought: Tensor, power: float) -> Tensor:
    """(kept + brought)^power - kept^power, without cancellation where little is brought to much."""
    to_much = kept**power * torch.expm1(torch.log1p(brought / kept.clamp_min(LEAST)) * power)
    return torch.where(kept > 0.0, to_much, brought**power)
