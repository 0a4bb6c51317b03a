"""Memory of LM and KD in one: logits a stretch at a time against all of them at once, in counted bytes.

Both read the same sparse target and give the same gradients, of the states and of the output matrix, which is counted.
The dense way holds the logits of a micro-batch, and whatever plain PyTorch makes of them.
"""

from collections.abc import Iterator

import torch
from bench_row import Row, Size, at_most
from counted_memory import CountedMemory
from interleaved import spread
from random_pair import REAL, TOY, Pair, params_of, random_target
from torch import Tensor
from torch.nn import functional as F

from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text, text_loss
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.stretches import stretches
from moe_distill.training.kd_weight import LARGEST_KD_WEIGHT


def rows(size: Size) -> Iterator[Row]:
    """One ratio, at the sizes of the real student and the micro-batch of its profile."""
    pair = TOY if size is Size.SMALLEST else REAL
    params = params_of(pair).profile
    n = params.train.micro_batch_windows * (params.windows.student_max_length - 1)
    peaks = {way: peak_bytes(pair, n, way) for way in ("stretches", "dense")}
    yield Row(
        f"peak memory of LM and KD, chunked over dense, {n:,} positions, {pair.student.vocabulary:,} ids",
        ours=f"{peaks['stretches'] / 1e6:,.0f} MB",
        reference=f"{peaks['dense'] / 1e6:,.0f} MB",
        ratio=spread([peaks["stretches"] / peaks["dense"]]),
        target=at_most(0.25),
    )


def peak_bytes(pair: Pair, n: int, way: str) -> int:
    """Beyond states, output matrix and target, which both ways are given."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(n, pair.student.hidden, generator=generator).requires_grad_()
    weight_VD = torch.randn(pair.student.vocabulary, pair.student.hidden, generator=generator).mul(0.04)
    weight_VD.requires_grad_()
    target, labels_N = (
        random_target(pair, n, generator),
        torch.randint(pair.student.vocabulary, (n,), generator=generator),
    )
    memory = CountedMemory()
    with memory:
        given = [tensor for tensor in vars(target).values() if isinstance(tensor, Tensor)]
        for tensor in [hidden_ND, weight_VD, labels_N, *given]:
            memory.count(tensor)  # else a view of it would count it later
        resident = memory.live
        if way == "dense":
            dense_loss(hidden_ND, weight_VD, labels_N, target).backward()
        else:
            text = Text(labels_N, target, stretches(n, params_of(pair).profile.train.chunk_tokens, target))
            found = text_loss(hidden_ND, OutputHead(weight_VD), text, LARGEST_KD_WEIGHT, torch.float32)
            found.loss.backward()
    return memory.peak - resident


def dense_loss(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, target: SparseTarget) -> Tensor:
    """The loss of `text_loss` with a sampled target at T = 1, as plain PyTorch writes it."""
    logprobs_NV = (hidden_ND @ weight_VD.T).log_softmax(-1)
    weight_N = 1.0 - LARGEST_KD_WEIGHT * target.has_target_N
    lm = weight_N @ F.nll_loss(logprobs_NV, labels_N, reduction="none")
    entries = logprobs_NV[target.entry_positions_Z.long(), target.entry_ids_Z.long()]
    samples = logprobs_NV[target.sample_positions_Y.long(), target.sample_ids_Y.long()]
    return lm - LARGEST_KD_WEIGHT * (target.entry_probs_Z @ entries + target.sample_probs_Y @ samples)
