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
it: with them the gradient is that of the cross-entropy against entries and samples. The bucketed KL is then what is
displayed, and is computed only when asked for.

Shapes: N positions, V student vocabulary, D student hidden size, n positions of a stretch, E entries, Y samples.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_distill.targets.sparse_rows import grouped_logsumexp
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.stretches import Stretch

NO_RESIDUAL = 1e-7  # fp32 rounding of a row that sums to 1
BLOCK_VALUES = {"cpu": 2**18, "cuda": 2**26}  # logits of a softmax at once: about a core's cache; enough to fill a GPU


@dataclass(frozen=True)
class Text:
    """What follows in the text, and what the teacher says follows."""

    labels_N: Tensor  # int64
    target: SparseTarget | None  # None: cross-entropy alone
    stretches: tuple[Stretch, ...]  # of all positions, in order


@dataclass(frozen=True)
class TextLoss:
    """Sums over positions, fp32 scalars in nats; only `loss` has a gradient."""

    loss: Tensor  # weighted cross-entropy + kd_weight * T^2 * KD
    nll: Tensor
    weighted_nll: Tensor
    kl: Tensor | None  # the bucketed KL, where it was asked for


def text_loss(
    hidden_ND: Tensor, weight_VD: Tensor, text: Text, kd_weight: float, dtype: torch.dtype, with_kl: bool
) -> TextLoss:
    """The loss of a text, and its gradient where gradients are enabled.

    Where a position has a target, its cross-entropy has weight 1 - kd_weight and KD kd_weight; elsewhere cross-entropy
    keeps weight 1.

    Args:
        hidden_ND: what the output matrix reads.
        weight_VD: the output matrix.
        dtype: of the product with the output matrix and of the logits; sums and softmaxes are fp32 in any case.
        with_kl: whether `TextLoss.kl` is wanted; it costs little.
    """
    has_kl = text.target is not None and (with_kl or not text.target.is_sampled)
    with_gradient = torch.is_grad_enabled()
    loss, nll, weighted_nll, kl = _TextLoss.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, text, kd_weight, dtype, has_kl, with_gradient
    )
    return TextLoss(loss, nll, weighted_nll, kl if has_kl else None)


class _TextLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        text: Text,
        kd_weight: float,
        dtype: torch.dtype,
        has_kl: bool,
        with_gradient: bool,
    ) -> tuple[Tensor, ...]:
        read_ND, output_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        longest = max((stretch.stop - stretch.start for stretch in text.stretches), default=0)
        buffer_nV = read_ND.new_empty(longest, len(weight_VD))
        hidden_gradient_ND = torch.zeros_like(hidden_ND, dtype=torch.float32) if with_gradient else None
        weight_gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if with_gradient else None
        sums = hidden_ND.new_zeros(4, dtype=torch.float32)
        for stretch in text.stretches:
            read_nD = read_ND[stretch.start : stretch.stop]
            logits_nV = buffer_nV[: len(read_nD)]
            torch.mm(read_nD, output_VD.T, out=logits_nV)
            sums += _losses(logits_nV, text, stretch, kd_weight, has_kl, with_gradient)
            if hidden_gradient_ND is not None and weight_gradient_VD is not None:
                hidden_gradient_ND[stretch.start : stretch.stop] = logits_nV @ output_VD
                if dtype is torch.float32:
                    weight_gradient_VD.addmm_(logits_nV.T, read_nD)
                else:
                    weight_gradient_VD += logits_nV.T @ read_nD
        if hidden_gradient_ND is not None and weight_gradient_VD is not None:
            ctx.save_for_backward(hidden_gradient_ND, weight_gradient_VD)
        loss, *others = sums.unbind()
        ctx.mark_non_differentiable(*others)
        return loss, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_others: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient_ND, weight_gradient_VD = ctx.saved_tensors
        return hidden_gradient_ND * gradient, weight_gradient_VD.mul_(gradient), None, None, None, None, None


