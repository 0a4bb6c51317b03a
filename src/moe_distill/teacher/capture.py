"""Run the teacher over its windows in order, and write its targets (shards/teacher_store.py).

Shapes: B windows of a batch, L positions of a window, N positions of a batch without padding, R rows of the output
matrix, T hidden size, S captured layers, E experts.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.config.profile import Capture
from moe_distill.errors import ConfigError, DataError
from moe_distill.log import progress_bar
from moe_distill.losses.output_head import OutputHead
from moe_distill.shards.format import DTYPES, FieldSpec, Index
from moe_distill.shards.provenance import capture_fingerprint, windows_fingerprint
from moe_distill.shards.teacher_store import (
    SCALE_MAXIMUM,
    TAIL_SAMPLE_TEMPERATURE,
    TAIL_UNIFORM_SHARE,
    TEACHER_TARGETS,
    target_fields,
)
from moe_distill.shards.value_checks import is_finite
from moe_distill.shards.window_store import WindowStore, model_inputs
from moe_distill.shards.writer import ShardWriter
from moe_distill.teacher.architecture import Architecture
from moe_distill.teacher.forward import States, forward
from moe_distill.teacher.sparsify import Records, sparsify

FP16_MAXIMUM = torch.finfo(torch.float16).max
OTHER_TEACHER = "use another revision of the teacher: its weights are damaged or overflow"


@dataclass(frozen=True)
class Captured:
    """A finished capture of one split."""

    index: Index
    nonfinite_batches: int  # computed again in fp32
    text_token_probability: float  # mean over positions of the probability of all ids that stand for text
    seconds: float  # of all batches, those of killed runs before this one included


@dataclass(frozen=True)
class _Batch:
    """Consecutive windows, padded to the right."""

    numbers: range  # of the windows
    input_ids_BL: Tensor  # prefix token, then all tokens but the last
    tokens: list[Tensor]  # of each window, [tokens]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each window."""
        return [len(ids) for ids in self.tokens]

    def rows(self, values: Tensor) -> Tensor:
        """[B, L, ...] -> [N, ...]: without padding, in the order of the windows."""
        return torch.cat([values[number, :length] for number, length in enumerate(self.lengths)])


def capture(
    model: PreTrainedModel,
    architecture: Architecture,
    windows: WindowStore,
    text_ids_R: Tensor,
    params: Capture,
    seed: int,
    teacher_fingerprint: str,
    key: str,
    output: Path,
    progress_folder: Path,
) -> Captured:
    """Write the targets of every position of `windows` to `output`; continue where a killed run ended.

    Args:
        architecture: of the model.
        text_ids_R: bool; ids that stand for text (`text_token_mask`).
        params: section `teacher` of the profile.
        seed: of the tail samples and of the choice of runs with states.
        teacher_fingerprint: of the teacher's files, for the store's metadata.
        key: fingerprint of windows, teacher and capture parameters, for the store's index.
        output: folder of the store.
        progress_folder: progress files of the shards (see `ShardWriter`).

    Raises:
        ConfigError: a captured layer does not exist, or k leaves no tail.
        DataError: a state is not finite in fp32 either, or a logit is not.
    """
    decoder = architecture.decoder
    _check(params, architecture)
    device = next(model.parameters()).device
    specs = capture_fields(params, decoder.hidden_size, architecture.num_experts)
    writer = ShardWriter(output, specs, "positions", params.shard_positions, progress_folder)
    head = decoder.head.to_dtype(torch.float32)
    text_ids_R = text_ids_R.to(device)
    starts = range(writer.next_input, len(windows), params.batch_windows)
    counts = windows.token_counts
    tokens = lambda start: int(counts[start : start + params.batch_windows].sum())  # noqa: E731
    for start in progress_bar(starts, len(starts), f"teacher: {output.name}", tokens=tokens):
        began = time.perf_counter()
        numbers = range(start, min(start + params.batch_windows, len(windows)))
        batch = _Batch(numbers, *model_inputs(windows, numbers))
        states, in_fp32 = forward(model, architecture, batch.input_ids_BL.to(device), params.hidden_layers)
        if not states.finite():
            what = f"the teacher gives non-finite values in windows {_span(batch.numbers)}"
            raise DataError(what, "in fp32 too", OTHER_TEACHER)
        columns, text_token_probability = _position_columns(batch, states, head, text_ids_R, params, seed)
        columns |= _hidden_columns(batch, states, windows, params, seed)
        columns = {name: _fitted(column, DTYPES[specs[name].dtype]) for name, column in columns.items()}
        tallies = {
            "nonfinite_batches": float(in_fp32),
            "text_token_probability": text_token_probability,
            "seconds": time.perf_counter() - began,
        }
        writer.append(columns, next_input=batch.numbers.stop, tallies=tallies)
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
            "output_rows": len(head.weight_VD),
            "layers": len(decoder.layers),
            "hidden_layers": params.hidden_layers,
            "tail_sample_temperature": TAIL_SAMPLE_TEMPERATURE,
            "tail_uniform_share": TAIL_UNIFORM_SHARE,
        },
    )
    positions = index.rows("positions")
    return Captured(
        index, int(totals["nonfinite_batches"]), totals["text_token_probability"] / positions, totals["seconds"]
    )


