"""What belongs together is known by content, not by what it was meant to be made from."""

from pathlib import Path

import torch

from moe_distill.shards.format import Index
from moe_distill.shards.provenance import windows_fingerprint
from moe_distill.shards.window_store import TEACHER_FIELDS, TEACHER_WINDOWS
from moe_distill.shards.writer import ShardWriter


def windows(folder: Path, *lengths: int) -> Index:
    writer = ShardWriter(folder, TEACHER_FIELDS, "tokens", 100)
    columns = {name: torch.zeros(0, dtype=torch.int32) for name in TEACHER_FIELDS}
    columns["token_ids"] = torch.ones(sum(lengths), dtype=torch.int32)
    columns["token_counts"] = torch.tensor(lengths, dtype=torch.int32)
    columns["documents"] = torch.zeros(len(lengths), dtype=torch.int32)
    columns["byte_starts"] = columns["byte_ends"] = torch.zeros(len(lengths), dtype=torch.int64)
    writer.append(columns)
    return writer.finish(TEACHER_WINDOWS, "the same corpus, tokenizer and length", {})


def test_windows_cut_otherwise_are_other_windows(tmp_path: Path) -> None:
    """Code that cuts windows may change where nothing of the profile does; unfinished shards must not go on."""
    first, again, other = windows(tmp_path / "a", 4, 6), windows(tmp_path / "b", 4, 6), windows(tmp_path / "c", 5, 5)
    assert windows_fingerprint(first) == windows_fingerprint(again) != windows_fingerprint(other)
    assert first.fingerprint == other.fingerprint
