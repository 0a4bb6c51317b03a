"""What the cache tells of the teacher's distribution outside the kept ids: log-sums at a few temperatures, and samples.

Shapes: N positions, M tail samples, G temperature nodes, X pairs of a sample and one of its student tokens.
"""

import numpy as np
import torch
from torch import Tensor

from moe_distill.shards.teacher_store import TAIL_TEMPERATURES
from moe_distill.targets.sparse_rows import NEGATIVE_INFINITY
from moe_distill.targets.teacher_rows import TeacherRows
from moe_distill.targets.token_shares import StudentPairs

MOST_OF_TAIL = 1.0 - 1e-6  # that the next token can be: fp16 may put it above all of the tail


def interpolation_weights(temperature: float) -> Tensor:
    """Lagrange weights over TAIL_TEMPERATURES, as a polynomial in 1/T, fp32 [G].

    The log of the tail's sum is smooth and convex in 1/T; the polynomial passes through every node.

    Raises:
        ValueError: `temperature` lies outside the nodes.
    """
    nodes = 1.0 / np.array(TAIL_TEMPERATURES)
    if not min(TAIL_TEMPERATURES) <= temperature <= max(TAIL_TEMPERATURES):
        raise ValueError(f"temperature {temperature} lies outside [1, 4], where the tail was recorded")
    point = 1.0 / temperature
    weights = [np.prod([(point - other) / (node - other) for other in nodes if other != node]) for node in nodes]
    return torch.tensor(np.array(weights), dtype=torch.float32)


def tail_logsumexp_at(rows: TeacherRows, temperature: float) -> Tensor:
    """Log of the sum of exp(logprob / T) outside the top-k, [N]; -inf for an empty tail."""
    weights_G = interpolation_weights(temperature).to(rows.tail_logsumexp.device)
    is_empty = rows.tail_logsumexp[:, 0] == NEGATIVE_INFINITY
    finite_NG = rows.tail_logsumexp.masked_fill(is_empty[:, None], 0.0)
    return (finite_NG * weights_G).sum(-1).masked_fill(is_empty, NEGATIVE_INFINITY)


def outside_logsumexp(rows: TeacherRows, temperature: float, next_ids_N: Tensor | None) -> Tensor:
    """Log-sum at `temperature` of all that is neither kept nor next in the text, [N].

    Args:
        next_ids_N: the teacher's next tokens; None: they count as any other.
    """
    tail_N = tail_logsumexp_at(rows, temperature)
    if next_ids_N is None:
        return tail_N
    is_kept_N = (rows.topk_ids == next_ids_N[:, None]).any(-1)
    share_N = (rows.target_logprob / temperature - tail_N).exp().clamp_max(MOST_OF_TAIL)
    return torch.where(is_kept_N, tail_N, tail_N + torch.log1p(-share_N))


def sample_probs(
    rows: TeacherRows, samples: StudentPairs, temperature: float, normalizer_N: Tensor, factors_X: Tensor | None
) -> Tensor:
    """Importance-weighted probability of each tail sample, [X]; on average they sum to the tail's mapped mass.

    Args:
        samples: the student's tokens of the rows' tail samples, all in one list.
        normalizer_N: log of the sum that the tempered distribution is divided by.
        factors_X: what merging makes of a sample that was tempered first; None: nothing.
    """
    logprobs_NM = rows.tail_logprobs / temperature - normalizer_N[:, None] - rows.tail_log_density
    probs_X = (logprobs_NM.exp() / rows.tail_ids.shape[1]).flatten()[samples.sources] * samples.log_shares.exp()
    return probs_X if factors_X is None else probs_X * factors_X
