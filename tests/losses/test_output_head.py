"""Logits with a scale, a bias and a cap: values, and the gradient that `text_loss` makes of them."""

import pytest
import torch
from torch import Tensor

from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text, text_loss
from moe_distill.targets.stretches import stretches
from tests.losses.test_text_loss import KINDS, TAILS, student, targets_of
from tests.targets.reference import plain_text_loss, random_logits, text_of

SCALES, SOFTCAPS = (1.0, 0.25), (None, 4.0)


def plain_logits(hidden_ND: Tensor, head: OutputHead) -> Tensor:
    """The definition, in float64."""
    product = head.scale * hidden_ND.double() @ head.weight_VD.double().T
    product = product if head.bias_V is None else product + head.bias_V.double()
    return product if head.softcap is None else head.softcap * torch.tanh(product / head.softcap)


def head_of(scale: float, softcap: float | None, has_bias: bool, dtype: torch.dtype = torch.float32) -> OutputHead:
    weight_VD = (student(1)[1] / scale).detach().to(dtype).requires_grad_()
    bias_V = random_logits(1, len(weight_VD), seed=9, scale=2.0)[0].to(dtype).requires_grad_() if has_bias else None
    return OutputHead(weight_VD, bias_V, scale, softcap)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_logits_are_the_definition(scale: float, softcap: float | None, has_bias: bool) -> None:
    head, hidden_ND = head_of(scale, softcap, has_bias), student(14)[0]
    expected = plain_logits(hidden_ND, head)
    torch.testing.assert_close(head.logits(hidden_ND), expected.float(), atol=1e-5, rtol=1e-5)
    ids = torch.randint(len(head.weight_VD), (14, 3), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head.logits_of(hidden_ND, ids), expected.gather(1, ids).float(), atol=1e-5, rtol=1e-5)
    if softcap is not None:
        assert float(expected.abs().max()) < softcap


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_head_of_another_dtype_has_all_its_parts(has_bias: bool) -> None:
    head = head_of(0.25, 4.0, has_bias).to_dtype(torch.float64)
    assert head.weight_VD.dtype is torch.float64
    hidden_ND = student(14)[0].double()
    torch.testing.assert_close(head.logits(hidden_ND).double(), plain_logits(hidden_ND, head), atol=1e-5, rtol=1e-5)
    assert (head.bias_V is not None) == has_bias
    assert not any(each.requires_grad for each in (head.weight_VD, head.bias_V) if each is not None)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("tail", [*TAILS, None])
def test_text_loss_and_its_gradients_are_the_plain_ones(
    scale: float, softcap: float | None, has_bias: bool, tail: str | None
) -> None:
    head, (hidden_ND, _, labels_N) = head_of(scale, softcap, has_bias), student(14)
    target = None if tail is None else targets_of(KINDS * 2, 2.0, tail)
    text = Text(labels_N, None, stretches(14, 5, None)) if target is None else text_of(target, labels_N, chunk_tokens=5)
    found = text_loss(hidden_ND, head, text, 0.7, torch.float32)
    logits_NV = plain_logits(hidden_ND, head)
    plain = plain_text_loss(logits_NV, torch.eye(logits_NV.shape[1], dtype=torch.float64), labels_N, target, 0.7)
    assert float(found.loss) == pytest.approx(float(plain.loss), rel=1e-5)
    assert float(found.nll) == pytest.approx(float(plain.nll), rel=1e-5)
    inputs = [hidden_ND, head.weight_VD, *([] if head.bias_V is None else [head.bias_V])]
    # A seventh of the loss, as a step may weigh it: every gradient has the factor
    shares = found.loss / 7, plain.loss / 7
    pairs = zip(*(torch.autograd.grad(share, inputs) for share in shares), strict=True)
    for found_gradient, plain_gradient in pairs:
        assert float((found_gradient - plain_gradient).norm()) <= 1e-5 * float(plain_gradient.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_differs_by_its_rounding(dtype: torch.dtype) -> None:
    head, (hidden_ND, _, labels_N) = head_of(0.25, 4.0, has_bias=True), student(14)
    text = text_of(targets_of(KINDS * 2, 2.0, "mixed"), labels_N)
    exact, rounded = (text_loss(hidden_ND, head, text, 0.7, each) for each in (torch.float32, dtype))
    assert float(rounded.loss) == pytest.approx(float(exact.loss), rel=8 * torch.finfo(dtype).eps)
    inputs = (hidden_ND, head.weight_VD)
    pairs = zip(torch.autograd.grad(exact.loss, inputs), torch.autograd.grad(rounded.loss, inputs), strict=True)
    assert all(float((one - other).norm()) < 8 * torch.finfo(dtype).eps * float(one.norm()) for one, other in pairs)
