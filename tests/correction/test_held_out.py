"""Bits per byte and the use of experts on validation windows, against loops over single windows."""

import math

import pytest
import torch
from torch import nn

from moe_distill.batches.batch_order import spread_windows
from moe_distill.correction.held_out import measure
from moe_distill.errors import DataError
from moe_distill.shards.window_store import WindowStore
from tests.teacher.conftest import make_teacher, windows

__all__ = ["windows"]


@pytest.mark.parametrize("family", ["qwen3_moe", "dense"])
def test_bits_per_byte_equal_the_slow_way(family: str, windows: WindowStore) -> None:
    model, numbers = make_teacher(family), [1, 4, 5, 11]
    nats, n_bytes = 0.0, 0
    for number in numbers:
        ids = torch.cat([torch.tensor([windows.prefix_id]), windows.tokens("token_ids", number).long()])
        with torch.no_grad():
            logprobs = model(ids[None, :-1]).logits[0].double().log_softmax(-1)
        nats -= float(logprobs[torch.arange(len(ids) - 1), ids[1:]].sum())
        n_bytes += windows.span(number).n_bytes
    measured = measure(model, windows, numbers, batch_windows=3)
    assert measured.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)


def test_logits_of_a_teacher_in_bf16_are_summed_in_fp32(windows: WindowStore) -> None:
    model, numbers = make_teacher("dense"), [1, 4, 5]
    nn.Module.to(model, torch.bfloat16)
    nats, n_bytes = 0.0, 0
    for number in numbers:
        ids = torch.cat([torch.tensor([windows.prefix_id]), windows.tokens("token_ids", number).long()])
        with torch.inference_mode():
            logits = model(ids[None, :-1], use_cache=False).logits[0]
        assert logits.dtype is torch.bfloat16
        nats -= float(logits.double().log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]].sum())
        n_bytes += windows.span(number).n_bytes
    measured = measure(model, windows, numbers, batch_windows=1)
    assert measured.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)


@pytest.mark.parametrize("batch_windows", [1, 5])
def test_expert_shares_equal_a_count_of_the_routers_choices(batch_windows: int, windows: WindowStore) -> None:
    model, numbers = make_teacher("qwen3_moe"), list(range(12))
    counts = torch.zeros(3, 4)
    for number in numbers:
        ids = torch.cat([torch.tensor([windows.prefix_id]), windows.tokens("token_ids", number).long()[:-1]])
        with torch.no_grad():
            layers = model(ids[None], output_router_logits=True).router_logits
        counts += torch.stack([each.topk(2).indices.flatten().bincount(minlength=4) for each in layers])
    shares = torch.tensor(measure(model, windows, numbers, batch_windows).expert_shares)
    torch.testing.assert_close(shares, counts / counts.sum(-1, keepdim=True))


def test_a_dense_teacher_has_no_shares(windows: WindowStore) -> None:
    assert measure(make_teacher("dense"), windows, [0], 1).expert_shares == []


def test_windows_are_spread_and_no_more_than_there_are(windows: WindowStore) -> None:
    assert spread_windows(len(windows), 4) == [0, 3, 6, 9]
    assert spread_windows(len(windows), 99) == list(range(12))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(value: float, windows: WindowStore) -> None:
    model = make_teacher("dense")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(value)
    with pytest.raises(DataError, match=r"non-finite logits.*teacher\.precision"):
        measure(model, windows, [0], 1)
