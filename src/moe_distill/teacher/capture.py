"""Run the teacher over its windows, in order, and write what it says (shards/targets.py)."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.config.profile import Capture
from moe_distill.errors import ConfigError, DataError
from moe_distill.log import progress_bar
from moe_distill.shards.format import FieldSpec, Index
from moe_distill.shards.provenance import capture_fingerprint, windows_fingerprint
from moe_distill.shards.teacher_store import (
    SCALE_MAXIMUM,
    TAIL_SAMPLE_TEMPERATURE,
    TAIL_UNIFORM_SHARE,
    TEACHER_TARGETS,
    target_fields,
)
from moe_distill.shards.window_store import WindowStore, model_inputs
from moe_distill.shards.writer import ShardWriter
from moe_distill.teacher.architecture import Architecture, find_modules
from moe_distill.teacher.forward import States, forward
from moe_distill.teacher.sparsify import Records, sparsify

FP16_MAXIMUM = torch.finfo(torch.float16).max
OTHER_TEACHER = "use another revision of the teacher: its weights are damaged or overflow"


@dataclass(frozen=True)
class Captured:
    """A finished capture of one split."""

    index: Index
    nonfinite_batches: int  # computed again in fp32
    text_token_probability: float  # mean probability mass on ids that stand for text
    seconds: float


@dataclass(frozen=True)
class _Batch:
    """Consecutive windows, padded to the right."""

    numbers: range
    input_ids_BL: Tensor  # prefix token, then all tokens but the last
    tokens: list[Tensor]  # of each window

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.tokens]

    def rows(self, values: Tensor) -> Tensor:
        """[B, L, ...] -> [positions, ...] without padding, in window order."""
        return torch.cat([values[number, :length] for number, length in enumerate(self.lengths)])


def capture(
    model: PreTrainedModel,
    windows: WindowStore,
    text_ids_V: Tensor,
    params: Capture,
    seed: int,
    teacher_fingerprint: str,
    key: str,
    output: Path,
    progress_folder: Path,
) -> Captured:
    """Write the targets of every position of `windows` to `output`; continue where a killed run ended.

    Args:
        text_ids_V: ids that stand for text (`text_token_mask`).
        key: fingerprint of windows, teacher and capture parameters.
        progress_folder: progress files of the shards (see `ShardWriter`).

    Raises:
        ConfigError: a captured layer does not exist, or k leaves no tail.
        DataError: the teacher gives non-finite values in fp32 too.
    """
    architecture = find_modules(model)
    _check(params, architecture)
    device = next(model.parameters()).device
    fields = capture_fields(params, architecture)
    writer = ShardWriter(output, fields, "positions", params.shard_positions, progress_folder)
    output_VD = architecture.output.detach().float()
    text_ids_V = text_ids_V.to(device)
    starts = range(writer.next_input, len(windows), params.batch_windows)
    for start in progress_bar(starts, len(starts), "teacher"):
        began = time.perf_counter()
        numbers = range(start, min(start + params.batch_windows, len(windows)))
        batch = _Batch(numbers, *model_inputs(windows, numbers))
        states, in_fp32 = forward(model, architecture, batch.input_ids_BL.to(device), params.hidden_layers)
        if not states.finite():
            what = f"the teacher gives non-finite values in windows {_span(batch.numbers)}"
            raise DataError(what, "in fp32 too", OTHER_TEACHER)
        columns, text_token_probability = _position_columns(batch, states, output_VD, text_ids_V, params, seed)
        columns |= _hidden_columns(batch, states, windows, params, seed)
        tallies = {
            "nonfinite_batches": float(in_fp32),
            "text_token_probability": text_token_probability,
            "seconds": time.perf_counter() - began,
        }
        writer.append(columns, cursor=batch.numbers.stop, tallies=tallies)
    totals = {name: writer.tally(name) for name in ("nonfinite_batches", "text_token_probability", "seconds")}
    index = writer.finish(
        TEACHER_TARGETS,
        key,
        {
            "windows_fingerprint": windows_fingerprint(windows.reader.index),
            "tokenizer": windows.reader.index.metadata["tokenizer"],
            "capture_fingerprint": capture_fingerprint(params),
            "teacher_fingerprint": teacher_fingerprint,
            "teacher_parameters": sum(weight.numel() for weight in model.parameters()),
            "teacher_bytes": sum(weight.numel() * weight.element_size() for weight in model.parameters()),
            "output_rows": output_VD.shape[0],
            "layers": len(architecture.layers),
            "hidden_layers": params.hidden_layers,
            "tail_sample_temperature": TAIL_SAMPLE_TEMPERATURE,
            "tail_uniform_share": TAIL_UNIFORM_SHARE,
        },
    )
    positions = index.rows("positions")
    return Captured(
        index, int(totals["nonfinite_batches"]), totals["text_token_probability"] / positions, totals["seconds"]
    )


def capture_fields(params: Capture, architecture: Architecture) -> dict[str, FieldSpec]:
    """The columns that a capture of this teacher has."""
    experts = 0 if architecture.moe is None else architecture.moe.gate_weight.shape[0]
    size = architecture.output.shape[1]
    return target_fields(params.k, params.tail_samples, len(params.hidden_layers), size, int(experts > 0), experts)


def _check(params: Capture, architecture: Architecture) -> None:
    n_layers, vocabulary = len(architecture.layers), architecture.output.shape[0]
    if any(layer > n_layers for layer in params.hidden_layers):
        raise ConfigError(f"`teacher.hidden_layers` names a layer beyond {n_layers}, the teacher's last")
    if params.k >= vocabulary:
        raise ConfigError(f"`teacher.k` is {params.k}; the teacher has {vocabulary} logits and needs a tail")


def _position_columns(
    batch: _Batch, states: States, output_VD: Tensor, text_ids_V: Tensor, params: Capture, seed: int
) -> tuple[dict[str, Tensor], float]:
    """The columns of table `positions`, and the sum over positions of the mass on text ids.

    Raises:
        DataError: a logit is not finite.
    """
    final_ND = batch.rows(states.final_BLD)
    targets_N = torch.cat(batch.tokens).to(final_ND.device)
    generator = torch.Generator().manual_seed(_stable_hash(seed, batch.numbers.start))
    uniforms_N = torch.rand(len(final_ND), generator=generator).to(final_ND.device)
    records, text_token_probability = [], 0.0
    for hidden, targets, uniforms in _chunks(params.chunk_positions, final_ND, targets_N, uniforms_N):
        logits = hidden @ output_VD.T  # fp32: an fp16 product alone costs 0.02 in log-probability
        if not bool(torch.isfinite(logits).all()):
            raise DataError(f"the teacher gives non-finite logits in windows {_span(batch.numbers)}", fix=OTHER_TEACHER)
        records.append(sparsify(logits, targets, params.k, params.tail_samples, uniforms))
        text_token_probability += float(logits.softmax(-1)[:, text_ids_V].sum())
    return _columns(records), text_token_probability


def _columns(records: list[Records]) -> dict[str, Tensor]:
    dtypes = {
        "topk_ids": torch.int32,
        "topk_logprobs": torch.float16,
        "tail_logsumexp": torch.float32,
        "tail_ids": torch.int32,
        "tail_logprobs": torch.float16,
        "target_logprob": torch.float32,
    }
    columns = {name: torch.cat([getattr(record, name) for record in records]) for name in dtypes}
    return {name: _fitted(columns[name], dtype) for name, dtype in dtypes.items()}


def _fitted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in their stored dtype; what fp16 cannot reach becomes its extreme: exp(-65504) is 0 all the same."""
    return values.clamp(-FP16_MAXIMUM, FP16_MAXIMUM).half() if dtype is torch.float16 else values.to(dtype)


