"""Run a student over the validation windows, once, in its own dtype; everything after its layers is fp32 (R1).

No autocast: the layers compute in the dtype of their weights, and the product with the output matrix, the
cross-entropy and the comparison with the fp16 shards are done after an explicit cast.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.evaluation.agreement import NO_AGREEMENT, Agreement, agreement
from moe_distill.losses.lm import lm_nll
from moe_distill.losses.target import sparse_target
from moe_distill.losses.vocabulary import VocabularyMap
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.targets import read_rows
from moe_distill.shards.windows import WindowStore, model_inputs

CHUNK_POSITIONS = 2048


@dataclass(frozen=True)
class Measured:
    """Sums over a split, and values of each window and position."""

    nll_W: Tensor  # nats of each window, fp64
    tokens: int
    n_bytes: int
    agreement: Agreement
    confidence_N: Tensor
    correct_N: Tensor
    seconds: float  # of the layers, the output matrix and the NLL: of what scoring a text takes

    @property
    def nll(self) -> float:
        """Nats of the whole split."""
        return float(self.nll_W.sum())


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    windows: WindowStore,
    targets: ShardReader,
    vocabulary_map: VocabularyMap,
    batch_windows: int,
) -> Measured:
    """Negative log-likelihood, agreement with the teacher and confidence over all windows of a split."""
    device = next(model.parameters()).device
    weight_VD = model.get_output_embeddings().weight.float()
    seconds, agreed = 0.0, NO_AGREEMENT
    nll, confidence, correct = [], [], []
    for numbers in _groups(len(windows), batch_windows):
        inputs, labels = model_inputs(windows, numbers)
        rows = [windows.tokens("teacher_rows", number) for number in numbers]
        began = _clock(device)
        hidden_BLD = model.get_decoder()(input_ids=inputs.to(device), use_cache=False).last_hidden_state
        hidden_ND = torch.cat([hidden_BLD[i, : len(ids)] for i, ids in enumerate(labels)]).float()
        seconds += _clock(device) - began
        labels_N, rows_N = torch.cat(labels).to(device), torch.cat(rows)
        previous_N = torch.cat([inputs[i, : len(ids)] for i, ids in enumerate(labels)])
        aligned = rows_N >= 0
        cached = read_rows(targets, rows)
        nll_N, done = [], 0
        for start in range(0, len(hidden_ND), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            began = _clock(device)
            logits_NV = hidden_ND[chunk] @ weight_VD.T
            nll_N.append(lm_nll(logits_NV, labels_N[chunk]).double().cpu())
            seconds += _clock(device) - began
            top, chosen = logits_NV.softmax(-1).max(-1)
            confidence.append(top.cpu())
            correct.append((chosen == labels_N[chunk]).cpu())
            inside = aligned[chunk]
            n_inside = int(inside.sum())
            part = cached.take(slice(done, done + n_inside)).to(device)
            done += n_inside
            if n_inside:
                previous = previous_N[chunk][inside].to(device)
                target = sparse_target(
                    part, vocabulary_map, 1.0, "map_then_temper", "residual", previous_ids_N=previous
                )
                agreed += agreement(logits_NV[inside.to(device)], target)
        nll += [part.sum() for part in torch.cat(nll_N).split([len(ids) for ids in labels])]
    return Measured(
        nll_W=torch.stack(nll),
        tokens=int(windows.token_counts.sum()),
        n_bytes=int(windows.byte_counts.sum()),
        agreement=agreed,
        confidence_N=torch.cat(confidence),
        correct_N=torch.cat(correct),
        seconds=seconds,
    )


def _clock(device: torch.device) -> float:
    """Seconds, read when the device has done what it was asked: a CUDA kernel runs after its launch returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def teacher_nll(teacher_windows: WindowStore, targets: ShardReader, documents: set[int]) -> tuple[float, int]:
    """The teacher's cached NLL in nats over the windows of the given documents, and their bytes."""
    numbers = torch.cat(list(teacher_windows.reader.columns("documents")))
    kept = torch.tensor([int(number) in documents for number in numbers])
    logprobs = torch.cat(list(targets.columns("target_logprob"))).double()
    per_position = kept.repeat_interleave(teacher_windows.token_counts)
    return -float(logprobs[per_position].sum()), int(teacher_windows.byte_counts[kept].sum())


def _groups(n_windows: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, n_windows)) for start in range(0, n_windows, size))
