"""The teacher's cached distribution at a temperature, moved to the student's vocabulary.

Two orders exist, and they have different minimisers. *Temper then map*: q(s) is the sum of p_T(t) share(t, s); the
student's tempered distribution is asked to equal the mapped tempered teacher. *Map then temper*: q(s) is proportional
to (sum of p(t) share(t, s))^(1/T); the student is asked to equal the mapped teacher itself, seen at temperature T. They
agree at T = 1 and wherever the map is one to one. Outside the kept ids the first order is exact on average; for the
second, what merges with a sampled id is estimated (targets/tail_merging). Without samples that part is tempered first.

Where the text's own next tokens are given, the text says which student token the teacher's next token became: its
probability goes there whole, whatever the map would say of it.

Shapes: N positions, A of them with cached rows, K kept logits, M tail samples, Z entries and Y samples of all
positions in one list each, X pairs of a cached id and one of its student tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from moe_distill.config.params import KdOrder, KdTail
from moe_distill.targets.canonical import noncanonical
from moe_distill.targets.sparse_rows import NEGATIVE_INFINITY, Entries, grouped_logsumexp, merged
from moe_distill.targets.tail import outside_logsumexp, sample_probs
from moe_distill.targets.tail_merging import merged_tail_ratio, merging_factors
from moe_distill.targets.teacher_rows import TeacherRows
from moe_distill.targets.token_shares import StudentPairs, VocabularyMap


@dataclass(frozen=True)
class NextTokens:
    """What follows in the text at each position with a cached row, int64 [A]."""

    teacher_ids: Tensor
    student_ids: Tensor


@dataclass(frozen=True)
class SparseTarget:
    """Distributions over the student's vocabulary: exact entries, one bucket for all the rest, samples of the rest.

    The entries of a position and its `residual` sum to 1. Its samples sum, on average, to the part of the residual
    that has a place in the student's vocabulary. A position without a target has no entries and no samples.
    """

    temperature: float  # of both sides
    has_target_N: Tensor  # bool
    has_bucket_N: Tensor  # bool: nothing is known of the residual but its mass; False: samples tell of it
    residual_N: Tensor  # fp32: probability outside the entries; 0 where there is no target
    listed_mass_N: Tensor  # fp32: probability of the entries and samples
    entry_positions_Z: Tensor  # int32, ascending
    entry_ids_Z: Tensor  # int32, ascending and each once in a position
    entry_probs_Z: Tensor  # fp32
    sample_positions_Y: Tensor  # int32, ascending
    sample_ids_Y: Tensor  # int32; may repeat in a position
    sample_probs_Y: Tensor  # fp32

    def __len__(self) -> int:
        return len(self.has_target_N)

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))


def joined(targets: Sequence[SparseTarget]) -> SparseTarget:
    """The positions of several targets of one kind, one after the other."""
    *first_positions, _end = accumulate(map(len, targets), initial=0)

    def column(name: str) -> Tensor:
        return torch.cat([getattr(target, name) for target in targets])

    def positions(name: str) -> Tensor:
        pairs = zip(targets, first_positions, strict=True)
        return torch.cat([getattr(target, name) + first for target, first in pairs])

    return SparseTarget(
        temperature=targets[0].temperature,
        has_target_N=column("has_target_N"),
        has_bucket_N=column("has_bucket_N"),
        residual_N=column("residual_N"),
        listed_mass_N=column("listed_mass_N"),
        entry_positions_Z=positions("entry_positions_Z"),
        entry_ids_Z=column("entry_ids_Z"),
        entry_probs_Z=column("entry_probs_Z"),
        sample_positions_Y=positions("sample_positions_Y"),
        sample_ids_Y=column("sample_ids_Y"),
        sample_probs_Y=column("sample_probs_Y"),
    )


def sparse_target(
    rows: TeacherRows,
    has_target_N: Tensor,
    vocabulary_map: VocabularyMap,
    temperature: float,
    order: KdOrder,
    tail: KdTail,
    text: NextTokens | None = None,
    previous_ids_A: Tensor | None = None,
) -> SparseTarget:
    """The teacher's distribution at `temperature` over the student's vocabulary.

    The kept part is exact, and so is the mass of the rest. With `tail="sampled"` the tail samples come with it, so
    that on average the gradient is that of the full distribution. Mass on ids that map to nothing stays in the
    residual.

    Args:
        rows: of the A positions that have a target, in order.
        has_target_N: bool; which of the N positions these are.
        text: the next tokens; None where the map alone decides.
        previous_ids_A: the student's last token, or NO_TOKEN; entries that its tokenizer would have joined to it are
            left out (targets/canonical). None: that is not asked.
    """
    positions_A = has_target_N.nonzero().squeeze(1)
    kept = _kept_ids(rows, vocabulary_map, text)
    rows = _without_sampled_next(rows, text)
    outside_A = outside_logsumexp(rows, temperature, None if text is None else text.teacher_ids)
    is_sampled = tail == "sampled" and rows.tail_ids.shape[1] > 0
    samples, factors_X = vocabulary_map.mapped_to_student(rows.tail_ids.flatten()) if is_sampled else None, None
    at_one = kept.mapped(1.0)
    if order == "temper_then_map":
        entries = kept.mapped(temperature)
    else:
        entries = replace(at_one, logprobs=at_one.logprobs / temperature)
        if samples is not None and temperature > 1.0:
            factors_X = merging_factors(rows, samples, vocabulary_map, temperature, at_one)
            outside_A = outside_A + merged_tail_ratio(rows, samples, temperature, factors_X).log()
    if previous_ids_A is not None and vocabulary_map.merges is not None:
        next_ids_A = None if text is None else text.student_ids
        entries = entries.without(noncanonical(vocabulary_map.merges, at_one, previous_ids_A, next_ids_A))
    mapped_A = grouped_logsumexp(entries.logprobs, entries.rows, len(outside_A))
    unmapped_A = (kept.unmapped / temperature).logsumexp(-1)
    normalizer_A = torch.logaddexp(torch.logaddexp(mapped_A, unmapped_A), outside_A)
    entry_probs_Z = (entries.logprobs - normalizer_A[entries.rows]).exp()
    entry_mass_A = torch.zeros_like(normalizer_A).index_add(0, entries.rows, entry_probs_Z)
    sample_rows_Y, sample_ids_Y, sample_probs_Y = _samples(rows, samples, temperature, normalizer_A, factors_X)
    sample_mass_A = torch.zeros_like(normalizer_A).index_add(0, sample_rows_Y, sample_probs_Y)
    none_N = torch.zeros(len(has_target_N))
    return SparseTarget(
        temperature=temperature,
        has_target_N=has_target_N,
        has_bucket_N=torch.zeros_like(has_target_N) if is_sampled else has_target_N,
        residual_N=none_N.index_copy(0, positions_A, (1.0 - entry_mass_A).clamp_min(0.0)),
        listed_mass_N=none_N.index_copy(0, positions_A, entry_mass_A + sample_mass_A),
        entry_positions_Z=positions_A[entries.rows].int(),
        entry_ids_Z=entries.ids.int(),
        entry_probs_Z=entry_probs_Z,
        sample_positions_Y=positions_A[sample_rows_Y].int(),
        sample_ids_Y=sample_ids_Y.int(),
        sample_probs_Y=sample_probs_Y,
    )


@dataclass(frozen=True)
class _KeptIds:
    """Student tokens of the teacher ids whose log-probability at T = 1 is known; not yet added up."""

    rows: Tensor  # int64 [X]
    student_ids: Tensor  # int64 [X]
    logprobs: Tensor  # [X]; of the teacher id
    log_shares: Tensor  # [X]; of the teacher id's probability that the student id gets
    unmapped: Tensor  # [A, K]: kept ids without a student token; -inf elsewhere

    def mapped(self, temperature: float) -> Entries:
        """Tempered, and then added up."""
        return merged(self.rows, self.student_ids, self.logprobs / temperature + self.log_shares)


def _kept_ids(rows: TeacherRows, vocabulary_map: VocabularyMap, text: NextTokens | None) -> _KeptIds:
    pairs = vocabulary_map.mapped_to_student(rows.topk_ids.flatten())
    # the next token goes where the text says, below
    logprobs_AK = rows.topk_logprobs.masked_fill(_is_next(rows.topk_ids, text), NEGATIVE_INFINITY)
    unmapped = logprobs_AK.flatten().index_fill(0, pairs.sources, NEGATIVE_INFINITY).view_as(logprobs_AK)
    numbers, student_ids = pairs.sources // rows.topk_ids.shape[1], pairs.student_ids
    logprobs, log_shares = logprobs_AK.flatten()[pairs.sources], pairs.log_shares
    if text is not None:
        numbers = torch.cat([numbers, torch.arange(len(logprobs_AK))])
        student_ids = torch.cat([student_ids, text.student_ids])
        logprobs = torch.cat([logprobs, rows.target_logprob])
        log_shares = torch.cat([log_shares, torch.zeros_like(rows.target_logprob)])
    return _KeptIds(numbers, student_ids, logprobs, log_shares, unmapped)


def _samples(
    rows: TeacherRows,
    samples: StudentPairs | None,
    temperature: float,
    normalizer_A: Tensor,
    factors_X: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, student id and probability of each sample, [Y]; those of probability 0 are dropped."""
    if samples is None:
        no_ids = torch.zeros(0, dtype=torch.int64)
        return no_ids, no_ids, torch.zeros(0)
    probs_X = sample_probs(rows, samples, temperature, normalizer_A, factors_X)
    is_real_X = probs_X > 0.0
    return samples.sources[is_real_X] // rows.tail_ids.shape[1], samples.student_ids[is_real_X], probs_X[is_real_X]


def _is_next(teacher_ids_AX: Tensor, text: NextTokens | None) -> Tensor:
    if text is None:
        return torch.zeros_like(teacher_ids_AX, dtype=torch.bool)
    return teacher_ids_AX == text.teacher_ids[:, None]


def _without_sampled_next(rows: TeacherRows, text: NextTokens | None) -> TeacherRows:
    """A sample that is the next token is an entry, and no part of the tail."""
    is_next_AM = _is_next(rows.tail_ids, text)
    return replace(rows, tail_logprobs=rows.tail_logprobs.masked_fill(is_next_AM, NEGATIVE_INFINITY))
