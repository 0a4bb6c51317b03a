"""One split as training reads it: student windows, and the teacher's shards for them."""

from dataclasses import dataclass
from pathlib import Path

from moe_distill.shards.pointers import check_pointers
from moe_distill.shards.provenance import check_same_windows
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import open_targets
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore


@dataclass(frozen=True)
class Split:
    windows: WindowStore
    shards: ShardReader | None  # None: LM alone


def open_split(student_windows: Path, shards: Path | None) -> Split:
    """Open a split's student windows, and the teacher's shards for them.

    Raises:
        DataError: the shards were made from other teacher windows than the student's windows point at; or a window
            is not what it says (see `WindowStore`).
    """
    windows = WindowStore(student_windows, STUDENT_WINDOWS)
    reader = None if shards is None else open_targets(shards)
    if reader is not None:
        check_same_windows(windows.reader, reader)
        check_pointers(windows, reader)
    return Split(windows, reader)


def mean_positions_with_states(windows: WindowStore, share: float) -> float:
    """Aligned positions of a student's window whose teacher state is kept, on average.

    Args:
        share: of the teacher's positions that have a state.
    """
    aligned = sum(int((rows >= 0).sum()) for rows in windows.reader.columns("teacher_rows"))
    return aligned * share / len(windows)


def count_experts(shards: ShardReader) -> int:
    """Experts of the teacher's last block; 0 where it is dense."""
    fields = shards.index.fields
    return fields["router_logits"].shape[-1] if "router_logits" in fields else 0
