"""The registry of loss terms: each has one unique name, a raw value, a weight and a weighted value (R4).

`lm` and `kd` are weighted position by position: where a position has a teacher target, LM has weight 1 - kd_weight
and KD kd_weight * T^2; elsewhere LM keeps weight 1. Every other term has one weight, which the curriculum ramps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

TEXT_TERMS = ("lm", "kd")
HIDDEN_TERMS = ("feature", "attention", "layerwise", "contrastive")
ROUTED_STATE_TERMS = ("router_feature", "router_attention")  # against the experts' answers under the gate
GATE_TERMS = ("router_balance", "router_importance")  # of the gate's means over a whole step
ROUTER_TERMS = ROUTED_STATE_TERMS + GATE_TERMS


@dataclass(frozen=True)
class LossTerm:
    """A term's plain mean over the tokens that take part, and what it adds to the total; fp32 scalars."""

    raw: Tensor
    weighted: Tensor

    def detached(self) -> "LossTerm":
        return LossTerm(self.raw.detach(), self.weighted.detach())


Terms = dict[str, LossTerm]


def total_of(terms: Terms) -> Tensor:
    """The total is the sum of the weighted terms, nothing else (R5)."""
    return torch.stack([term.weighted for term in terms.values()]).sum()
