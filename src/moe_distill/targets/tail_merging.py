"""Map, then temper, outside the kept ids: what merges with a sampled id there is not known, and is estimated.

Let a student id s have the probability a from the kept ids and b from all others. Merged before tempering, it has the
mass (a + b)^(1/T), of which the others add (a + b)^(1/T) - a^(1/T). Handed out to them by what they bring, a sampled id
t stands for

    p(t) share(t, s) * ((a + b)^(1/T) - a^(1/T)) / b

where it would stand for p(t)^(1/T) share(t, s) if it were tempered first. What else becomes s is expected to have the
proportion to t that it has in the text: b = p(t) F(s) / F(t), where F are the frequencies of the teacher's tokens there
and of what they become, the kept ids included. Weighted by p(t) that is b or more on average, b where the teacher's
proportions are the text's: what merges in the tail gets too little rather than too much.

Shapes: N positions, M tail samples, X pairs of a sample and one of its student tokens.
"""

import torch
from torch import Tensor

from moe_distill.targets.sparse_rows import Entries, probs_at
from moe_distill.targets.teacher_rows import TeacherRows
from moe_distill.targets.token_shares import StudentPairs, VocabularyMap

LEAST = 1e-30  # of what is divided by


def merging_factors(
    rows: TeacherRows, samples: StudentPairs, vocabulary_map: VocabularyMap, temperature: float, entries: Entries
) -> Tensor:
    """What a sample stands for when merged first, over what it stands for when tempered first, [X].

    Args:
        samples: what the rows' tail samples, in one list, become.
        entries: at T = 1, what the kept ids become.
    """
    probs_X = rows.tail_logprobs.flatten()[samples.sources].exp()
    frequencies_X = vocabulary_map.frequencies[rows.tail_ids.flatten()[samples.sources]]
    proportion_X = vocabulary_map.student_frequencies[samples.student_ids] / frequencies_X.clamp_min(LEAST)
    brought_X = (probs_X * proportion_X).clamp_min(LEAST)
    kept_X = probs_at(entries, samples.sources // rows.tail_ids.shape[1], samples.student_ids)
    slope_X = _added(kept_X, brought_X, 1.0 / temperature) / brought_X
    return slope_X * probs_X ** (1.0 - 1.0 / temperature)


def merged_tail_ratio(rows: TeacherRows, samples: StudentPairs, temperature: float, factors_X: Tensor) -> Tensor:
    """The tail's mass when merged first over its mass when tempered first, [N], as the samples tell; 1 without any."""
    masses_NM = (rows.tail_logprobs / temperature - rows.tail_log_density).exp()
    merged_X = samples.log_shares.exp() * factors_X
    # A sample without a place keeps its mass: ratio 1
    ratios = torch.ones_like(masses_NM.flatten()).index_fill(0, samples.sources, 0.0)
    ratios_NM = ratios.index_add(0, samples.sources, merged_X).view_as(masses_NM)
    total_N = masses_NM.sum(-1)
    return torch.where(total_N > 0.0, (masses_NM * ratios_NM).sum(-1) / total_N.clamp_min(LEAST), 1.0)


def _added(kept: Tensor, brought: Tensor, power: float) -> Tensor:
    """(kept + brought)^power - kept^power, without cancellation where little is brought to much."""
    to_much = kept**power * torch.expm1(torch.log1p(brought / kept.clamp_min(LEAST)) * power)
    return torch.where(kept > 0.0, to_much, brought**power)
