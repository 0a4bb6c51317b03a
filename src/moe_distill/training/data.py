"""Student windows and the teacher's rows for them, read by number and put together into batches."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from moe_distill.shards.pointers import check_pointers
from moe_distill.shards.provenance import check_same_windows
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import open_targets, read_rows
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore, model_inputs
from moe_distill.training.batch import Batch, Chunks, HiddenRuns
from moe_distill.training.inside import read_inside


@dataclass(frozen=True)
class Split:
    """One split as training and evaluation read it."""

    windows: WindowStore
    targets: ShardReader | None  # None: LM alone


@dataclass(frozen=True)
class BatchFields:
    """What an objective reads beside tokens and logits."""

    runs: bool = False  # the teacher's hidden states
    inside: bool = False  # the teacher's logits for positions inside its tokens
    chunks: bool = False  # the teacher's likelihood of chunks


TEXT_ONLY = BatchFields()


def open_split(student_windows: Path, targets: Path | None) -> Split:
    """Open a split's student windows, and the teacher's shards for them.

    Raises:
        DataError: the shards were made from other teacher windows than the student's windows point at; or a window
            is not what it says (see `WindowStore`).
    """
    windows = WindowStore(student_windows, STUDENT_WINDOWS)
    reader = None if targets is None else open_targets(targets)
    if reader is not None:
        check_same_windows(windows.reader, reader)
        check_pointers(windows, reader)
    return Split(windows, reader)


def stated_positions(windows: WindowStore, share: float) -> float:
    """Aligned positions of a student's window whose teacher state is kept, on average.

    Args:
        share: of the teacher's positions that have a state.
    """
    aligned = sum(int((rows >= 0).sum()) for rows in windows.reader.columns("teacher_rows"))
    return aligned * share / len(windows)


def read_batch(split: Split, numbers: list[int], wanted: BatchFields) -> Batch:
    """Read windows by number, their targets where the split has any, and what else is wanted of these."""
    inputs, tokens = model_inputs(split.windows, numbers)
    length = inputs.shape[1]
    places = torch.cat([torch.arange(len(ids)) + number * length for number, ids in enumerate(tokens)])
    rows = [split.windows.tokens("teacher_rows", number) for number in numbers]
    aligned = torch.cat(rows).ge(0).nonzero().squeeze(1)
    next_teacher_ids = torch.cat([split.windows.tokens("next_teacher_ids", number) for number in numbers])
    return Batch(
        input_ids_BL=inputs,
        places_N=places,
        labels_N=torch.cat(tokens),
        aligned_A=aligned,
        next_teacher_ids_A=next_teacher_ids[aligned].long(),
        rows=None if split.targets is None else read_rows(split.targets, rows),
        runs=_hidden_runs(split.targets, numbers, rows, length) if split.targets is not None and wanted.runs else None,
        inside=read_inside(split.windows, split.targets, numbers)
        if split.targets is not None and wanted.inside
        else None,
        chunks=_chunks(split.targets, rows) if split.targets is not None and wanted.chunks else None,
        n_bytes=int(split.windows.byte_counts[numbers].sum()),
    )


def _hidden_runs(
    targets: ShardReader, numbers: list[int], rows_of_windows: list[Tensor], length: int
) -> HiddenRuns | None:
    """The sampled positions of each window that the student shares; None where no window has any."""
    windows, places, states, moe_inputs = [], [], [], []
    for number, rows in enumerate(rows_of_windows):
        shared = (rows >= 0).nonzero().squeeze(1)
        if not len(shared):
            continue
        file, _ = targets.locate("positions", int(rows[shared[0]]))
        hidden_rows = targets.column("hidden_rows", file)
        found = torch.searchsorted(hidden_rows, rows[shared])
        within = found.clamp(max=max(len(hidden_rows) - 1, 0))
        is_sampled = hidden_rows[within] == rows[shared] if len(hidden_rows) else torch.zeros_like(shared).bool()
        picked = within[is_sampled]
        if not len(picked):
            continue
        windows.append(numbers[number])
        places.append(shared[is_sampled] + number * length)
        states.append(_unscaled(targets, "hidden", file, picked))
        if "moe_input" in targets.index.fields:
            moe_inputs.append(_unscaled(targets, "moe_input", file, picked))
    if not places:
        return None
    mask_WR = pad_sequence([torch.ones(len(place), dtype=torch.bool) for place in places], batch_first=True)
    return HiddenRuns(
        windows_W=torch.tensor(windows),
        places_WR=pad_sequence(places, batch_first=True),
        mask_WR=mask_WR,
        filled_N=mask_WR.flatten().nonzero().squeeze(1),
        states_WRSD=pad_sequence(states, batch_first=True),
        moe_input_WRD=pad_sequence(moe_inputs, batch_first=True) if moe_inputs else None,
    )


def _chunks(targets: ShardReader, rows_of_windows: list[Tensor]) -> Chunks:
    """Chunks of more than one token on either side; what follows a window's last common boundary is none."""
    chunk_of, teacher_logprobs, n_chunks = [], [], 0
    for rows in rows_of_windows:
        shared = (rows >= 0).nonzero().squeeze(1)
        if len(shared) < 2:
            chunk_of.append(torch.full_like(rows, -1))
            continue
        edges = rows[shared]
        first = int(edges[0])
        read_before = F.pad(targets.slice("target_logprob", first, int(edges[-1]) + 1).double().cumsum(0), (1, 0))
        logprobs = read_before[edges - first].diff()
        is_chunk = (shared.diff() > 1) | (edges.diff() > 1)
        number = torch.where(is_chunk, is_chunk.cumsum(0) - 1 + n_chunks, -1)
        number_or_none = torch.cat([torch.tensor([-1]), number, torch.tensor([-1])])  # before, between, after
        chunk_of.append(number_or_none[torch.searchsorted(shared, torch.arange(len(rows)), right=True)])
        teacher_logprobs.append(logprobs[is_chunk].float())
        n_chunks += len(teacher_logprobs[-1])
    return Chunks(torch.cat(chunk_of), torch.cat(teacher_logprobs) if teacher_logprobs else torch.zeros(0))


def _unscaled(targets: ShardReader, field: str, file: int, picked: Tensor) -> Tensor:
    scales = targets.column(f"{field}_scales", file)[picked]
    return targets.column(field, file)[picked].float() * scales[..., None]
