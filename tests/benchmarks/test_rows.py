"""What lines of the table compare has the right value."""

from mmap import ACCESS_READ, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_row import Size
from interleaved import Spread
from measured_stage import held_bytes
from numpy.typing import NDArray
from random_pair import TOY, drawn_logits, params_of, random_target
from row_encoding import restored_divergence
from row_gpu import CAPTURE, PUBLISHED, SPEEDS, row
from row_loss_memory import dense_loss
from row_stages import FIRST, growth
from row_uld import LONGEST, lengths, rows, what
from stage_runs import StageCost
from torch import Tensor

from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text, text_loss
from moe_distill.shards.teacher_store import target_fields
from moe_distill.targets.stretches import stretches
from moe_distill.training.kd_weight import LARGEST_KD_WEIGHT


def test_the_dense_loss_is_that_of_the_stretches() -> None:
    n, generator = 40, torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(n, TOY.student.hidden, generator=generator).requires_grad_()
    weight_VD = (0.3 * torch.randn(TOY.student.vocabulary, TOY.student.hidden, generator=generator)).requires_grad_()
    labels_N = torch.randint(TOY.student.vocabulary, (n,), generator=generator)
    target = random_target(TOY, n, generator)
    assert 0 < int(target.has_target_N.sum()) < n
    text = Text(labels_N, target, stretches(n, params_of(TOY).profile.train.chunk_tokens, target))
    losses = (
        dense_loss(hidden_ND, weight_VD, labels_N, target),
        text_loss(hidden_ND, OutputHead(weight_VD), text, LARGEST_KD_WEIGHT, torch.float32).loss,
    )
    dense, ours = ([loss, *gradients(loss, hidden_ND, weight_VD)] for loss in losses)
    for expected, found in zip(dense, ours, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


def test_the_growth_is_of_the_stage_that_grows_most() -> None:
    once = {"corpus": StageCost(100_000_000, 1.0, 0.0, 0.0), "tokenize": StageCost(400_000_000, 1.0, 0.0, 0.0)}
    more = {"corpus": StageCost(150_000_000, 9.0, 0.0, 0.0), "tokenize": StageCost(420_000_000, 9.0, 0.0, 0.0)}
    found = growth(once | {"teacher": StageCost(1, 1.0, 0.0, 0.0)}, more, 4, FIRST)
    assert found.what.startswith("peak memory of a stage up to `tokenize`, 4x the corpus over 1x")
    assert (found.ours, found.reference, found.ratio) == ("corpus 150 MB", "100 MB", Spread(1.5, 1.5, 1.5, 1))
    assert found.note == "corpus 1.50, tokenize 1.05"
    assert found.holds is False


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux alone tells what a process holds")
def test_memory_of_a_stage_is_what_it_holds_and_not_the_files_it_maps(tmp_path: Path) -> None:
    size = 64 << 20
    (tmp_path / "shard").write_bytes(bytes(size))
    began = held_bytes()
    with (tmp_path / "shard").open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0  # every page has been read
        assert held_bytes() - began < size / 4
        with mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS) as kept:  # new pages: the heap may have old ones
            kept[::4096] = b"1" * (size // 4096)
            assert held_bytes() - began > size / 2


@pytest.mark.parametrize("kept", [3, 8])
def test_the_divergence_is_that_of_float64(kept: int) -> None:
    logits_NR = 2.0 * drawn_logits(6, 50)
    found = restored_divergence(logits_NR, kept, 4, target_fields(kept, 4, 0, 0, 0, 0))
    expected = [divergence(each.double().numpy(), kept) for each in logits_NR]
    assert min(expected) > 1e-10
    np.testing.assert_allclose(found.numpy(), expected, rtol=0.02, atol=1e-12)


def divergence(logits_R: NDArray[np.float64], kept: int) -> float:
    """One position: the kept log-probabilities as fp16 keeps them, all others' as fp32 does; then normalised."""
    probs_R = np.exp(logits_R - logits_R.max())
    probs_R = np.sort(probs_R / probs_R.sum())[::-1]
    true_O = np.append(probs_R[:kept], probs_R[kept:].sum())
    logs = np.log(true_O[:-1]).astype(np.float16), np.log(true_O[-1:]).astype(np.float32)
    restored_O = np.exp(np.concatenate([each.astype(np.float64) for each in logs]))
    restored_O /= restored_O.sum()
    return float((true_O * np.log(true_O / restored_O)).sum())


def test_the_published_speed_of_training_stands_beside_training_alone() -> None:
    found = {what: row(what, 2 * PUBLISHED, "a GPU") for what in SPEEDS.values()}
    assert (found[CAPTURE].ratio, found[CAPTURE].reference) == (None, "")
    trained = [each for what, each in found.items() if what != CAPTURE]
    assert [each.ratio.median for each in trained if each.ratio is not None] == [2.0, 2.0]


def test_the_target_against_uld_is_of_the_longest_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOE_DISTILL_TRL", raising=False)
    assert [each.target for each in rows(Size.SMALLEST)] == [None]
    monkeypatch.delenv("MOE_DISTILL_ASSETS", raising=False)
    assert [(each.what, each.ours, each.target is None) for each in rows(Size.SHORT)] == [(what(LONGEST), "", False)]
    assert max(lengths(Size.FULL)) == LONGEST
