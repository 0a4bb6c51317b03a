"""Reduce full rows of log-probabilities to small records that give the distribution at any temperature from 1 to 4.

A record holds the K largest log-probabilities, the log-sum of all others (the tail) at G temperatures, and M samples of
the tail. Shapes: N positions, R rows of the output matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_distill.shards.teacher_store import TAIL_TEMPERATURES, tail_log_density


@dataclass(frozen=True)
class Records:
    """The records of N positions; log-probabilities are in nats, at temperature 1, in fp32."""

    topk_ids: Tensor  # int64 [N, K]
    topk_logprobs: Tensor  # [N, K], descending
    tail_logsumexp: Tensor  # [N, G]: log of the sum over the tail of exp(logprob / temperature)
    tail_ids: Tensor  # int64 [N, M]
    tail_logprobs: Tensor  # [N, M]
    target_logprob: Tensor  # [N]: of the token that follows in the text


def sparsify(logprobs_NR: Tensor, targets_N: Tensor, k: int, tail_samples: int, uniforms_N: Tensor) -> Records:
    """Keep the k largest log-probabilities, the tail's log-sums and samples of the tail.

    The samples are drawn by systematic sampling (one uniform offset, M equal strata of the cumulative distribution),
    which is unbiased and varies less than independent samples. Their density is `tail_log_density`: the tail at
    temperature 2, since it has most mass at high temperatures, mixed with the uniform distribution.

    Args:
        logprobs_NR: log-softmax of finite logits, fp32.
        targets_N: int64; the token that follows each position.
        k: logits to keep, less than R.
        tail_samples: samples to draw from the tail.
        uniforms_N: a random number of [0, 1) for each position; the samples follow from it.
    """
    topk_logprobs, topk_ids = logprobs_NR.topk(k, dim=-1)
    tail_NR = logprobs_NR.scatter(1, topk_ids, float("-inf"))
    tail_logsumexp = torch.stack([(tail_NR / temperature).logsumexp(-1) for temperature in TAIL_TEMPERATURES], -1)
    density_NR = tail_log_density(tail_NR, tail_logsumexp, logprobs_NR.shape[1] - k).exp().scatter(1, topk_ids, 0.0)
    tail_ids = _systematic_samples(density_NR, tail_samples, uniforms_N)
    return Records(
        topk_ids=topk_ids,
        topk_logprobs=topk_logprobs,
        tail_logsumexp=tail_logsumexp,
        tail_ids=tail_ids,
        tail_logprobs=logprobs_NR.gather(1, tail_ids),
        target_logprob=logprobs_NR.gather(1, targets_N[:, None]).squeeze(1),
    )


def _systematic_samples(density_NR: Tensor, n_samples: int, uniforms_N: Tensor) -> Tensor:
    cumulative_NR = density_NR.cumsum(-1)
    strata_M = torch.arange(n_samples, device=density_NR.device)
    total_N1 = cumulative_NR[:, -1:]
    points_NM = (strata_M + uniforms_N[:, None]) / max(n_samples, 1) * total_N1
    below_total_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))
    # `right` never returns an id of no mass, such as those of the top-k
    return torch.searchsorted(cumulative_NR, torch.minimum(points_NM, below_total_N1), right=True)
