"""How a router turns its logits into the weights of experts, for the routers of current Mixture-of-Experts models.

A score for each expert, a choice of the highest scores, and weights from the chosen scores. Qwen3-MoE, Mixtral and
gpt-oss score by a softmax. DeepSeek-V3 and GLM-4-MoE score by a sigmoid, choose by score plus a bias that keeps the
experts' load even, may choose among the best groups of experts alone, and scale the weights.

Shapes: N positions, E experts.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

LEAST_SUM = 1e-20  # of sigmoid scores that weights are divided by


class RouterRule(BaseModel):
    """From the router's logits to a mixture of experts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: Literal["softmax", "sigmoid"]
    experts_per_token: int
    normalizes: bool  # whether the weights of the chosen experts are divided by their sum
    scale: float = 1.0  # of the weights
    groups: int = 1  # of equally many neighbouring experts
    kept_groups: int = 1  # that experts are chosen from
    group_score: Literal["largest", "two_largest"] = (
        "largest"  # what a group counts by: its best score, or the sum of its best two
    )


def gate_logprobs(rule: RouterRule, logits_NE: Tensor, temperature: float) -> Tensor:
    """The scores as a distribution over all experts, in logs, fp32 [N, E]."""
    tempered_NE = logits_NE.float() / temperature
    if rule.score == "softmax":
        return tempered_NE.log_softmax(-1)
    log_scores_NE = F.logsigmoid(tempered_NE)
    return log_scores_NE - log_scores_NE.logsumexp(-1, keepdim=True)


def mixture(
    rule: RouterRule, logits_NE: Tensor, selection_bias_E: Tensor | None, temperature: float, n_experts: int
) -> Tensor:
    """Weights of the experts at each position, fp32 [N, E]: 0 but for the chosen ones.

    With one expert a normalised weight is constant and its gradient 0; there the gradient passes straight through to
    the distribution over all experts.

    Args:
        selection_bias_E: added to the scores for the choice alone; None: none is.
        n_experts: experts mixed; where groups are chosen first, at most as many as these hold.
    """
    tempered_NE = logits_NE.float() / temperature
    scores_NE = tempered_NE.softmax(-1) if rule.score == "softmax" else tempered_NE.sigmoid()
    chosen = _chosen(rule, scores_NE.detach(), selection_bias_E, n_experts)
    top = scores_NE.gather(1, chosen)
    if rule.normalizes:
        top = top / top.sum(-1, keepdim=True).clamp_min(LEAST_SUM)
    kept_NE = torch.zeros_like(scores_NE).scatter(1, chosen, rule.scale * top)
    if not rule.normalizes or chosen.shape[1] > 1:
        return kept_NE
    passed_NE = rule.scale * gate_logprobs(rule, logits_NE, temperature).exp()
    return kept_NE + passed_NE - passed_NE.detach()


def _chosen(rule: RouterRule, scores_NE: Tensor, selection_bias_E: Tensor | None, n_experts: int) -> Tensor:
    """Numbers of the experts that are mixed, int64 [N, n]."""
    ranking_NE = scores_NE if selection_bias_E is None else scores_NE + selection_bias_E.float()
    available = scores_NE.shape[1] * rule.kept_groups // rule.groups
    if rule.kept_groups < rule.groups:
        grouped = ranking_NE.unflatten(1, (rule.groups, -1))
        counted = 1 if rule.group_score == "largest" else 2
        kept = grouped.topk(counted, dim=-1).values.sum(-1).topk(rule.kept_groups, dim=-1).indices
        is_out = torch.ones(grouped.shape[:2], dtype=torch.bool, device=kept.device).scatter(1, kept, False)
        ranking_NE = grouped.masked_fill(is_out[..., None], float("-inf")).flatten(1)
    return ranking_NE.topk(min(n_experts, available), dim=-1).indices
