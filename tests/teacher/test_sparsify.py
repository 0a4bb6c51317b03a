"""Records of a row of logits, against the whole distribution in float64."""

import pytest
import torch
from counted_memory import CountedMemory
from torch import Tensor

from moe_distill.planning.peak_memory import CAPTURE_LOGITS
from moe_distill.shards.teacher_store import TAIL_TEMPERATURES, tail_log_density
from moe_distill.teacher.sparsify import BLOCK, MANY_BLOCKS, Records, _largest, sparsify

N, ROWS, K, SAMPLES = 6, 9001, 16, 32  # rows enough that the largest are sought by blocks, and some left over


def logits_of(kind: str) -> Tensor:
    drawn = torch.randn(N, ROWS, generator=torch.Generator().manual_seed(0))
    if kind == "peaked":  # the tail is 300 nats below what is kept, and its least 60 nats below its largest
        return torch.where(drawn >= drawn.topk(K, -1).values[:, -1:], 300.0 + drawn, 8.0 * drawn)
    return {"usual": 3.0 * drawn, "flat": 1e-4 * drawn, "wide": 40.0 * drawn, "far": 3.0 * drawn - 10_000.0}[kind]


def records(logits_NR: Tensor, uniforms_N: Tensor) -> Records:
    return sparsify(logits_NR, torch.arange(N), K, SAMPLES, uniforms_N)


@pytest.mark.parametrize("kind", ["usual", "peaked", "flat", "wide", "far"])
def test_records_are_those_of_the_whole_distribution(kind: str) -> None:
    logits_NR = logits_of(kind)
    found, before = records(logits_NR, torch.full((N,), 0.5)), logits_NR.clone()
    logprobs_NR = logits_NR.double().log_softmax(-1)
    topk = logprobs_NR.topk(K)
    assert torch.equal(found.topk_ids, topk.indices)
    tail_NR = logprobs_NR.scatter(1, topk.indices, float("-inf"))
    sums_NG = torch.stack([(tail_NR / temperature).logsumexp(-1) for temperature in TAIL_TEMPERATURES], -1)
    rounding = 5e-6 + 2**-22 * float((logits_NR.amax(-1) - logits_NR.amin(-1)).max())  # of fp32, at the row's width
    for column, expected in (
        (found.topk_logprobs, topk.values),
        (found.tail_logsumexp, sums_NG),
        (found.tail_logprobs, logprobs_NR.gather(1, found.tail_ids)),
        (found.target_logprob, logprobs_NR.diagonal()[:N]),
    ):
        torch.testing.assert_close(column.double(), expected, rtol=0.0, atol=rounding)
    assert torch.equal(logits_NR, before)


@pytest.mark.parametrize(
    "rows", [ROWS, 140 * BLOCK, BLOCK * MANY_BLOCKS * (K + 1), BLOCK * MANY_BLOCKS * (K + 1) - 1, 20]
)
@pytest.mark.parametrize("spread", ["side by side", "at the end", "a block each", "anywhere"])
def test_the_largest_are_found_wherever_they_stand(rows: int, spread: str) -> None:
    count = K + 1
    logits_NR = 3.0 * torch.randn(N, rows, generator=torch.Generator().manual_seed(0))
    step = rows // count
    places = {
        "side by side": slice(1, 1 + count),
        "at the end": slice(rows - count, rows),
        "a block each": slice(0, step * count, step),
    }
    if spread in places:
        logits_NR[:, places[spread]] += 50.0
    found, expected = _largest(logits_NR, count), logits_NR.topk(count)
    assert torch.equal(found[0], expected.values)
    assert torch.equal(found[1], expected.indices)


def test_the_rows_here_are_enough_for_the_search_by_blocks() -> None:
    assert ROWS // BLOCK >= MANY_BLOCKS * (K + 1)
    assert ROWS % BLOCK


@pytest.mark.parametrize("kind", ["usual", "peaked", "flat"])
def test_samples_are_where_the_strata_of_their_density_begin(kind: str) -> None:
    logits_NR = logits_of(kind).double()
    uniforms_N = torch.rand(N, generator=torch.Generator().manual_seed(1)).double()
    found = records(logits_NR, uniforms_N)
    logprobs_NR = logits_NR.log_softmax(-1)
    density_NR = tail_log_density(logprobs_NR, found.tail_logsumexp, ROWS - K).exp()
    density_NR = density_NR.scatter(1, found.topk_ids, 0.0)
    torch.testing.assert_close(density_NR.sum(-1), torch.ones(N).double())
    for row, uniform in enumerate(uniforms_N.tolist()):
        reached = density_NR[row].cumsum(0).tolist()
        expected = [
            next(number for number, mass in enumerate(reached) if mass > (stratum + uniform) / SAMPLES)
            for stratum in range(SAMPLES)
        ]
        assert found.tail_ids[row].tolist() == expected
    # of sums in fp32 a stratum may begin one id away, and ids of the top-k have no mass
    in_fp32 = records(logits_NR.float(), uniforms_N.float())
    assert int((in_fp32.tail_ids - found.tail_ids).abs().max()) <= 2


def test_it_takes_as_much_memory_as_the_plan_says() -> None:
    logits_NR = logits_of("usual")
    planned = CAPTURE_LOGITS * logits_NR.nbytes
    with CountedMemory() as memory:
        memory.count(logits_NR)
        records(logits_NR, torch.full((N,), 0.5))
    assert planned <= memory.peak < 1.1 * planned


def test_the_tail_may_be_one_id() -> None:
    logits_NR = torch.tensor([[2.0, 1.0, 0.0]])
    found = sparsify(logits_NR, torch.tensor([2]), 2, 3, torch.tensor([0.5]))
    assert found.tail_ids.tolist() == [[2, 2, 2]]
    torch.testing.assert_close(found.tail_logsumexp[0, 0], logits_NR.log_softmax(-1)[0, 2])


@pytest.mark.parametrize("kind", ["usual", "peaked", "flat"])
def test_a_sample_at_the_very_beginning_is_of_the_tail(kind: str) -> None:
    """The first ids are kept ones, which have no mass."""
    logits_NR = logits_of(kind)
    logits_NR[:, :3] = logits_NR.amax() + 1.0
    found = records(logits_NR, torch.zeros(N))
    assert all(set(range(3)) <= set(kept) for kept in found.topk_ids.tolist())
    assert not (found.tail_ids[:, :, None] == found.topk_ids[:, None, :]).any()
