"""`kd_weight: auto`: how much of the KD the teacher has earned, by what it knows of held-out text beside the student.

Both models have predicted the same validation text. Take each window of it for the work of one of them, the teacher's
with probability w: the w under which the text is likeliest (the maximum-likelihood weight of a mixture, where the EM
algorithm ends) is the teacher's share. It is 1 while the teacher is ahead nearly everywhere, 0 where it never is, and
near the share of the windows in which it leads in between. KD has as much of its largest weight as the teacher's share
exceeds the student's own, 1 - w: a teacher that is behind in most of the text has none.

Beside an untrained student any teacher is ahead, a random one too. So where the frequencies of the training text's
tokens say more of a window than the student does, they stand for the student: a teacher must know more than those.

Two tokenizers cut a window differently, so it is counted from the first to the last place where both have a boundary:
there both have predicted the same bytes, whatever lies between.

Shapes: N positions of all windows, W windows that have such a stretch, V the student's vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_distill.batches.split import Split
from moe_distill.shards.window_store import WindowStore

LARGEST_KD_WEIGHT = 0.7  # the text always has a say: how the teacher's tokens become the student's is in part guessed
HALVINGS = 30  # of [0, 1]


@dataclass(frozen=True)
class SharedText:
    """The stretches that both models have predicted: the student's positions in them, and what is known of them."""

    positions_N: Tensor  # int64: of all windows' positions in order, those in a stretch
    windows_N: Tensor  # int64: the stretch of each
    teacher_nll_W: Tensor  # nats, fp64
    frequencies_nll_W: Tensor  # under the frequencies of the training text's tokens


def read_shared_text(train: Split, split: Split, numbers: Sequence[int]) -> SharedText:
    """What both models have predicted of some windows.

    Args:
        train: whose tokens are counted.
        split: that the windows are of.
        numbers: of the windows, in the order in which the student reads them.
    """
    assert split.shards is not None
    surprise_V = token_surprise(train.windows)
    positions, windows, teacher_nll, frequencies_nll, first = [], [], list[Tensor](), [], 0
    for number in numbers:
        rows = split.windows.tokens("teacher_rows", number)
        aligned = (rows >= 0).nonzero().squeeze(1)
        if len(aligned) > 1:
            start, stop = int(aligned[0]), int(aligned[-1])
            positions.append(torch.arange(first + start, first + stop))
            windows.append(torch.full((stop - start,), len(teacher_nll)))
            logprobs = split.shards.slice("target_logprob", int(rows[start]), int(rows[stop]))
            teacher_nll.append(-logprobs.double().sum())
            ids = split.windows.tokens("token_ids", number)[start:stop].long()
            frequencies_nll.append(surprise_V[ids].sum())
        first += len(rows)
    if not positions:
        no_place, no_nll = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        return SharedText(no_place, no_place, no_nll, no_nll)
    of_teacher, of_frequencies = torch.stack(teacher_nll), torch.stack(frequencies_nll)
    return SharedText(torch.cat(positions), torch.cat(windows), of_teacher, of_frequencies)


def token_surprise(windows: WindowStore) -> Tensor:
    """Nats of each token of the student's under its frequency in some windows, each counted once more, fp64 [V]."""
    counts_V = torch.ones(len(windows.token_bytes), dtype=torch.float64)
    for ids in windows.reader.columns("token_ids"):
        counts_V += torch.bincount(ids.long(), minlength=len(counts_V))
    return -(counts_V / counts_V.sum()).log()


def earned_weight(shared: SharedText, nll_N: Tensor) -> float:
    """The weight of KD that the teacher has earned beside a student.

    Args:
        nll_N: the student's, in nats, on the CPU.
    """
    nll_W = torch.zeros_like(shared.teacher_nll_W)
    nll_W.index_add_(0, shared.windows_N, nll_N[shared.positions_N].double())
    nll_W = nll_W.nan_to_num(torch.inf)  # a student that has diverged knows nothing
    share = mixture_weight(shared.teacher_nll_W, nll_W.minimum(shared.frequencies_nll_W))
    return LARGEST_KD_WEIGHT * max(0.0, 2.0 * share - 1.0)


def mixture_weight(first_nll_W: Tensor, second_nll_W: Tensor) -> float:
    """The weight of the first of two models in the likeliest mixture of them, each text written by one.

    The log-likelihood is concave in the weight; its slope, the sum over texts of (P1 - P2) / (w P1 + (1 - w) P2), is
    followed to its zero. 0 where there is no text.

    Args:
        first_nll_W: nats of each text under the first model, fp64.
        second_nll_W: under the second.
    """
    lead_W = second_nll_W - first_nll_W
    gain_W = -torch.expm1(-lead_W.abs()) * lead_W.sign()  # divided by the larger of the two probabilities, as below
    first_W, second_W = (lead_W.clamp_max(0.0)).exp(), (-lead_W).clamp_max(0.0).exp()
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        weight = (low + high) / 2
        slope = float((gain_W / (weight * first_W + (1.0 - weight) * second_W)).sum())
        low, high = (weight, high) if slope > 0.0 else (low, weight)
    return low if low + high < 1.0 else high  # exactly 0 or 1 at the ends
