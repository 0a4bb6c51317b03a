"""Gates over replayed experts, and a teacher's own: mixtures, balance and importance.

Shapes: N positions, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def mixture(gate_logits_NE: Tensor, temperature: float, n_experts: int, normalizes: bool) -> Tensor:
    """Weights of the experts at each position, fp32 [N, E]: the `n_experts` largest of the tempered softmax.

    Args:
        normalizes: divide the weights of a position by their sum. With one expert a normalised weight is always 1 and
            its gradient 0; there the gradient passes straight through to the softmax.
    """
    probs_NE = (gate_logits_NE.float() / temperature).softmax(-1)
    top, chosen = probs_NE.topk(n_experts, dim=-1)
    if normalizes:
        top = top / top.sum(-1, keepdim=True)
    kept_NE = torch.zeros_like(probs_NE).scatter(1, chosen, top)
    return kept_NE + probs_NE - probs_NE.detach() if normalizes and n_experts == 1 else kept_NE


def load_balancing_loss(expert_share_E: Tensor, mean_probs_E: Tensor) -> Tensor:
    """E * sum of f * P, less 1: 0 at uniform use, E - 1 where one expert takes all.

    Fedus, Zoph and Shazeer (2022), equation 4, shifted so that balance is zero.

    Args:
        expert_share_E: f, share of the mixture's weight each expert gets; taken as a constant.
        mean_probs_E: P, mean gate probability of each expert.
    """
    n_experts = len(expert_share_E)
    return n_experts * (expert_share_E.detach() * mean_probs_E).sum() - 1.0


def router_auxiliary_loss(router_logits: Sequence[Tensor], experts_per_token: int) -> Tensor:
    """Load-balancing loss (Fedus et al. 2021): the mean over the layers of E * sum over the experts of f * P.

    Here f is the share of positions that choose an expert and P its mean probability. The loss is `experts_per_token`
    where all experts are used evenly. transformers' own loss pools all layers first, so that an imbalance of one layer
    can cancel that of another: at its minimum one expert got 97% of a layer's tokens.

    Args:
        router_logits: of each layer, [N, E].
    """
    losses = []
    for logits_NE in router_logits:
        probs_NE = logits_NE.softmax(dim=-1)
        chosen_E = probs_NE.topk(experts_per_token).indices.flatten().bincount(minlength=probs_NE.shape[1])
        losses.append(chosen_E.float() @ probs_NE.mean(dim=0) * probs_NE.shape[1] / len(probs_NE))
    return torch.stack(losses).mean()


def importance_kl(student_probs_E: Tensor, teacher_probs_E: Tensor) -> Tensor:
    """KL(mean student-aware gate || mean teacher gate) in nats: how far use of the experts has drifted."""
    tiny = torch.finfo(torch.float32).tiny
    ratio_E = student_probs_E.clamp_min(tiny).log() - teacher_probs_E.clamp_min(tiny).log()
    return (student_probs_E * ratio_E).sum()


def gate_divergence(student_logits_NE: Tensor, teacher_logits_NE: Tensor) -> Tensor:
    """KL(student-aware gate || teacher's gate) of each position in nats, fp32 [N]."""
    student_NE = student_logits_NE.float().log_softmax(-1)
    divergence_N: Tensor = (student_NE.exp() * (student_NE - teacher_logits_NE.float().log_softmax(-1))).sum(-1)
    return divergence_N


def expert_entropy(expert_share_E: Tensor) -> Tensor:
    """Entropy of the experts' shares in nats; ln E at uniform use, 0 at collapse."""
    entropy: Tensor = torch.special.entr(expert_share_E).sum()
    return entropy