def capture_fields(params: Capture, hidden_size: int, num_experts: int) -> dict[str, FieldSpec]:
    """The columns that a capture has; `num_experts` 0: nothing can be replayed."""
    layers, router_layers = len(params.hidden_layers), int(num_experts > 0)
    return target_fields(params.k, params.tail_samples, layers, hidden_size, router_layers, num_experts)


def _check(params: Capture, architecture: Architecture) -> None:
    n_layers, vocabulary = len(architecture.decoder.layers), len(architecture.decoder.head.weight_VD)
    if any(layer > n_layers for layer in params.hidden_layers):
        raise ConfigError(f"`teacher.hidden_layers` names a layer beyond {n_layers}, the teacher's last")
    if params.k >= vocabulary:
        raise ConfigError(f"`teacher.k` is {params.k}; the teacher has {vocabulary} logits and needs a tail")


def _position_columns(
    batch: _Batch, states: States, head: OutputHead, text_ids_R: Tensor, params: Capture, seed: int
) -> tuple[dict[str, Tensor], float]:
    """The columns of table `positions`, and the sum over positions of the probability of all text ids.

    Raises:
        DataError: a logit is not finite.
    """
    final_NT = batch.rows(states.final_BLT)
    targets_N = torch.cat(batch.tokens).to(final_NT.device)
    generator = torch.Generator().manual_seed(_stable_hash(seed, batch.numbers.start))
    uniforms_N = torch.rand(len(final_NT), generator=generator).to(final_NT.device)
    records, text_token_probability = [], 0.0
    for hidden, targets, uniforms in _chunks(params.chunk_positions, final_NT, targets_N, uniforms_N):
        logits = head.logits(hidden)  # fp32: an fp16 product alone costs 0.02 in log-probability
        if not is_finite(logits):
            raise DataError(f"the teacher gives non-finite logits in windows {_span(batch.numbers)}", fix=OTHER_TEACHER)
        records.append(sparsify(logits, targets, params.k, params.tail_samples, uniforms))
        text_token_probability += float(logits.softmax(-1)[:, text_ids_R].sum())
    columns = {field.name: torch.cat([getattr(record, field.name) for record in records]) for field in fields(Records)}
    return columns, text_token_probability


def _fitted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in their stored dtype; those beyond fp16 become its extreme, as exp(-65504) is 0 all the same."""
    return values.clamp(-FP16_MAXIMUM, FP16_MAXIMUM).half() if dtype is torch.float16 else values.to(dtype)


def _span(numbers: range) -> str:
    return f"{numbers.start} to {numbers.stop - 1}"


def _chunks(size: int, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield `size` rows of every column at a time; as many rows of logits exist at once."""
    return zip(*(column.split(size) for column in columns), strict=True)


def _hidden_columns(
    batch: _Batch, states: States, windows: WindowStore, params: Capture, seed: int
) -> dict[str, Tensor]:
    """The columns of table `hidden`: one run of positions of each chosen window."""
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

    columns["hidden"], columns["hidden_scales"] = _scaled(picked(states.hidden_BLST))
    if states.moe_input_BLT is not None and states.router_logits_BLE is not None:
        columns["moe_input"], columns["moe_input_scales"] = _scaled(picked(states.moe_input_BLT))
        columns["router_logits"] = picked(states.router_logits_BLE)[:, None]
    return columns


def run_of(window: int, length: int, params: Capture, seed: int) -> range | None:
    """The run of positions of a window whose states are kept; None: the window keeps none.

    Window number, length and seed decide, so that a resumed capture keeps the same runs.
    """
    number = _stable_hash(seed, window)
    chosen = (number >> 31) / 2**32 < params.hidden_fraction  # the upper 32 of 63 bits
    if not chosen or length < params.hidden_run:
        return None
    start = (number & 0x7FFFFFFF) % (length - params.hidden_run + 1)
    return range(start, start + params.hidden_run)


def _stable_hash(seed: int, number: int) -> int:
    """63 bits that depend on seed and number alone, in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8], "big") >> 1


def _scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """fp16 values, and an fp32 scale for each row: value = stored * scale, where the largest |stored| is 2^15."""
    scales = values.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny * SCALE_MAXIMUM) / SCALE_MAXIMUM
    return (values / scales[..., None]).half(), scales
