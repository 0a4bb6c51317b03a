"""Cross-entropy and knowledge distillation of a text, from one product with the output matrix.

Logits are made stretch by stretch in one buffer, which becomes their gradient in place and is used up before the next
stretch: [positions, vocabulary] is never held whole, nothing is computed a second time in the backward pass, and both
losses share one softmax (two where the temperature is not 1). The idea is that of Liger Kernel (Hsu et al. 2024) and
Cut Cross-Entropy (Wijmans et al. 2024), in plain PyTorch.

Knowledge distillation is KL(q || p) with everything outside the target's entries in one bucket: the sum over entries of
q (log q - log p) + r (log r - log p_rest), with r the target's residual and p_rest the student's probability outside
the entries; a proper KL, a lower bound of the full one, and never renormalised. Both sides are tempered and the loss
is multiplied by T^2, which keeps the size of its gradient (Hinton, Vinyals and Dean 2015).

The bucket's gradient says nothing about where inside it mass belongs, and at T = 3 most mass is there. Tail samples say
it: where a position has them, the gradient is that of the cross-entropy against entries and samples. The bucketed KL is
what is displayed in any case.

Shapes: N positions, V student vocabulary, D student hidden size, n positions of a stretch, Z entries, Y samples.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.softmax import LOWEST, Pulls, Removed, softmax_
from moe_distill.targets.sparse_rows import grouped_logsumexp
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.stretches import Stretch

NO_RESIDUAL = 1e-7  # fp32 rounding of a row that sums to 1
HALF_SCALE = 2.0**-6  # of what a stretch adds to the output matrix' gradient, lest fp16 overflow before fp32 takes over


@dataclass(frozen=True)
class Text:
    """What follows in the text, and what the teacher says follows."""

    labels_N: Tensor  # int64
    target: SparseTarget | None  # None: cross-entropy alone
    stretches: tuple[Stretch, ...]  # of all positions, in order


@dataclass(frozen=True)
class TextLoss:
    """Sums over positions, fp32 scalars in nats, and beside them each position's; only `loss` has a gradient."""

    loss: Tensor  # weighted cross-entropy + kd_weight * T^2 * KD; of KD without the target's own entropy
    nll: Tensor
    weighted_nll: Tensor
    kl: Tensor | None  # the bucketed KL; None without a target
    nll_N: Tensor


def text_loss(hidden_ND: Tensor, head: OutputHead, text: Text, kd_weight: float, dtype: torch.dtype) -> TextLoss:
    """The loss of a text, and its gradient where gradients are enabled.

    Where a position has a target, its cross-entropy has weight 1 - kd_weight and KD kd_weight; elsewhere cross-entropy
    keeps weight 1.

    Args:
        hidden_ND: what the head reads.
        head: whose weights get a gradient too.
        dtype: of the product with the output matrix and of the logits; sums and softmaxes are fp32 in any case.
    """
    with_gradient = torch.is_grad_enabled()
    loss, nll, weighted_nll, kl, nll_N = _TextLoss.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head.weight_VD, head.bias_V, head, text, kd_weight, dtype, with_gradient
    )
    return TextLoss(loss, nll, weighted_nll, None if text.target is None else kl, nll_N)