def _span(numbers: range) -> str:
    return f"{numbers.start} to {numbers.stop - 1}"


def _chunks(size: int, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(column.split(size) for column in columns), strict=True)


def _hidden_columns(
    batch: _Batch, states: States, windows: WindowStore, params: Capture, seed: int
) -> dict[str, Tensor]:
    """The columns of table `hidden`: one run of positions of each sampled window."""
    places = [
        (number, run)
        for number, window in enumerate(batch.numbers)
        if (run := run_of(window, batch.lengths[number], params, seed)) is not None
    ]
    rows = [torch.arange(run.start, run.stop) + windows.span(batch.numbers[n]).start for n, run in places]
    columns = {"hidden_rows": torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)}

    def picked(values: Tensor) -> Tensor:
        parts = [values[number, run.start : run.stop] for number, run in places]
        return torch.cat(parts) if parts else values[0, :0]

    columns["hidden"], columns["hidden_scales"] = _scaled(picked(states.hidden_BLSD))
    if states.moe_input_BLD is not None and states.router_logits_BLE is not None:
        columns["moe_input"], columns["moe_input_scales"] = _scaled(picked(states.moe_input_BLD))
        columns["router_logits"] = _fitted(picked(states.router_logits_BLE)[:, None], torch.float16)
    return columns


def run_of(window: int, length: int, params: Capture, seed: int) -> range | None:
    """The run of positions whose states are kept, or None: decided by the window's number and the seed alone."""
    draw = _stable_hash(seed, window)
    sampled = (draw >> 31) / 2**32 < params.hidden_fraction  # its upper 32 of 63 bits
    if not sampled or length < params.hidden_run:
        return None
    start = (draw & 0x7FFFFFFF) % (length - params.hidden_run + 1)
    return range(start, start + params.hidden_run)


def _stable_hash(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8], "big") >> 1


def _scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """fp16 values with one fp32 scale a row: value = stored * scale, the largest stored is 2^15."""
    scales = values.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny * SCALE_MAXIMUM) / SCALE_MAXIMUM
    return (values / scales[..., None]).half(), scales
