import pytest
import torch

from moe_distill.losses.lm import lm_nll


def test_r06_lm_is_the_labels_negative_log_probability() -> None:
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7)
    expected = [-float(logits[row].double().softmax(-1)[row].log()) for row in range(7)]
    assert lm_nll(logits, labels).tolist() == pytest.approx(expected, rel=1e-5)


def test_half_precision_logits_are_upcast() -> None:
    logits = 5 * torch.randn(7, 1000, generator=torch.Generator().manual_seed(0)).half()
    nll = lm_nll(logits, torch.arange(7))
    assert nll.dtype == torch.float32
    assert torch.equal(nll, lm_nll(logits.float(), torch.arange(7)))


def test_no_positions() -> None:
    assert lm_nll(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).shape == (0,)