def _losses(
    logits_nV: Tensor, text: Text, stretch: Stretch, kd_weight: float, has_kl: bool, with_gradient: bool
) -> Tensor:
    """Loss, NLL, weighted NLL and KL of a stretch, [4]; the logits become the gradient of the loss, in place.

    Where the KL is wanted, the entries' logits are taken out first, so that what remains is the bucket of all the rest.
    """
    positions = slice(stretch.start, stretch.stop)
    n, vocabulary = logits_nV.shape
    flat_logits, first_n = logits_nV.view(-1), torch.arange(n, device=logits_nV.device) * vocabulary
    label_places_n = first_n + text.labels_N[positions]
    label_logits_n = flat_logits.index_select(0, label_places_n).float()
    if text.target is None:
        sums_n = _softmax_sums(logits_nV, 1.0, None)
        nll_n = sums_n.all_at_one - label_logits_n
        if with_gradient:
            _to_gradient(logits_nV, sums_n, 1.0, torch.ones_like(nll_n), None)
            flat_logits.index_add_(0, label_places_n, torch.full_like(flat_logits[:n], -1.0))
        nll = nll_n.sum()
        return torch.stack([nll, nll, nll, torch.zeros_like(nll)])

    part = _part(text.target, stretch)
    temperature = text.target.temperature
    entry_places_E = first_n.index_select(0, part.entry_rows_E) + part.entry_ids_E
    sample_places_Y = first_n.index_select(0, part.sample_rows_Y) + part.sample_ids_Y
    entry_logits_E = flat_logits.index_select(0, entry_places_E).float()
    sample_logits_Y = flat_logits.index_select(0, sample_places_Y).float()
    taken_out = None
    if has_kl:
        flat_logits.index_fill_(0, entry_places_E, float("-inf"))
        taken_out = _TakenOut(part.entry_rows_E, entry_logits_E)
    sums_n = _softmax_sums(logits_nV, temperature, taken_out)
    nll_n = sums_n.all_at_one - label_logits_n
    lm_weight_n = 1.0 - kd_weight * part.has_target_n.float()
    entry_logprobs_E = entry_logits_E / temperature - sums_n.all_tempered.index_select(0, part.entry_rows_E)
    sample_logprobs_Y = sample_logits_Y / temperature - sums_n.all_tempered.index_select(0, part.sample_rows_Y)
    kl = torch.zeros_like(label_logits_n[:1]).sum()
    drawn_mass_n = part.listed_mass_n  # what pulls the tempered softmax up
    rest_pull_n = torch.zeros_like(drawn_mass_n)  # what pulls the rest up, all of it alike
    rest_logprob_n = sums_n.left_tempered - sums_n.all_tempered
    if has_kl:
        has_rest_n = (part.residual_n > NO_RESIDUAL) & (rest_logprob_n > float("-inf"))
        residual_n = part.residual_n.masked_fill(~has_rest_n, 1.0)
        of_entries_E = torch.xlogy(part.entry_probs_E, part.entry_probs_E) - part.entry_probs_E * entry_logprobs_E
        of_rest_n = residual_n * (residual_n.log() - rest_logprob_n.masked_fill(~has_rest_n, 0.0)) * has_rest_n
        kl = of_entries_E.sum() + of_rest_n.sum()
        if not text.target.is_sampled:
            rest_pull_n = part.residual_n * has_rest_n
            drawn_mass_n = part.listed_mass_n + rest_pull_n
    if text.target.is_sampled:
        kd = -(part.entry_probs_E * entry_logprobs_E).sum() - (part.sample_probs_Y * sample_logprobs_Y).sum()
    else:
        kd = kl
    if with_gradient:
        kd_scale = kd_weight * temperature  # T^2, and 1 / T from inside the softmax
        lm_scale_n = lm_weight_n * (sums_n.left_at_one - sums_n.all_at_one).exp()
        kd_scale_n = kd_scale * (drawn_mass_n * rest_logprob_n.exp() - rest_pull_n)
        _to_gradient(logits_nV, sums_n, temperature, lm_scale_n, kd_scale_n)
        entry_gradient_E = -kd_scale * part.entry_probs_E
        if has_kl:  # their logits were taken out
            at_one_E = entry_logits_E - sums_n.all_at_one.index_select(0, part.entry_rows_E)
            entry_gradient_E += lm_weight_n.index_select(0, part.entry_rows_E) * at_one_E.exp()
            entry_gradient_E += kd_scale * drawn_mass_n.index_select(0, part.entry_rows_E) * entry_logprobs_E.exp()
        flat_logits.index_add_(0, label_places_n, -lm_weight_n.to(flat_logits.dtype))
        flat_logits.index_add_(0, entry_places_E, entry_gradient_E.to(flat_logits.dtype))
        flat_logits.index_add_(0, sample_places_Y, (-kd_scale * part.sample_probs_Y).to(flat_logits.dtype))
    weighted_nll = (lm_weight_n * nll_n).sum()
    return torch.stack([weighted_nll + kd_weight * temperature**2 * kd, nll_n.sum(), weighted_nll, kl])