class _TextLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: OutputHead,
        text: Text,
        kd_weight: float,
        dtype: torch.dtype,
        with_gradient: bool,
    ) -> tuple[Tensor, ...]:
        read_ND, output_VD = head.scaled(hidden_ND).to(dtype), weight_VD.to(dtype)
        longest = max((stretch.stop - stretch.start for stretch in text.stretches), default=0)
        buffer_nV = read_ND.new_empty(longest, len(weight_VD))
        hidden_gradient_ND = torch.zeros_like(hidden_ND, dtype=torch.float32) if with_gradient else None
        weight_gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if with_gradient else None
        bias_gradient_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        sums = hidden_ND.new_zeros(4, dtype=torch.float32)
        nll_N = hidden_ND.new_zeros(len(hidden_ND), dtype=torch.float32)
        for stretch in text.stretches:
            read_nD = read_ND[stretch.start : stretch.stop]
            logits_nV = buffer_nV[: len(read_nD)]
            torch.mm(read_nD, output_VD.T, out=logits_nV)
            if bias_V is not None:
                logits_nV += bias_V.to(dtype)
            slope_nV = head.cap_(logits_nV)
            of_stretch, nll_n = _losses(logits_nV, text, stretch, kd_weight, with_gradient)
            sums += of_stretch
            nll_N[stretch.start : stretch.stop] = nll_n
            if hidden_gradient_ND is None or weight_gradient_VD is None:
                continue
            if slope_nV is not None:
                logits_nV *= slope_nV
            if bias_gradient_V is not None:
                bias_gradient_V += logits_nV.sum(0, dtype=torch.float32)
            hidden_gradient_ND[stretch.start : stretch.stop] = logits_nV @ output_VD
            if dtype is torch.float32:
                weight_gradient_VD.addmm_(logits_nV.T, read_nD)
            else:
                product_VD = logits_nV.T @ (read_nD * HALF_SCALE)
                weight_gradient_VD.add_(product_VD, alpha=1.0 / HALF_SCALE)
        if hidden_gradient_ND is not None and weight_gradient_VD is not None:
            ctx.save_for_backward(head.scaled(hidden_gradient_ND), weight_gradient_VD, bias_gradient_V)
        loss, *others = (*sums.unbind(), nll_N)
        ctx.mark_non_differentiable(*others)
        return loss, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_others: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient_ND, weight_gradient_VD, bias_gradient_V = ctx.saved_tensors
        of_bias_V = None if bias_gradient_V is None else bias_gradient_V.mul_(gradient)
        of_weights = weight_gradient_VD.mul_(gradient), of_bias_V
        return hidden_gradient_ND * gradient, *of_weights, None, None, None, None, None


