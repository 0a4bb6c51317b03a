"""The slow, obvious versions: whole distributions in float64, one row and one id at a time."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_distill.config.params import KdOrder, KdTail
from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text, text_loss
from moe_distill.shards.teacher_store import TAIL_TEMPERATURES
from moe_distill.targets.sparse_target import NextTokens, SparseTarget, sparse_target
from moe_distill.targets.stretches import stretches
from moe_distill.targets.teacher_rows import TeacherRows
from moe_distill.targets.teacher_rows import teacher_rows as upcast
from moe_distill.targets.token_shares import VocabularyMap, rule_map
from moe_distill.teacher.sparsify import sparsify

TEACHER_VOCABULARY, STUDENT_VOCABULARY = 120, 70
NO_RESIDUAL = 1e-7  # rounding of fp32


def random_map(unmapped: float = 0.15) -> VocabularyMap:
    """Many teacher ids to one student id, a share of them to none, and 10 student ids that none maps to."""
    generator = torch.Generator().manual_seed(5)
    student_ids = torch.randint(0, STUDENT_VOCABULARY - 10, (TEACHER_VOCABULARY,), generator=generator)
    student_ids[torch.rand(TEACHER_VOCABULARY, generator=generator) < unmapped] = -1
    return rule_map(student_ids)


def knowing_the_tail(
    vocabulary_map: VocabularyMap, logits_V: Tensor, k: int, next_id: int | None = None
) -> VocabularyMap:
    """The same map with the frequencies that these logits have outside their top-k: what merges there is then known.

    Args:
        next_id: a token that is no part of the tail.
    """
    kept = torch.cat([logits_V.topk(k).indices, torch.tensor([] if next_id is None else [next_id]).long()])
    frequencies = logits_V.softmax(-1).index_fill(0, kept, 0.0)
    frequencies /= frequencies.sum()
    handed = frequencies[:, None] * vocabulary_map.log_shares.exp()
    student_frequencies = torch.zeros_like(vocabulary_map.student_frequencies)
    student_frequencies.index_add_(0, vocabulary_map.student_ids.flatten(), handed.flatten())
    return replace(vocabulary_map, frequencies=frequencies, student_frequencies=student_frequencies)


def identity_map(vocabulary: int) -> VocabularyMap:
    return rule_map(torch.arange(vocabulary))


def random_logits(rows: int, vocabulary: int, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def teacher_rows(
    logits_NV: Tensor,
    k: int,
    tail_samples: int = 0,
    uniforms_N: Tensor | None = None,
    targets_N: Tensor | None = None,
) -> TeacherRows:
    """What would be cached of these logits, without the rounding to fp16; the next token is 0 unless told."""
    n = len(logits_NV)
    uniforms = torch.full((n,), 0.5) if uniforms_N is None else uniforms_N
    targets = torch.zeros(n, dtype=torch.long) if targets_N is None else targets_N
    records = sparsify(logits_NV, targets, k, tail_samples, uniforms)
    return upcast(vars(records), logits_NV.shape[1] - k)


def rows_without_a_tail(logits_NV: Tensor) -> TeacherRows:
    """Every id is kept."""
    logprobs, ids = logits_NV.log_softmax(-1).sort(descending=True)
    nothing = torch.zeros(len(ids), 0)
    empty_tail = torch.full((len(ids), len(TAIL_TEMPERATURES)), float("-inf"))
    return TeacherRows(ids, logprobs, empty_tail, nothing.long(), nothing, nothing, torch.zeros(len(ids)))


def target_of_all(
    rows: TeacherRows,
    vocabulary_map: VocabularyMap,
    temperature: float,
    order: KdOrder = "temper_then_map",
    tail: KdTail = "residual",
    text: NextTokens | None = None,
    previous_ids_N: Tensor | None = None,
) -> SparseTarget:
    """The target where every position has a cached row."""
    has_target_N = torch.ones(len(rows.topk_ids), dtype=torch.bool)
    return sparse_target(rows, has_target_N, vocabulary_map, temperature, order, tail, text, previous_ids_N)


def entries_of(target: SparseTarget, position: int) -> dict[int, float]:
    """Student id -> probability of one position's entries."""
    is_of_it = target.entry_positions_Z == position
    ids = target.entry_ids_Z[is_of_it].tolist()
    assert ids == sorted(set(ids)), "an id stands twice, or before a smaller one"
    return dict(zip(ids, target.entry_probs_Z[is_of_it].tolist(), strict=True))


