"""A full row of logits becomes a small record that any temperature from 1 to 4 can be read from.

Legend: N positions, V rows of the output matrix, K kept logits, M tail samples, G temperature nodes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_distill.shards.teacher_store import TAIL_TEMPERATURES, tail_log_density


@dataclass(frozen=True)
class Records:
    """What is kept of N positions; log-probabilities at T = 1, in fp32."""

    topk_ids: Tensor  # int64 [N, K]
    topk_logprobs: Tensor  # [N, K], descending
    tail_logsumexp: Tensor  # [N, G]: log of the sum of exp(logprob / T) outside the top-k
    tail_ids: Tensor  # int64 [N, M]
    tail_logprobs: Tensor  # [N, M]
    target_logprob: Tensor  # [N]


def sparsify(logits_NV: Tensor, targets_N: Tensor, k: int, tail_samples: int, uniforms_N: Tensor) -> Records:
    """Keep the k largest log-probabilities, the tail's log-sums and samples of the tail.

    The samples are drawn by systematic resampling (one uniform offset, M equal strata of the cumulative
    distribution), which is unbiased and varies less than independent draws. They come from `tail_log_density`:
    the tail at a raised temperature, because it counts most at high ones, mixed with the uniform distribution.

    Args:
        logits_NV: fp32 logits, finite.
        targets_N: the token that follows each position.
        k: logits kept, less than V.
        tail_samples: samples drawn outside the top-k.
        uniforms_N: a uniform number of [0, 1) for each position: all the randomness there is.
    """
    logprobs_NV = logits_NV.log_softmax(-1)
    topk_logprobs, topk_ids = logprobs_NV.topk(k, dim=-1)
    tail_NV = logprobs_NV.scatter(1, topk_ids, float("-inf"))
    tail_logsumexp = torch.stack([(tail_NV / temperature).logsumexp(-1) for temperature in TAIL_TEMPERATURES], -1)
    density_NV = tail_log_density(tail_NV, tail_logsumexp, logits_NV.shape[1] - k).exp().scatter(1, topk_ids, 0.0)
    tail_ids = _systematic_samples(density_NV, tail_samples, uniforms_N)
    return Records(
        topk_ids=topk_ids,
        topk_logprobs=topk_logprobs,
        tail_logsumexp=tail_logsumexp,
        tail_ids=tail_ids,
        tail_logprobs=logprobs_NV.gather(1, tail_ids),
        target_logprob=logprobs_NV.gather(1, targets_N[:, None]).squeeze(1),
    )


def _systematic_samples(density_NV: Tensor, n_samples: int, uniforms_N: Tensor) -> Tensor:
    cumulative_NV = density_NV.cumsum(-1)
    strata_M = torch.arange(n_samples, device=density_NV.device)
    total_N1 = cumulative_NV[:, -1:]
    points_NM = (strata_M + uniforms_N[:, None]) / max(n_samples, 1) * total_N1
    below_total_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))
    # `right` steps over ids of no mass, the top-k among them
    return torch.searchsorted(cumulative_NV, torch.minimum(points_NM, below_total_N1), right=True)
