"""What keeps the experts of a teacher in use while it is trained itself."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
        chosen = probs_NE.topk(experts_per_token).indices.flatten()
        chosen_E = probs_NE.new_zeros(probs_NE.shape[1]).index_add(0, chosen, probs_NE.new_ones(()).expand(len(chosen)))
        losses.append(chosen_E @ probs_NE.mean(dim=0) * probs_NE.shape[1] / len(probs_NE))
    return torch.stack(losses).mean()
