"""The terms of the text itself: `lm`, `kd`, `kd_inside` and `chunk`.

Logits are made stretch by stretch and dropped until the backward pass, so that [positions, vocabulary] is never held
whole; a batch of one stretch keeps its own, for to make them twice would save nothing.
Legend: see training/batch; I positions inside a teacher token.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe_distill.losses.chunk import chunk_kl
from moe_distill.losses.kd import forward_kl
from moe_distill.losses.lm import lm_nll
from moe_distill.losses.registry import LossTerm, Terms
from moe_distill.targets.inside import InsidePlaces, inside_target
from moe_distill.targets.sparse_target import NextTokens, Order, SparseTarget, Tail, sparse_target
from moe_distill.targets.token_shares import VocabularyMap
from moe_distill.training.batch import Batch, Chunks, Counts


@dataclass(frozen=True)
class KdSettings:
    """How the teacher's cached distributions and likelihoods are read."""

    temperature: float
    kd_weight: float  # of KD at positions that have a target; LM keeps the rest there, and all elsewhere
    order: Order
    tail: Tail
    inside_weight: float  # of KD at positions inside a teacher token; LM keeps the rest where the target is known
    chunk_weight: float
    chunk_temperature: float


@dataclass(frozen=True)
class PlacedTarget:
    """Targets, and the positions of a batch that they are for: numbers in [0, N), ascending."""

    positions: Tensor
    target: SparseTarget

    def between(self, start: int, stop: int) -> "PlacedTarget":
        """Those at positions [start, stop), counted from `start`."""
        bounds = torch.tensor([start, stop], device=self.positions.device)
        first, last = torch.searchsorted(self.positions, bounds).tolist()
        return PlacedTarget(self.positions[first:last] - start, self.target.take(slice(first, last)))


def text_targets(
    batch: Batch, kd: KdSettings | None, vocabulary_map: VocabularyMap | None, places: InsidePlaces | None
) -> dict[str, PlacedTarget]:
    """What KD asks of a batch, by the name of the term; nothing where there is LM alone."""
    if kd is None or batch.rows is None or vocabulary_map is None:
        return {}
    text = NextTokens(batch.next_teacher_ids_A, batch.labels_N[batch.aligned_A])
    target = sparse_target(
        batch.rows, vocabulary_map, kd.temperature, kd.order, kd.tail, text, batch.previous_ids[batch.aligned_A]
    )
    targets = {"kd": PlacedTarget(batch.aligned_A, target)}
    if kd.inside_weight > 0 and batch.inside is not None and places is not None:
        target, is_known_I = inside_target(batch.inside.rows, batch.inside.text, places, kd.temperature)
        targets["kd_inside"] = PlacedTarget(batch.inside.positions_I[is_known_I], target.take(is_known_I))
    return targets


def text_terms(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    batch: Batch,
    targets: dict[str, PlacedTarget],
    kd: KdSettings | None,
    chunk_tokens: int,
    counts: Counts,
) -> tuple[Terms, Tensor]:
    """Every term of the text, and the batch's summed nats for bits per byte.

    Args:
        hidden_ND: the student's last states.
        weight_VD: its output matrix.
        chunk_tokens: positions whose logits are held at once.
    """
    temperature = 1.0 if kd is None else kd.temperature
    is_whole = len(hidden_ND) <= chunk_tokens
    losses = _losses if is_whole else partial(checkpoint, _losses, use_reentrant=False)
    nll, kl = [], []
    for start in range(0, len(hidden_ND), chunk_tokens):
        stop = min(start + chunk_tokens, len(hidden_ND))
        parts = [placed.between(start, stop) for placed in targets.values()]
        nll_n, *kl_of_terms = losses(hidden_ND[start:stop], weight_VD, batch.labels_N[start:stop], parts, temperature)
        nll.append(nll_n)
        kl.append(torch.stack(kl_of_terms) if kl_of_terms else nll_n[:0])
    nll_N, terms = torch.cat(nll), Terms()
    lm_weight_N = torch.ones_like(nll_N)
    if kd is not None:
        weights = {"kd": (kd.kd_weight, counts.aligned), "kd_inside": (kd.inside_weight, counts.inside)}
        for (name, placed), kl_sum in zip(targets.items(), torch.stack(kl).sum(0), strict=True):
            weight, count = weights[name]
            lm_weight_N[placed.positions] = 1.0 - weight
            terms[name] = LossTerm(kl_sum / max(count, 1), weight * kd.temperature**2 * kl_sum / counts.tokens)
        if kd.chunk_weight > 0 and batch.chunks is not None:
            chunk_sum = _chunk_kl(nll_N, batch.chunks, kd.chunk_temperature).sum()
            terms["chunk"] = LossTerm(chunk_sum / max(counts.chunks, 1), kd.chunk_weight * chunk_sum / counts.tokens)
    nll_sum = nll_N.sum()
    terms["lm"] = LossTerm(nll_sum / counts.tokens, (lm_weight_N * nll_N).sum() / counts.tokens)
    return terms, nll_sum.detach()


def _losses(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, placed: list[PlacedTarget], temperature: float
) -> tuple[Tensor, ...]:
    """Cross-entropy of each position [N], and for each kind of target its summed KL; the logits are fp32."""
    logits_NV = hidden_ND.float() @ weight_VD.float().T
    kl = [forward_kl(logits_NV.index_select(0, each.positions), each.target, temperature).sum() for each in placed]
    return lm_nll(logits_NV, labels_N), *kl


def _chunk_kl(nll_N: Tensor, chunks: Chunks, chunk_temperature: float) -> Tensor:
    inside = chunks.chunk_of_N >= 0
    student_J = torch.zeros_like(chunks.teacher_logprobs_J).index_add(0, chunks.chunk_of_N[inside], -nll_N[inside])
    return chunk_kl(student_J, chunks.teacher_logprobs_J, chunk_temperature)
