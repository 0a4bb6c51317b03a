"""What the teacher stage will write, before it writes it."""

from moe_distill.config.profile import Capture
from moe_distill.shards.format import store_bytes
from moe_distill.shards.window_store import WindowStore
from moe_distill.teacher.architecture import Architecture
from moe_distill.teacher.capture import capture_fields, run_of


def shard_bytes(windows: WindowStore, params: Capture, architecture: Architecture) -> int:
    """Bytes of the columns of one split: the positions are counted and the runs of states drawn as in the capture."""
    rows = {"positions": int(windows.token_counts.sum()), "hidden": stated_positions(windows, params)}
    return store_bytes(capture_fields(params, architecture.hidden_size, architecture.num_experts), rows)


def stated_positions(windows: WindowStore, params: Capture) -> int:
    """Positions of one split whose states will be kept."""
    counts = enumerate(windows.token_counts.tolist())
    runs = sum(run_of(window, count, params, params.seed) is not None for window, count in counts)
    return runs * params.hidden_run


def head_bytes(architecture: Architecture) -> int:
    """Bytes of models/teacher_head, in the teacher's dtype."""
    return sum(tensor.nbytes for tensor in architecture.head.values())
