"""Run a student over the validation windows, once, in its own dtype; everything after its layers is fp32 (R1).

No autocast: the layers compute in the dtype of their weights, and the product with the output matrix, the
cross-entropy and the comparison with the fp16 shards are done after an explicit cast.

What is kept of every position is written into a tensor made before the first batch: nothing small is kept between the
large tensors of a batch, where it keeps the C library's allocator from using all of their room again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from moe_distill.errors import DataError
from moe_distill.evaluation.agreement import NO_AGREEMENT, Agreement, likeliest_ids, ranking_agreement
from moe_distill.evaluation.metrics import CALIBRATION_BINS, bits_per_byte, calibration_sums
from moe_distill.log import progress_bar
from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text, text_loss
from moe_distill.models.decoder import Decoder, find_decoder
from moe_distill.shards.window_store import WindowStore, model_inputs
from moe_distill.targets.sparse_target import joined
from moe_distill.targets.stretches import stretches
from moe_distill.targets.window_targets import WindowTargets
from moe_distill.utils.device import seconds_when_done
from moe_distill.utils.tensors import to_device

CHUNK_POSITIONS = 2048


@dataclass(frozen=True)
class Score:
    """How well a model predicts a split."""

    nll_W: Tensor  # nats of each window, fp64
    tokens: int
    n_bytes: int
    seconds: float  # of the layers, the output matrix and the NLL: of what scoring a text takes

    @property
    def nll(self) -> float:
        """Nats of the whole split."""
        return float(self.nll_W.sum())

    @property
    def bits_per_byte(self) -> float:
        return bits_per_byte(self.nll, self.n_bytes)


@dataclass(frozen=True)
class Comparison:
    """A student beside its teacher, and its confidence beside the text."""

    agreement: Agreement
    calibration: Tensor  # `calibration_sums` of all positions


@dataclass(frozen=True)
class _Batch:
    """What a model says of some windows; N positions of them all, without padding."""

    hidden_ND: Tensor
    labels_N: Tensor
    numbers: range  # of the windows
    places: slice  # of its positions among those of all windows
    seconds: float


@torch.inference_mode()
def score(model: PreTrainedModel, windows: WindowStore, batch_windows: int) -> Score:
    """Negative log-likelihood of all windows of a split."""
    decoder, device, seconds, tokens = find_decoder(model), _device(model), 0.0, int(windows.token_counts.sum())
    nll_N = torch.empty(tokens, device=device)
    for batch in _batches(decoder, windows, batch_windows):
        began = seconds_when_done(device)
        nll_of_batch = nll_N[batch.places]
        for chunk, logits_NV in _logits(decoder.head, batch):
            nll_of_batch[chunk] = F.cross_entropy(logits_NV, batch.labels_N[chunk], reduction="none")
        seconds += batch.seconds + seconds_when_done(device) - began
    of_windows = nll_N.double().cpu().split(windows.token_counts.tolist())
    return Score(
        nll_W=torch.stack([of_window.sum() for of_window in of_windows]),
        tokens=tokens,
        n_bytes=int(windows.byte_counts.sum()),
        seconds=seconds,
    )


@torch.inference_mode()
def compare(model: PreTrainedModel, windows: WindowStore, targets: WindowTargets, batch_windows: int) -> Comparison:
    """Agreement with the teacher at aligned positions, and confidence at all, over all windows of a split."""
    decoder, device, agreed = find_decoder(model), _device(model), NO_AGREEMENT
    calibration = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64)
    for batch in _batches(decoder, windows, batch_windows):
        target = joined([targets.of(number) for number in batch.numbers])
        teacher_ids = likeliest_ids(target).to(device)
        for chunk, logits_NV in _logits(decoder.head, batch):
            top, chosen = logits_NV.softmax(-1).max(-1)
            calibration += calibration_sums(top.cpu(), (chosen == batch.labels_N[chunk]).cpu())
            has_target = target.has_target_N[chunk].to(device)
            agreed += ranking_agreement(logits_NV[has_target], teacher_ids[chunk][has_target])
        text = Text(batch.labels_N, to_device(target, device), stretches(len(target), CHUNK_POSITIONS, target))
        kl = text_loss(batch.hidden_ND, decoder.head, text, kd_weight=1.0, dtype=torch.float32).kl
        agreed += Agreement(0, 0.0, 0.0, kl=float(kl or 0.0))
    return Comparison(agreed, calibration)


def _batches(decoder: Decoder, windows: WindowStore, batch_windows: int) -> Iterator[_Batch]:
    device = decoder.head.weight_VD.device
    starts = range(0, len(windows), batch_windows)
    counts = windows.token_counts
    tokens = lambda start: int(counts[start : start + batch_windows].sum())  # noqa: E731
    edges = F.pad(counts.cumsum(0), (1, 0)).tolist()
    for start in progress_bar(starts, len(starts), "validation windows", tokens=tokens):
        numbers = range(start, min(start + batch_windows, len(windows)))
        inputs, labels = model_inputs(windows, numbers)
        inputs_BL = inputs.to(device)
        began = seconds_when_done(device)
        hidden_BLD = decoder.body(input_ids=inputs_BL, use_cache=False).last_hidden_state
        hidden_ND = torch.cat([hidden_BLD[i, : len(ids)] for i, ids in enumerate(labels)]).float()
        seconds = seconds_when_done(device) - began
        places = slice(edges[numbers.start], edges[numbers.stop])
        yield _Batch(hidden_ND, torch.cat(labels).to(device), numbers, places, seconds)


def _logits(head: OutputHead, batch: _Batch) -> Iterator[tuple[slice, Tensor]]:
    """fp32 logits, some positions after the other, so that [N, vocabulary] is never held whole."""
    head = head.to_dtype(torch.float32)
    for start in range(0, len(batch.hidden_ND), CHUNK_POSITIONS):
        chunk = slice(start, start + CHUNK_POSITIONS)
        yield chunk, head.logits(batch.hidden_ND[chunk])


def _device(model: PreTrainedModel) -> torch.device:
    return next(model.parameters()).device


def require_same_bytes(student: Score, teacher: tuple[float, int]) -> None:
    """Refuse to compare a student with a teacher that has read other text.

    Args:
        teacher: its NLL, and the bytes that it is of.

    Raises:
        DataError: naming both numbers of bytes.
    """
    if teacher[1] != student.n_bytes:
        raise DataError(
            f"the student's validation windows have {student.n_bytes} bytes, the teacher's {teacher[1]}",
            fix="run: dvc repro -f tokenize",
        )