@dataclass(frozen=True)
class _Part:
    """The target's rows of a stretch; positions count from its start, and ids are int64."""

    has_target_n: Tensor
    residual_n: Tensor
    listed_mass_n: Tensor
    entry_rows_E: Tensor
    entry_ids_E: Tensor
    entry_probs_E: Tensor
    sample_rows_Y: Tensor
    sample_ids_Y: Tensor
    sample_probs_Y: Tensor


def _part(target: SparseTarget, stretch: Stretch) -> _Part:
    positions = slice(stretch.start, stretch.stop)
    entries, samples = slice(*stretch.entries), slice(*stretch.samples)
    return _Part(
        has_target_n=target.has_target_N[positions],
        residual_n=target.residual_N[positions],
        listed_mass_n=target.listed_mass_N[positions],
        entry_rows_E=target.entry_positions_E[entries].long() - stretch.start,
        entry_ids_E=target.entry_ids_E[entries].long(),
        entry_probs_E=target.entry_probs_E[entries],
        sample_rows_Y=target.sample_positions_Y[samples].long() - stretch.start,
        sample_ids_Y=target.sample_ids_Y[samples].long(),
        sample_probs_Y=target.sample_probs_Y[samples],
    )


@dataclass(frozen=True)
class _TakenOut:
    """Logits that stand at -inf in the matrix, fp32 [E], and the row of each."""

    rows: Tensor
    logits: Tensor


@dataclass(frozen=True)
class _SoftmaxSums:
    """Log-sums of exp of each row's logits, fp32 [n]."""

    all_at_one: Tensor  # at T = 1
    all_tempered: Tensor
    left_at_one: Tensor  # without what was taken out; -inf where nothing is left
    left_tempered: Tensor


def _softmax_sums(logits_nV: Tensor, temperature: float, taken_out: _TakenOut | None) -> _SoftmaxSums:
    at_one, tempered = [], []
    for block in _blocks(logits_nV):
        values = block.float()
        at_one.append(values.logsumexp(-1))
        if temperature != 1.0:
            tempered.append((values / temperature).logsumexp(-1))
    left_at_one = torch.cat(at_one)
    left_tempered = torch.cat(tempered) if tempered else left_at_one
    if taken_out is None:
        return _SoftmaxSums(left_at_one, left_tempered, left_at_one, left_tempered)
    of_entries = grouped_logsumexp(taken_out.logits, taken_out.rows, len(logits_nV))
    tempered_entries = of_entries
    if temperature != 1.0:
        tempered_entries = grouped_logsumexp(taken_out.logits / temperature, taken_out.rows, len(logits_nV))
    return _SoftmaxSums(
        all_at_one=torch.logaddexp(left_at_one, of_entries),
        all_tempered=torch.logaddexp(left_tempered, tempered_entries),
        left_at_one=left_at_one,
        left_tempered=left_tempered,
    )


def _to_gradient(
    logits_nV: Tensor, sums: _SoftmaxSums, temperature: float, lm_scale_n: Tensor, kd_scale_n: Tensor | None
) -> None:
    """Put lm_scale * softmax(left) + kd_scale * softmax(left / T) where the logits are that are left."""
    lowest = torch.finfo(torch.float32).min  # where nothing is left: exp(-inf - lowest) is 0
    at_one_n, tempered_n = sums.left_at_one.clamp_min(lowest), sums.left_tempered.clamp_min(lowest)
    start = 0
    for block in _blocks(logits_nV):
        rows = slice(start, start := start + len(block))
        values = block.float()  # itself where it is fp32
        lm_scale = lm_scale_n[rows, None]
        if kd_scale_n is None or temperature == 1.0:
            if kd_scale_n is not None:
                lm_scale = lm_scale + kd_scale_n[rows, None]
            values.sub_(at_one_n[rows, None]).exp_().mul_(lm_scale)
        else:
            tempered = (values / temperature).sub_(tempered_n[rows, None]).exp_().mul_(kd_scale_n[rows, None])
            values.sub_(at_one_n[rows, None]).exp_().mul_(lm_scale).add_(tempered)
        if block.dtype is not torch.float32:
            block.copy_(values)


def _blocks(logits_nV: Tensor) -> tuple[Tensor, ...]:
    """Some rows after the other: intermediate results of a block are small."""
    blocks: tuple[Tensor, ...] = logits_nV.split(max(1, BLOCK_VALUES[logits_nV.device.type] // logits_nV.shape[1]))
    return blocks
