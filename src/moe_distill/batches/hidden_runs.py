"""Teacher states for some windows, read from the shards."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moe_distill.batches.batch import HiddenRuns
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.window_store import WindowStore


def read_hidden_runs(
    windows: WindowStore, shards: ShardReader, numbers: Sequence[int], length: int, noise_seed: int
) -> HiddenRuns | None:
    """The sampled positions of each window that the student shares; None where no window has any.

    Args:
        numbers: of the windows, in the order of the batch.
        length: L, positions of a padded window.
        noise_seed: of the gate's noise; with the window's number it determines the noise of the window.
    """
    places, columns, noise = [], [], []
    names = ["hidden", *(name for name in ("moe_input", "router_logits") if name in shards.index.fields)]
    for place, number in enumerate(numbers):
        rows = windows.tokens("teacher_rows", number)
        aligned = (rows >= 0).nonzero().squeeze(1)
        file, hidden_numbers, is_sampled = _sampled(shards, rows[aligned])
        if not len(hidden_numbers):
            continue
        places.append(aligned[is_sampled] + place * length)
        columns.append({name: read_states(shards, name, file, hidden_numbers) for name in names})
        if "router_logits" in names:
            generator = torch.Generator().manual_seed((noise_seed * 1_000_003 + number) % 2**63)
            noise.append(torch.randn(columns[-1]["router_logits"].shape, generator=generator))
    if not places:
        return None
    mask_WP = pad_sequence([torch.ones(len(each), dtype=torch.bool) for each in places], batch_first=True)
    padded = {
        name: pad_sequence([each[name] for each in columns], batch_first=True)
        for name in names
        if name != "router_logits"
    }
    return HiddenRuns(
        places_WP=pad_sequence(places, batch_first=True),
        mask_WP=mask_WP,
        filled_N=mask_WP.flatten().nonzero().squeeze(1),
        states_WPST=padded["hidden"],
        moe_input_WPT=padded.get("moe_input"),
        router_logits_NE=torch.cat([each["router_logits"] for each in columns]) if noise else None,
        gate_noise_NE=torch.cat(noise) if noise else None,
    )


def _sampled(shards: ShardReader, rows: Tensor) -> tuple[int, Tensor, Tensor]:
    """Which position rows of one window have states.

    Returns:
        The file of the rows, the numbers of their states in it, and which of the rows these are, bool.
    """
    if not len(rows):
        return 0, rows, rows.bool()
    file, _ = shards.locate("positions", int(rows[0]))
    hidden_rows = shards.column("hidden_rows", file)
    if not len(hidden_rows):
        return file, rows[:0], torch.zeros_like(rows, dtype=torch.bool)
    found = torch.searchsorted(hidden_rows, rows).clamp(max=len(hidden_rows) - 1)
    is_sampled = hidden_rows[found] == rows
    return file, found[is_sampled], is_sampled


def read_states(shards: ShardReader, field: str, file: int, numbers: Tensor) -> Tensor:
    """Rows of a field of table `hidden` in fp32; states by their scales, router logits [N, E] as they are."""
    values = shards.column(field, file)[numbers].float()
    if field == "router_logits":
        return values.squeeze(1)
    return values * shards.column(f"{field}_scales", file)[numbers][..., None]
