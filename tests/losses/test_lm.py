"""The cross-entropy of `text_loss`."""

import pytest
import torch
from torch import Tensor

from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text, TextLoss, text_loss
from moe_distill.targets.stretches import stretches
from tests.targets.reference import random_logits


def lm(logits_NV: Tensor, labels_N: Tensor, dtype: torch.dtype = torch.float32) -> TextLoss:
    """Of these logits: hidden states, with the identity as output matrix."""
    text = Text(labels_N, None, stretches(len(labels_N), 3, None))
    return text_loss(logits_NV, OutputHead(torch.eye(logits_NV.shape[1])), text, kd_weight=0.9, dtype=dtype)


def test_r06_lm_is_the_labels_negative_log_probability() -> None:
    logits, labels = random_logits(7, 11, seed=0, scale=1.0).requires_grad_(), torch.arange(7)
    found = lm(logits, labels)
    expected = -sum(float(logits.detach()[row].double().softmax(-1)[row].log()) for row in range(7))
    values = found.loss.detach(), found.nll, found.weighted_nll
    assert [float(value) for value in values] == pytest.approx([expected] * 3, rel=1e-5)
    assert found.kl is None
    (gradient,) = torch.autograd.grad(found.loss, logits)
    torch.testing.assert_close(gradient, (logits.softmax(-1) - torch.eye(7, 11)).detach())


def test_r06_without_a_target_kd_weight_takes_nothing_from_lm() -> None:
    logits, text = random_logits(4, 11, seed=1), Text(torch.arange(4), None, stretches(4, 4, None))
    values = [
        text_loss(logits, OutputHead(torch.eye(11)), text, weight, torch.float32).loss.item() for weight in (0.0, 0.9)
    ]
    assert values[0] == values[1] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_upcast(dtype: torch.dtype) -> None:
    logits = random_logits(7, 1000, seed=0, scale=5.0).to(dtype)
    nll = lm(logits, torch.arange(7), dtype).nll
    assert nll.dtype == torch.float32
    assert torch.equal(nll, lm(logits.float(), torch.arange(7)).nll)


def test_no_positions() -> None:
    found = lm(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert [float(found.loss), float(found.nll), float(found.weighted_nll)] == [0.0] * 3
