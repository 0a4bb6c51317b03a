"""`router_kd`: the routed teacher's top-k distribution as the student's target.

The kept ids of a position are asked again under the student-aware gate; the mass outside them is taken to be what the
running teacher put there, so that no other row of the output matrix is read. Under the teacher's own gate the target
is the cached one. Legend: N = all real positions of the runs, K kept logits, D student's hidden size, T teacher's
hidden size, V student vocabulary.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe_distill.losses.kd import forward_kl
from moe_distill.replay.block import TeacherHead, replayed_logits
from moe_distill.shards.teacher_store import TeacherRows
from moe_distill.targets.sparse_target import Order, sparse_target
from moe_distill.targets.token_shares import VocabularyMap
from moe_distill.training.batch import Batch, HiddenRuns


@dataclass(frozen=True)
class RoutedText:
    """What is compared at the runs' positions."""

    student_ND: Tensor  # the student's last states
    routed_NT: Tensor  # residual stream after the replayed block under the student-aware gate
    previous_ids_N: Tensor  # the student's last tokens
    labels_N: Tensor  # its next ones
    rows: TeacherRows


def routed_text(batch: Batch, runs: HiddenRuns, student_WRD: Tensor, routed_WRT: Tensor) -> RoutedText:
    """Find the runs' positions among those of the batch; each is aligned, so each has cached rows."""
    assert batch.rows is not None
    numbers_N = torch.searchsorted(batch.places_N, runs.packed(runs.places_WR))
    rows = batch.rows.take(torch.searchsorted(batch.aligned_A, numbers_N))
    previous_ids_N, labels_N = batch.previous_ids[numbers_N], batch.labels_N[numbers_N]
    return RoutedText(runs.packed(student_WRD), runs.packed(routed_WRT), previous_ids_N, labels_N, rows)


def routed_kd(
    text: RoutedText,
    weight_VD: Tensor,
    head: TeacherHead,
    vocabulary_map: VocabularyMap,
    temperature: float,
    order: Order,
    chunk_positions: int,
) -> Tensor:
    """T^2 KL(routed teacher || student) plus what rerouting loses of the text's log-likelihood, fp32 [N].

    The KL teaches the student, and makes the gate choose what the student can learn; the second part, 0 under the
    teacher's own gate, keeps the gate from paying for that with the text. It counts where a kept id stands for the
    student's next token. Chunk by chunk, so that neither [N, V] logits nor [N, K, T] rows are ever held whole.
    """
    likeliest_R = vocabulary_map.likeliest

    def of_chunk(chunk: Tensor) -> Tensor:
        cached, labels_n = text.rows.take(chunk), text.labels_N[chunk]
        routed = _routed_rows(head, text.routed_NT[chunk], cached)
        previous_n = text.previous_ids_N[chunk]
        target = sparse_target(routed, vocabulary_map, temperature, order, "residual", previous_ids_N=previous_n)
        logits_nV = text.student_ND[chunk].float() @ weight_VD.float().T
        kl_n = temperature**2 * forward_kl(logits_nV, target, temperature)
        is_next_nK = likeliest_R[cached.topk_ids] == labels_n[:, None]
        return kl_n + _logmass(cached.topk_logprobs, is_next_nK) - _logmass(routed.topk_logprobs, is_next_nK)

    chunks = torch.arange(len(text.labels_N), device=text.labels_N.device).split(chunk_positions)
    return torch.cat([checkpoint(of_chunk, chunk, use_reentrant=False) for chunk in chunks])


def _routed_rows(head: TeacherHead, routed_NT: Tensor, cached: TeacherRows) -> TeacherRows:
    """The cached rows with the kept ids' log-probabilities under the gate; their mass stays."""
    logprobs_NK = replayed_logits(head, routed_NT, cached.topk_ids).log_softmax(-1)
    kept_mass_N1 = cached.topk_logprobs.logsumexp(-1, keepdim=True)
    return replace(cached, topk_logprobs=logprobs_NK + kept_mass_N1)


def _logmass(logprobs_NK: Tensor, chosen_NK: Tensor) -> Tensor:
    """Log of the chosen entries' mass, [N]; 0 where none is chosen."""
    least = torch.finfo(torch.float32).min  # not -inf, whose logsumexp has no gradient
    mass_N: Tensor = logprobs_NK.masked_fill(~chosen_NK, least).logsumexp(-1)
    return mass_N.masked_fill(~chosen_NK.any(-1), 0.0)
