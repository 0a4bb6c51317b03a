"""The teacher's cached distribution at a temperature, moved to the student's vocabulary.

Legend: N positions, K kept logits, M tail samples, X pairs of a cached id and one of its student tokens, S places for
the entries of a row, Z for its samples.

Two orders exist, and they have different minimisers. *Temper then map*: q(s) is the sum of p_T(t) share(t, s); the
student's tempered distribution is asked to equal the mapped tempered teacher. *Map then temper*: q(s) is proportional
to (sum of p(t) share(t, s))^(1/T); the student is asked to equal the mapped teacher itself, seen at temperature T. They
agree at T = 1 and wherever the map is one to one. Outside the kept ids the first order is exact on average; for the
second, what merges with a sampled id is estimated (losses/merging). Without samples that part is tempered first.

Where the text's own next tokens are given, the text says which student token the teacher's next token became: its
probability goes there whole, whatever the map would say of it.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from moe_distill.shards.teacher_store import TeacherRows
from moe_distill.targets.canonical import noncanonical
from moe_distill.targets.sparse_rows import NEGATIVE_INFINITY, Entries, merged, padded
from moe_distill.targets.tail import outside_logsumexp, tail_probs
from moe_distill.targets.tail_merging import merged_tail_ratio, merging_factors
from moe_distill.targets.token_shares import VocabularyMap

Order = Literal["temper_then_map", "map_then_temper"]
Tail = Literal["sampled", "residual"]


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
    tail_ids: Tensor  # int64 [N, Z]; samples may repeat. Z = 0: none were drawn, and the bucket stands for them
    tail_probs: Tensor  # [N, Z]; 0 at a place without a sample

    @property
    def probs(self) -> Tensor:
        return self.logprobs.exp()

    def take(self, rows: Tensor | slice) -> "SparseTarget":
        """Some of the rows, by number, mask or slice."""
        return SparseTarget(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class _Head:
    """Teacher ids whose log-probability at T = 1 is known, handed out to student ids; not yet merged."""

    rows: Tensor  # int64 [X]
    student_ids: Tensor  # int64 [X]
    logprobs: Tensor  # [X]; of the teacher id
    log_shares: Tensor  # [X]; of the teacher id's probability that the student id gets
    unmapped: Tensor  # [N, K]: kept ids without a student token; -inf elsewhere

    def mapped(self, temperature: float) -> Entries:
        """Tempered, and then merged."""
        return merged(self.rows, self.student_ids, self.logprobs / temperature + self.log_shares)


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
    head = _head(rows, vocabulary_map, text)
    rows = _without_sampled_next(rows, text)
    outside_N = outside_logsumexp(rows, temperature, None if text is None else text.teacher_ids)
    is_sampled = tail == "sampled" and rows.tail_ids.shape[1] > 0
    samples, factors_X = vocabulary_map.mapped_to_student(rows.tail_ids.flatten()) if is_sampled else None, None
    at_one = head.mapped(1.0)
    if order == "temper_then_map":
        entries = head.mapped(temperature)
    else:
        entries = replace(at_one, logprobs=at_one.logprobs / temperature)
        if samples is not None and temperature > 1.0:
            factors_X = merging_factors(rows, samples, vocabulary_map, temperature, at_one)
            outside_N = outside_N + merged_tail_ratio(rows, samples, temperature, factors_X).log()
    if previous_ids_N is not None and vocabulary_map.merges is not None:
        next_ids_N = None if text is None else text.student_ids
        entries = entries.without(noncanonical(vocabulary_map.merges, at_one, previous_ids_N, next_ids_N))
    ids = padded(entries.rows, entries.ids, len(outside_N), 0)
    logprobs = padded(entries.rows, entries.logprobs, len(outside_N), NEGATIVE_INFINITY)
    known_N = torch.cat([logprobs, head.unmapped / temperature], dim=-1).logsumexp(-1)
    normalizer_N = torch.logaddexp(known_N, outside_N)
    logprobs = logprobs - normalizer_N[:, None]
    residual_N = (1.0 - logprobs.exp().sum(-1)).clamp_min(0.0)
    if samples is None:
        return SparseTarget(ids, logprobs, residual_N, ids[:, :0], logprobs[:, :0])
    return SparseTarget(ids, logprobs, residual_N, *tail_probs(rows, samples, temperature, normalizer_N, factors_X))


def _is_next(teacher_ids_NX: Tensor, text: NextTokens | None) -> Tensor:
    if text is None:
        return torch.zeros_like(teacher_ids_NX, dtype=torch.bool)
    return teacher_ids_NX == text.teacher_ids[:, None]


def _without_sampled_next(rows: TeacherRows, text: NextTokens | None) -> TeacherRows:
    """A sample that is the next token is an entry, and no part of the tail."""
    is_next_NM = _is_next(rows.tail_ids, text)
    return replace(rows, tail_logprobs=rows.tail_logprobs.masked_fill(is_next_NM, NEGATIVE_INFINITY))


def _head(rows: TeacherRows, vocabulary_map: VocabularyMap, text: NextTokens | None) -> _Head:
    kept = vocabulary_map.mapped_to_student(rows.topk_ids.flatten())
    # the next token is handed out below, by the text
    logprobs_NK = rows.topk_logprobs.masked_fill(_is_next(rows.topk_ids, text), NEGATIVE_INFINITY)
    unmapped = logprobs_NK.flatten().index_fill(0, kept.sources, NEGATIVE_INFINITY).view_as(logprobs_NK)
    numbers, student_ids = kept.sources // rows.topk_ids.shape[1], kept.student_ids
    logprobs, log_shares = logprobs_NK.flatten()[kept.sources], kept.log_shares
    if text is not None:
        numbers = torch.cat([numbers, torch.arange(len(logprobs_NK), device=numbers.device)])
        student_ids = torch.cat([student_ids, text.student_ids])
        logprobs = torch.cat([logprobs, rows.target_logprob])
        log_shares = torch.cat([log_shares, torch.zeros_like(rows.target_logprob)])
    return _Head(numbers, student_ids, logprobs, log_shares, unmapped)
