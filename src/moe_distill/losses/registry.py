"""The registry of loss terms: each has one unique name, a raw value, a weight and a weighted value (R4).

`lm` and `kd` are weighted position by position: where a position has a teacher target, LM has weight 1 - kd_weight
and KD kd_weight * T^2; elsewhere LM keeps weight 1. So it is with `kd_inside`, where a target inside a teacher token
is known. Every other term has one weight; the curriculum ramps those of hidden states and of the router.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

POSITION_TERMS = ("lm", "kd", "kd_inside")
TEXT_TERMS = (*POSITION_TERMS, "chunk")
HIDDEN_TERMS = ("feature", "attention", "layerwise", "contrastive")
ROUTER_TERMS = ("router_feature", "router_attention", "router_kd", "router_balance", "router_importance")
ALL_TERMS = TEXT_TERMS + HIDDEN_TERMS + ROUTER_TERMS


@dataclass(frozen=True)
class LossTerm:
    """A term's plain mean over the tokens that take part, and what it adds to the total; fp32 scalars.

    The mean of `kd_inside` is over all positions inside a teacher token; those of unknown target count as 0.
    """

    raw: Tensor
    weighted: Tensor


Terms = dict[str, LossTerm]


def total_of(terms: Terms) -> Tensor:
    """The total is the sum of the weighted terms, nothing else (R5)."""
    return torch.stack([term.weighted for term in terms.values()]).sum()