def _losses(
    logits_nV: Tensor, text: Text, stretch: Stretch, kd_weight: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Loss, NLL, weighted NLL and KL of a stretch, [4], and each position's NLL, [n].

    The logits become the gradient of the loss, in place.
    """
    label_ids_n = text.labels_N[stretch.start : stretch.stop]
    if text.target is None:
        return _lm(logits_nV, label_ids_n, with_gradient)
    part = _part(text.target, stretch, label_ids_n, logits_nV.shape[1])
    entries, samples = (_Listed(places, logits_nV.view(-1)) for places in (part.entry_places_Z, part.sample_places_Y))
    return _distilled(logits_nV, label_ids_n, entries, samples, part, kd_weight, with_gradient)


@dataclass(frozen=True)
class _Part:
    """The target's part of a stretch; rows count from its start, places are those in the flat matrix."""

    temperature: float
    has_target_n: Tensor
    residual_n: Tensor
    has_bucket_n: Tensor
    listed_mass_n: Tensor
    entry_rows_Z: Tensor
    entry_places_Z: Tensor
    entry_probs_Z: Tensor
    are_labels_Z: Tensor  # fp32, 1 where an entry is its row's label
    sample_rows_Y: Tensor
    sample_places_Y: Tensor
    sample_probs_Y: Tensor


def _part(target: SparseTarget, stretch: Stretch, label_ids_n: Tensor, vocabulary: int) -> _Part:
    first_n = torch.arange(len(label_ids_n), device=label_ids_n.device) * vocabulary
    positions = slice(stretch.start, stretch.stop)
    entries, samples = slice(*stretch.entries), slice(*stretch.samples)
    entry_rows_Z, entry_ids_Z = target.entry_positions_Z[entries] - stretch.start, target.entry_ids_Z[entries]
    sample_rows_Y = target.sample_positions_Y[samples] - stretch.start
    return _Part(
        temperature=target.temperature,
        has_target_n=target.has_target_N[positions].float(),
        residual_n=target.residual_N[positions],
        has_bucket_n=target.has_bucket_N[positions].float(),
        listed_mass_n=target.listed_mass_N[positions],
        entry_rows_Z=entry_rows_Z,
        entry_places_Z=first_n.index_select(0, entry_rows_Z) + entry_ids_Z,
        entry_probs_Z=target.entry_probs_Z[entries],
        are_labels_Z=(label_ids_n.index_select(0, entry_rows_Z) == entry_ids_Z).float(),
        sample_rows_Y=sample_rows_Y,
        sample_places_Y=first_n.index_select(0, sample_rows_Y) + target.sample_ids_Y[samples],
        sample_probs_Y=target.sample_probs_Y[samples],
    )


class _Listed:
    """Some of the matrix' logits, read before it is overwritten, and the places that their gradient is added to."""

    def __init__(self, places: Tensor, flat_logits: Tensor) -> None:
        self._places, self._flat_logits = places, flat_logits
        self.logits = flat_logits.index_select(0, places).float()

    def remove(self) -> None:
        """Take them out of the matrix."""
        self._flat_logits.index_fill_(0, self._places, float("-inf"))

    def add_gradient(self, gradient: Tensor) -> None:
        self._flat_logits.index_add_(0, self._places, gradient.to(self._flat_logits.dtype))


def _lm(logits_nV: Tensor, label_ids_n: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Cross-entropy alone."""
    label_logits_n = _label_logits(logits_nV, label_ids_n)
    ones_n = torch.ones_like(label_logits_n)
    sums = softmax_(logits_nV, 1.0, None, Pulls(ones_n, label_ids_n, ones_n) if with_gradient else None)
    nll_n = sums.at_one - label_logits_n
    nll = nll_n.sum()
    return torch.stack([nll, nll, nll, torch.zeros_like(nll)]), nll_n


def _label_logits(logits_nV: Tensor, label_ids_n: Tensor) -> Tensor:
    return logits_nV.gather(1, label_ids_n[:, None]).squeeze(1).float()


def _distilled(
    logits_nV: Tensor,
    label_ids_n: Tensor,
    entries: _Listed,
    samples: _Listed,
    part: _Part,
    kd_weight: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the text, and against entries, samples and buckets; beside them the bucketed KL.

    The entries' logits are taken out first, so that what is left of a row is the bucket of all the rest.
    """
    temperature, kd_scale = part.temperature, kd_weight * part.temperature  # T^2, and 1 / T from inside the softmax
    lm_weight_n = 1.0 - kd_weight * part.has_target_n
    rows_Z, n = part.entry_rows_Z, len(logits_nV)
    label_logits_n = _label_logits(logits_nV, label_ids_n)
    entries.remove()
    at_one_n = grouped_logsumexp(entries.logits, rows_Z, n)
    tempered_n = at_one_n if temperature == 1.0 else grouped_logsumexp(entries.logits / temperature, rows_Z, n)
    n_entries_n = torch.zeros_like(part.residual_n).index_add(0, rows_Z, torch.ones_like(entries.logits))
    residual_n = part.residual_n * ((part.residual_n > NO_RESIDUAL) & (n_entries_n < logits_nV.shape[1]))
    bucket_n = residual_n * part.has_bucket_n
    drawn_n = part.listed_mass_n + bucket_n
    of_labels_Z = lm_weight_n.index_select(0, rows_Z) * part.are_labels_Z
    of_labels_n = lm_weight_n - torch.zeros_like(lm_weight_n).index_add(0, rows_Z, of_labels_Z)  # of those left
    pulls = Pulls(lm_weight_n, label_ids_n, of_labels_n, kd_scale * drawn_n, kd_scale * bucket_n)
    sums = softmax_(logits_nV, temperature, Removed(at_one_n, tempered_n), pulls if with_gradient else None)

    nll_n = sums.at_one - label_logits_n
    entry_logprobs_Z = entries.logits / temperature - sums.tempered.index_select(0, rows_Z)
    sample_logprobs_Y = samples.logits / temperature - sums.tempered.index_select(0, part.sample_rows_Y)
    rest_logprobs_n = (sums.rest - sums.tempered).clamp_min(LOWEST)
    if with_gradient:
        at_one_Z = entries.logits - sums.at_one.index_select(0, rows_Z)
        of_entries_Z = lm_weight_n.index_select(0, rows_Z) * at_one_Z.exp()
        of_entries_Z += kd_scale * (drawn_n.index_select(0, rows_Z) * entry_logprobs_Z.exp() - part.entry_probs_Z)
        of_entries_Z -= of_labels_Z
        entries.add_gradient(of_entries_Z)
        samples.add_gradient(-kd_scale * part.sample_probs_Y)
    probs_Z, weighted_nll = part.entry_probs_Z, lm_weight_n @ nll_n
    cross_entropy = -(probs_Z @ entry_logprobs_Z + part.sample_probs_Y @ sample_logprobs_Y + bucket_n @ rest_logprobs_n)
    loss = weighted_nll + kd_weight * temperature**2 * cross_entropy
    kl = (torch.xlogy(probs_Z, probs_Z) - probs_Z * entry_logprobs_Z).sum()
    kl += (torch.xlogy(residual_n, residual_n) - residual_n * rest_logprobs_n).sum()
    return torch.stack([loss, nll_n.sum(), weighted_nll, kl]), nll_n
