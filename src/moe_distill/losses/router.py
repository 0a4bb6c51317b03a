"""Gates over replayed experts: balance and importance.

Shapes: N positions, E experts.
"""

import torch
from torch import Tensor


def load_balancing_loss(expert_share_E: Tensor, mean_probs_E: Tensor) -> Tensor:
    """E * sum of f * P, less 1: 0 at uniform use, E - 1 where one expert takes all.

    Fedus, Zoph and Shazeer (2022), equation 4, shifted so that balance is zero.

    Args:
        expert_share_E: f, share of the mixture's weight each expert gets; taken as a constant.
        mean_probs_E: P, mean gate probability of each expert.
    """
    n_experts = len(expert_share_E)
    return n_experts * (expert_share_E.detach() * mean_probs_E).sum() - 1.0


def importance_kl(student_probs_E: Tensor, teacher_probs_E: Tensor) -> Tensor:
    """KL(mean student-aware gate || mean teacher gate) in nats: how far use of the experts has drifted."""
    tiny = torch.finfo(torch.float32).tiny
    ratio_E = student_probs_E.clamp_min(tiny).log() - teacher_probs_E.clamp_min(tiny).log()
    return (student_probs_E * ratio_E).sum()


def gate_divergence(student_logprobs_NE: Tensor, teacher_logprobs_NE: Tensor) -> Tensor:
    """KL(student-aware gate || teacher's gate) of each position in nats, fp32 [N]."""
    difference_NE = student_logprobs_NE - teacher_logprobs_NE
    divergence_N: Tensor = (student_logprobs_NE.exp() * difference_NE).sum(-1)
    return divergence_N


def expert_entropy(expert_share_E: Tensor) -> Tensor:
    """Entropy of the experts' shares in nats; ln E at uniform use, 0 at collapse."""
    entropy: Tensor = torch.special.entr(expert_share_E).sum()
    return entropy
