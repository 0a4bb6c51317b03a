"""Student windows and the teacher's rows for them, read by number and put together into batches."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moe_distill.errors import DataError
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.targets import open_targets, read_rows
from moe_distill.shards.windows import STUDENT_WINDOWS, WindowStore
from moe_distill.training.batch import Batch, HiddenRuns


@dataclass(frozen=True)
class Split:
    """One split as training and evaluation read it."""

    windows: WindowStore
    targets: ShardReader | None  # None: LM alone


def open_split(student_windows: Path, targets: Path | None) -> Split:
    """Open a split's student windows, and the teacher's shards for them.

    Raises:
        DataError: the shards were made from other teacher windows than the student's windows point at.
    """
    windows = WindowStore(student_windows, STUDENT_WINDOWS)
    reader = None if targets is None else open_targets(targets)
    if reader is not None:
        expected = windows.reader.index.metadata["teacher_windows"]
        found = reader.index.metadata["windows_fingerprint"]
        if found != expected:
            raise DataError(
                f"{targets} was made from teacher windows {found}, {student_windows} points at {expected}",
                fix="run: dvc repro teacher",
            )
    return Split(windows, reader)


def stated_positions(windows: WindowStore, share: float) -> float:
    """Aligned positions of a student's window whose teacher state is kept, on average.

    Args:
        share: of the teacher's positions that have a state.
    """
    aligned = sum(int((rows >= 0).sum()) for rows in windows.reader.columns("teacher_rows"))
    return aligned * share / len(windows)


def read_batch(split: Split, numbers: list[int], with_runs: bool) -> Batch:
    """Read windows by number, their targets where the split has any, and their runs of states if asked."""
    prefix = split.windows.reader.index.metadata["prefix_id"]
    assert isinstance(prefix, int)
    tokens = [split.windows.tokens("token_ids", number).long() for number in numbers]
    padded = pad_sequence(tokens, batch_first=True, padding_value=prefix)
    inputs = torch.cat([torch.full((len(tokens), 1), prefix), padded[:, :-1]], dim=1)
    length = inputs.shape[1]
    places = torch.cat([torch.arange(len(ids)) + number * length for number, ids in enumerate(tokens)])
    rows = [split.windows.tokens("teacher_rows", number) for number in numbers]
    aligned = torch.cat(rows).ge(0).nonzero().squeeze(1)
    return Batch(
        input_ids_BL=inputs,
        places_N=places,
        labels_N=torch.cat(tokens),
        aligned_A=aligned,
        rows=None if split.targets is None else read_rows(split.targets, rows),
        runs=_hidden_runs(split.targets, numbers, rows, length) if split.targets is not None and with_runs else None,
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


def _unscaled(targets: ShardReader, field: str, file: int, picked: Tensor) -> Tensor:
    scales = targets.column(f"{field}_scales", file)[picked]
    return targets.column(field, file)[picked].float() * scales[..., None]
