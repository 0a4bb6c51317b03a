"""Knowledge distillation against a sparse target: a truncated KL that never renormalises.

KL(q || p) = sum over entries of q (log q - log p) + r (log r - log p_rest), where r is the target's residual mass
and p_rest the student's mass outside the entries: the KL of the two distributions with everything outside the entries
put into one bucket, a lower bound of the full KL. Hinton, Vinyals and Dean (2015) temper both sides; the factor T^2
that keeps gradients comparable is the weight's business (training/text_terms), not this function's.

The bucket's gradient says nothing about where inside it mass belongs, and at T = 3 most mass is there. Tail samples
say it: with them the gradient is that of the cross-entropy against entries and samples, p - q with q estimated.
(Sampling p - q, with the student's own mass as control variate, is nearer to the full gradient on average; its rare
large kicks to single tokens cost more in training than they gain: docs/log.md.)

Legend: N positions, V student vocabulary, S support entries, M tail samples.
"""

import torch
from torch import Tensor

from moe_distill.targets.sparse_target import SparseTarget

NO_RESIDUAL = 1e-7  # fp32 rounding of a row that sums to 1


def forward_kl(logits_NV: Tensor, target: SparseTarget, temperature: float) -> Tensor:
    """KL(target || student at `temperature`) of each position in nats, fp32 [N].

    The value is the bucketed KL. Where the target has tail samples, the gradient is that of the cross-entropy against
    entries and samples.
    """
    logprobs_NV = torch.log_softmax(logits_NV.float() / temperature, dim=-1)
    if not target.tail_ids.shape[1]:
        return _bucketed_kl(logprobs_NV, target)
    entries_N = (target.probs * logprobs_NV.gather(-1, target.ids)).sum(-1)
    samples_N = (target.tail_probs * logprobs_NV.gather(-1, target.tail_ids)).sum(-1)
    crossed_N = -entries_N - samples_N
    return _bucketed_kl(logprobs_NV.detach(), target) + crossed_N - crossed_N.detach()


def _bucketed_kl(logprobs_NV: Tensor, target: SparseTarget) -> Tensor:
    """KL over the entries and one bucket for the rest, [N].

    The log of the student's residual is a logsumexp with the entries masked out: one minus the entries' sum would lose
    its gradient where the residual is small.
    """
    is_entry = target.logprobs > float("-inf")
    student_NS = logprobs_NV.gather(-1, target.ids)
    entries_N = (target.probs * (target.logprobs - student_NS).masked_fill(~is_entry, 0.0)).sum(-1)
    rest_N = _rest_logprob(logprobs_NV, target.ids, is_entry)
    has_rest = (target.residual > NO_RESIDUAL) & (rest_N > float("-inf"))
    residual_N = target.residual.masked_fill(~has_rest, 1.0)
    return entries_N + residual_N * (residual_N.log() - rest_N.masked_fill(~has_rest, 0.0)) * has_rest


def _rest_logprob(logprobs_NV: Tensor, ids_NS: Tensor, is_entry_NS: Tensor) -> Tensor:
    """Log of the student's probability outside the entries, [N]; -inf where they cover the vocabulary."""
    marks_NS = is_entry_NS.to(torch.uint8)  # CUDA has no maximum of bools
    taken_NV = torch.zeros_like(logprobs_NV, dtype=torch.uint8).scatter_reduce(-1, ids_NS, marks_NS, "amax")
    return logprobs_NV.masked_fill(taken_NV.bool(), float("-inf")).logsumexp(-1)