def part_of(target: SparseTarget, start: int, stop: int) -> SparseTarget:
    """Positions [start, stop) alone."""
    is_entry, is_sample = (
        (start <= positions) & (positions < stop) for positions in (target.entry_positions_Z, target.sample_positions_Y)
    )
    return replace(
        target,
        has_target_N=target.has_target_N[start:stop],
        has_bucket_N=target.has_bucket_N[start:stop],
        residual_N=target.residual_N[start:stop],
        listed_mass_N=target.listed_mass_N[start:stop],
        entry_positions_Z=target.entry_positions_Z[is_entry] - start,
        entry_ids_Z=target.entry_ids_Z[is_entry],
        entry_probs_Z=target.entry_probs_Z[is_entry],
        sample_positions_Y=target.sample_positions_Y[is_sample] - start,
        sample_ids_Y=target.sample_ids_Y[is_sample],
        sample_probs_Y=target.sample_probs_Y[is_sample],
    )


def text_of(target: SparseTarget, labels_N: Tensor | None = None, chunk_tokens: int = 2048) -> Text:
    """A text with a target, cut into stretches; what follows is token 0 unless told."""
    labels_N = torch.zeros(len(target), dtype=torch.int64) if labels_N is None else labels_N
    return Text(labels_N, target, stretches(len(target), chunk_tokens, target))


def kd_gradient(logits_NV: Tensor, target: SparseTarget) -> Tensor:
    """Gradient of KD alone, by `text_loss`, to the logits: its hidden states, with the identity as output matrix."""
    hidden_NV = logits_NV.clone().requires_grad_()
    identity_VV = torch.eye(logits_NV.shape[1])
    found = text_loss(hidden_NV, OutputHead(identity_VV), text_of(target), kd_weight=1.0, dtype=torch.float32)
    (found.loss / target.temperature**2).backward()
    assert hidden_NV.grad is not None
    return hidden_NV.grad


@torch.no_grad()
def kd_values(logits_NV: Tensor, target: SparseTarget) -> Tensor:
    """The bucketed KL of each position by `text_loss`, [N]."""
    values, identity_VV = [], torch.eye(logits_NV.shape[1])
    for position in range(len(target)):
        text = text_of(part_of(target, position, position + 1))
        logits_1V = logits_NV[position, None]
        kl = text_loss(logits_1V, OutputHead(identity_VV), text, kd_weight=1.0, dtype=torch.float32).kl
        assert kl is not None
        values.append(kl)
    return torch.stack(values) if values else torch.zeros(0)


@dataclass(frozen=True)
class PlainTextLoss:
    """Sums over positions, float64 scalars; all but `kl` can be differentiated."""

    loss: Tensor
    nll: Tensor
    weighted_nll: Tensor
    kl: Tensor


def plain_text_loss(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, target: SparseTarget | None, kd_weight: float
) -> PlainTextLoss:
    """What `losses/text_loss` computes, with whole [N, V] tables in float64 and the gradients that autograd makes."""
    logits_NV = hidden_ND.double() @ weight_VD.double().T
    nll_N = F.cross_entropy(logits_NV, labels_N, reduction="none")
    if target is None:
        return PlainTextLoss(nll_N.sum(), nll_N.sum(), nll_N.sum(), torch.zeros(()))
    entry_places = target.entry_positions_Z.long(), target.entry_ids_Z.long()
    sample_places = target.sample_positions_Y.long(), target.sample_ids_Y.long()
    zeros_NV = torch.zeros_like(logits_NV)
    entries_NV = zeros_NV.index_put(entry_places, target.entry_probs_Z.double())
    samples_NV = zeros_NV.index_put(sample_places, target.sample_probs_Y.double(), accumulate=True)
    is_entry_NV = zeros_NV.bool().index_put(entry_places, torch.tensor(True))
    logprobs_NV = (logits_NV / target.temperature).log_softmax(-1)
    # a row without a rest has no bucket; a row of nothing but -inf has no gradient
    has_rest_N = (target.residual_N > NO_RESIDUAL) & ~is_entry_NV.all(-1)
    residual_N = target.residual_N.double() * has_rest_N
    rest_N = logprobs_NV.masked_fill(is_entry_NV & has_rest_N[:, None], float("-inf")).logsumexp(-1)
    kl_N = (torch.xlogy(entries_NV, entries_NV) - entries_NV * logprobs_NV).sum(-1)
    kl_N = kl_N + torch.xlogy(residual_N, residual_N) - residual_N * rest_N
    crossed_N = -((entries_NV + samples_NV) * logprobs_NV).sum(-1) - residual_N * target.has_bucket_N * rest_N
    weight_N = kd_weight * target.has_target_N.double()
    weighted_nll = ((1.0 - weight_N) * nll_N).sum()
    loss = weighted_nll + (weight_N * target.temperature**2 * crossed_N).sum()
    return PlainTextLoss(loss, nll_N.sum(), weighted_nll, kl_N.sum().detach())


