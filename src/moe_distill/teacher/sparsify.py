"""Reduce full rows of logits to small records that give the distribution at any temperature from 1 to 4.

A record holds the K largest log-probabilities, the log-sum of all others (the tail) at G temperatures, and M samples of
the tail. Shapes: N positions, R rows of the output matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_distill.shards.teacher_store import TAIL_SAMPLE_TEMPERATURE, TAIL_TEMPERATURES, TAIL_UNIFORM_SHARE

ROOT = 12  # every node's ROOT / T is whole: 12, 9, 6, 4, 3
BLOCK = 64  # logits of which the largest is looked at first
MANY_BLOCKS = 8  # for each wanted logit; with fewer the short cut is none


@dataclass(frozen=True)
class Records:
    """The records of N positions; log-probabilities are in nats, at temperature 1, in fp32."""

    topk_ids: Tensor  # int64 [N, K]
    topk_logprobs: Tensor  # [N, K], descending
    tail_logsumexp: Tensor  # [N, G]: log of the sum over the tail of exp(logprob / temperature)
    tail_ids: Tensor  # int64 [N, M]
    tail_logprobs: Tensor  # [N, M]
    target_logprob: Tensor  # [N]: of the token that follows in the text


def sparsify(logits_NR: Tensor, targets_N: Tensor, k: int, tail_samples: int, uniforms_N: Tensor) -> Records:
    """Keep the k largest log-probabilities, the tail's log-sums and samples of the tail.

    The samples are drawn by systematic sampling (one uniform offset, M equal strata of the cumulative distribution),
    which is unbiased and varies less than independent samples. Their density is `tail_log_density`: the tail at
    temperature 2, since it has most mass at high temperatures, mixed with the uniform distribution.

    Args:
        logits_NR: finite, fp32; left as they are. As much memory again is taken twice.
        targets_N: int64; the token that follows each position.
        k: logits to keep, less than R.
        tail_samples: samples to draw from the tail.
        uniforms_N: a random number of [0, 1) for each position; the samples follow from it.
    """
    largest, ids = _largest(logits_NR, k + 1)
    topk_logits, topk_ids, peak_N1 = largest[:, :k], ids[:, :k], largest[:, k:]
    root_NR = (logits_NR - peak_N1).mul_(1.0 / ROOT).exp_().scatter_(1, topk_ids, 0.0)
    sums_NG, square_root_NR, buffer_NR = _sums_of_powers(root_NR)
    # All beside the tail's largest: of logits that are all large, no digit is lost to what they have in common.
    topk_NK, tail_NG = topk_logits - peak_N1, sums_NG.log()
    normalizer_N1 = torch.logaddexp(topk_NK.logsumexp(-1, keepdim=True), tail_NG[:, :1])

    node, n_tail = TAIL_TEMPERATURES.index(TAIL_SAMPLE_TEMPERATURE), logits_NR.shape[1] - k
    density_NR = square_root_NR.mul_((1.0 - TAIL_UNIFORM_SHARE) / sums_NG[:, node, None])
    density_NR.add_(TAIL_UNIFORM_SHARE / n_tail).scatter_(1, topk_ids, 0.0)
    tail_ids = _systematic_samples(density_NR, tail_samples, uniforms_N, buffer_NR)
    return Records(
        topk_ids=topk_ids,
        topk_logprobs=topk_NK - normalizer_N1,
        tail_logsumexp=tail_NG - normalizer_N1 / logits_NR.new_tensor(TAIL_TEMPERATURES),
        tail_ids=tail_ids,
        tail_logprobs=logits_NR.gather(1, tail_ids) - peak_N1 - normalizer_N1,
        target_logprob=(logits_NR.gather(1, targets_N[:, None]) - peak_N1 - normalizer_N1).squeeze(1),
    )


def _largest(logits_NR: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each row and their ids, [N, count], descending.

    They stand in the blocks whose own largest are the largest, as many blocks as are wanted: only those are sorted.
    """
    n_blocks = logits_NR.shape[1] // BLOCK
    if n_blocks < MANY_BLOCKS * count:
        few = logits_NR.topk(count, dim=-1)
        return few.values, few.indices
    whole, numbers = n_blocks * BLOCK, torch.arange(logits_NR.shape[1], device=logits_NR.device)
    blocks = logits_NR[:, :whole].unflatten(1, (n_blocks, BLOCK)).amax(-1).topk(count, dim=-1).indices
    inside = (blocks[:, :, None] * BLOCK + numbers[:BLOCK]).flatten(1)
    ids = torch.cat([inside, numbers[whole:].expand(len(inside), -1)], 1)
    largest, places = logits_NR.gather(1, ids).topk(count, dim=-1)
    return largest, ids.gather(1, places)


def _sums_of_powers(root_NR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the rows of exp(logit / T) for every node T, out of exp(logit / 12): one exponential serves all.

    Args:
        root_NR: 0 outside the tail; overwritten.

    Returns:
        The sums [N, G]; exp(logit / 2); and a tensor of that size to write to.
    """
    powers: dict[int, Tensor] = {}  # by ROOT / T
    square_NR = root_NR.square()
    third_NR = root_NR.mul_(square_NR)
    powers[3] = third_NR.sum(-1)
    powers[4] = square_NR.square_().sum(-1)
    sixth_NR = torch.mul(third_NR, third_NR, out=square_NR)
    powers[6] = sixth_NR.sum(-1)
    powers[9] = third_NR.mul_(sixth_NR).sum(-1)
    powers[12] = torch.mul(sixth_NR, sixth_NR, out=third_NR).sum(-1)
    sums_NG = torch.stack([powers[round(ROOT / temperature)] for temperature in TAIL_TEMPERATURES], -1)
    return sums_NG, sixth_NR, third_NR


def _systematic_samples(density_NR: Tensor, n_samples: int, uniforms_N: Tensor, buffer_NR: Tensor) -> Tensor:
    cumulative_NR = torch.cumsum(density_NR, -1, out=buffer_NR)
    strata_M = torch.arange(n_samples, device=density_NR.device)
    total_N1 = cumulative_NR[:, -1:]
    points_NM = (strata_M + uniforms_N[:, None]) / max(n_samples, 1) * total_N1
    below_total_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))
    # `right` never returns an id of no mass, such as those of the top-k
    return torch.searchsorted(cumulative_NR, torch.minimum(points_NM, below_total_N1), right=True)
