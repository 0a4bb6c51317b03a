"""Run the teacher over its windows in order, and write its targets (shards/teacher_store.py)."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.config.profile import Capture
from moe_distill.errors import ConfigError, DataError
from moe_distill.log import progress_bar
from moe_distill.shards.format import DTYPES, FieldSpec, Index, Metadata
from moe_distill.shards.planned_store import PlannedStore
from moe_distill.shards.provenance import capture_fingerprint, windows_fingerprint
from moe_distill.shards.shard_file import Rows
from moe_distill.shards.teacher_store import (
    TAIL_SAMPLE_TEMPERATURE,
    TAIL_UNIFORM_SHARE,
    TEACHER_TARGETS,
    target_fields,
)
from moe_distill.shards.window_store import WindowStore, model_inputs
from moe_distill.teacher.architecture import Architecture
from moe_distill.teacher.columns import OTHER_TEACHER, Batch, fitted, hidden_columns, position_columns
from moe_distill.teacher.file_plan import batches_of, plan_files
from moe_distill.teacher.forward import States, forward
from moe_distill.utils.processes import ALONE, Processes
from moe_distill.utils.wall_time import Span, Stopwatch


@dataclass(frozen=True)
class Captured:
    """A finished capture of one split."""

    index: Index
    nonfinite_batches: int  # computed again in fp32
    text_token_probability: float  # mean over positions of the probability of all ids that stand for text
    spans: list[Span]  # in which its files were computed, by whichever process of whichever run


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
    processes: Processes = ALONE,
) -> Captured:
    """Write the targets of every position of `windows` to `output`; continue where killed processes ended.

    Each process of a group writes files of its own. Parameters and windows decide which windows a file holds, and these
    alone what stands in it: any number of processes writes the same bytes.

    Args:
        architecture: of the model.
        text_ids_R: bool; ids that stand for text (`text_token_mask`).
        params: section `teacher` of the profile.
        seed: of the tail samples and of the choice of runs with states.
        teacher_fingerprint: of the teacher's files, for the store's metadata.
        key: fingerprint of windows, teacher and capture parameters, for the store's index.
        output: folder of the store.
        progress_folder: progress files of the shards (see `PlannedStore`).
        processes: those that write the split together; each calls this.

    Returns:
        What all processes have captured.

    Raises:
        ConfigError: a captured layer does not exist, or k leaves no tail.
        DataError: a state is not finite in fp32 either, or a logit is not.
    """
    _check(params, architecture)
    specs = capture_fields(params, architecture.decoder.hidden_size, architecture.num_experts)
    files = plan_files(windows.token_counts.tolist(), params.batch_windows, params.shard_positions)
    store = PlannedStore(output, specs, files, progress_folder, processes)
    mine = store.unfinished()
    batches = [(number, batch) for number in mine for batch in batches_of(files[number], params.batch_windows)]
    head = architecture.decoder.head.to_dtype(torch.float32)
    textless_ids_O = (~text_ids_R).nonzero().squeeze(1).to(head.weight_VD.device)
    counts = windows.token_counts

    def tokens_of(batch: tuple[int, range]) -> int:
        return int(counts[batch[1].start : batch[1].stop].sum())

    rows, tallies, stopwatch = Rows(specs), Counter[str](), Stopwatch()
    with store.writing() as write:
        for number, numbers in progress_bar(batches, len(batches), f"teacher: {output.name}", tokens=tokens_of):
            batch = Batch(numbers, *model_inputs(windows, numbers))
            states, in_fp32 = _finite_states(model, architecture, batch, params.hidden_layers)
            columns, textless_probability = position_columns(batch, states, head, textless_ids_O, params, seed)
            columns |= hidden_columns(batch, states, windows, params, seed)
            rows.append({name: fitted(column, DTYPES[specs[name].dtype]) for name, column in columns.items()})
            tallies.update({"nonfinite_batches": in_fp32, "textless_probability": textless_probability})
            if numbers.stop == files[number].stop:
                began, ended = stopwatch.lap()
                write(number, rows, {**tallies, "began": began, "ended": ended})
                rows, tallies = Rows(specs), Counter()
    index = store.finish(TEACHER_TARGETS, key, _metadata(model, architecture, windows, params, teacher_fingerprint))
    recorded = [progress.tallies for progress in store.progress()]
    return Captured(
        index,
        nonfinite_batches=int(sum(each["nonfinite_batches"] for each in recorded)),
        text_token_probability=1.0 - sum(each["textless_probability"] for each in recorded) / index.rows("positions"),
        spans=[(each["began"], each["ended"]) for each in recorded],
    )


def _metadata(
    model: PreTrainedModel, architecture: Architecture, windows: WindowStore, params: Capture, teacher_fingerprint: str
) -> Metadata:
    return {
        "windows_fingerprint": windows_fingerprint(windows.reader.index),
        "tokenizer": windows.reader.index.metadata["tokenizer"],
        "capture_fingerprint": capture_fingerprint(params),
        "teacher_fingerprint": teacher_fingerprint,
        "teacher_parameters": sum(weight.numel() for weight in model.parameters()),
        "teacher_bytes": sum(weight.numel() * weight.element_size() for weight in model.parameters()),
        "output_rows": len(architecture.decoder.head.weight_VD),
        "layers": len(architecture.decoder.layers),
        "hidden_layers": params.hidden_layers,
        "tail_sample_temperature": TAIL_SAMPLE_TEMPERATURE,
        "tail_uniform_share": TAIL_UNIFORM_SHARE,
    }


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


def _finite_states(
    model: PreTrainedModel, architecture: Architecture, batch: Batch, hidden_layers: list[int]
) -> tuple[States, bool]:
    """See `forward`.

    Raises:
        DataError: a state is not finite in fp32 either.
    """
    input_ids_BL = batch.input_ids_BL.to(next(model.parameters()).device)
    states, in_fp32 = forward(model, architecture, input_ids_BL, hidden_layers)
    if not states.finite:
        what = f"the teacher gives non-finite values in {batch}"
        raise DataError(what, "in fp32 too", OTHER_TEACHER)
    return states, in_fp32
