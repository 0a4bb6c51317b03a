"""Bytes that the teacher stage will write, computed before it starts."""

from moe_distill.config.profile import Capture
from moe_distill.shards.format import store_bytes
from moe_distill.shards.window_store import WindowStore
from moe_distill.teacher.architecture import Architecture
from moe_distill.teacher.capture import capture_fields
from moe_distill.teacher.columns import run_of


def shard_bytes(windows: WindowStore, params: Capture, architecture: Architecture) -> int:
    """Bytes of the columns of one split: the positions are counted and the runs of states drawn as in the capture."""
    rows = {"positions": int(windows.token_counts.sum()), "hidden": count_positions_with_states(windows, params)}
    return store_bytes(capture_fields(params, architecture.decoder.hidden_size, architecture.num_experts), rows)


def count_positions_with_states(windows: WindowStore, params: Capture) -> int:
    """How many positions of a split keep their states."""
    counts = enumerate(windows.token_counts.tolist())
    runs = sum(run_of(window, count, params, params.seed) is not None for window, count in counts)
    return runs * params.hidden_run