@dataclass(frozen=True)
class DenseTarget:
    """One row, float64: mass of the mapped top-k by student id, and what the tail holds."""

    entries: dict[int, float]
    tail: dict[int, float]  # mass outside the top-k by student id
    tail_mass: float  # mapped or not

    @property
    def residual(self) -> float:
        return 1.0 - sum(self.entries.values())


def dense_target(
    logits_V: Tensor,
    vocabulary_map: VocabularyMap,
    k: int,
    temperature: float,
    order: KdOrder,
    text: tuple[int, int] | None = None,
    merges_tail: bool = False,
) -> DenseTarget:
    """The definition in the head of targets/sparse_target.py, over the whole vocabulary of the teacher.

    Args:
        text: the teacher's and the student's next token.
        merges_tail: with `map_then_temper`, ids outside the top-k merge before they are tempered, too.
    """
    logprobs = logits_V.double().log_softmax(-1)
    known = set(logits_V.topk(k).indices.tolist()) | ({text[0]} if text else set())
    powers = (logprobs / temperature).exp().tolist()  # not yet normalised
    mapped: dict[int, float] = {}
    tail: dict[int, float] = {}
    tail_at_one: dict[int, float] = {}
    unmapped = unmapped_tail = 0.0
    for teacher_id, power in enumerate(powers):
        places = _places(vocabulary_map, teacher_id)
        if text and teacher_id == text[0]:
            places = {text[1]: 1.0}
        if not places:
            unmapped += power * (teacher_id in known)
            unmapped_tail += power * (teacher_id not in known)
        at_one = float(logprobs[teacher_id].exp())
        for student_id, share in places.items():
            if teacher_id not in known:
                tail[student_id] = tail.get(student_id, 0.0) + share * power
                tail_at_one[student_id] = tail_at_one.get(student_id, 0.0) + share * at_one
            else:
                mass = power if order == "temper_then_map" else at_one
                mapped[student_id] = mapped.get(student_id, 0.0) + share * mass
    if order == "map_then_temper":
        if merges_tail:
            tail = {
                student_id: (mapped.get(student_id, 0.0) + mass) ** (1.0 / temperature)
                - mapped.get(student_id, 0.0) ** (1.0 / temperature)
                for student_id, mass in tail_at_one.items()
            }
        mapped = {student_id: mass ** (1.0 / temperature) for student_id, mass in mapped.items()}
    tail_mass = sum(tail.values()) + unmapped_tail
    total = sum(mapped.values()) + unmapped + tail_mass
    return DenseTarget(
        {student_id: mass / total for student_id, mass in mapped.items()},
        {student_id: mass / total for student_id, mass in tail.items()},
        tail_mass / total,
    )


def _places(vocabulary_map: VocabularyMap, teacher_id: int) -> dict[int, float]:
    """Student id -> share of a teacher id."""
    shares = vocabulary_map.log_shares[teacher_id].double().exp().tolist()
    ids = vocabulary_map.student_ids[teacher_id].tolist()
    return {student_id: share for student_id, share in zip(ids, shares, strict=True) if share}


def bucketed_kl(logits_V: Tensor, target: DenseTarget, temperature: float) -> Tensor:
    """KL of the distributions with everything outside the entries in one bucket; differentiable in float64 logits."""
    probs_V = (logits_V / temperature).softmax(-1)
    value = torch.zeros((), dtype=torch.float64)
    for student_id, mass in target.entries.items():
        value = value + mass * (torch.tensor(mass, dtype=torch.float64) / probs_V[student_id]).log()
    rest = [student_id for student_id in range(len(logits_V)) if student_id not in target.entries]
    if rest and target.residual > 1e-12:
        value = value + target.residual * (target.residual / probs_V[rest].sum()).log()
    return value


def mapped_cross_entropy(logits_V: Tensor, target: DenseTarget, temperature: float) -> Tensor:
    """What the sampled gradient estimates: all mapped mass, that of the tail included, in its place."""
    logprobs_V = (logits_V / temperature).log_softmax(-1)
    placed = [*target.entries.items(), *target.tail.items()]
    return torch.stack([-mass * logprobs_V[student_id] for student_id, mass in placed]).sum()
