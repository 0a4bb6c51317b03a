"""The load-balancing loss of a teacher that is trained."""

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from moe_distill.losses.auxiliary import router_auxiliary_loss


def test_balancing_loss_sees_layers_whose_imbalances_cancel() -> None:
    one, other = torch.tensor([[9.0, 9.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    assert router_auxiliary_loss([one, other], 2) == pytest.approx(4.0, rel=1e-3)
    assert router_auxiliary_loss([torch.cat([one, other])], 2) == pytest.approx(2.0, rel=1e-3)
    pooled = load_balancing_loss_func((one, other), num_experts=4, top_k=2)  # type: ignore[arg-type]  # "a tuple of one"
    assert pooled == pytest.approx(2.0, rel=1e-3)  # what transformers would train with
    logits_TE = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert router_auxiliary_loss([logits_TE], 3) == pytest.approx(
        float(load_balancing_loss_func((logits_TE,), num_experts=4, top_k=3))
    )
