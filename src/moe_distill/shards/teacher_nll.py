"""What the teacher's cached log-probabilities say of a text."""

import torch
from torch import Tensor

from moe_distill.shards.reader import ShardReader
from moe_distill.shards.window_store import WindowStore


def teacher_nll(teacher_windows: WindowStore, targets: ShardReader, documents: Tensor) -> tuple[float, int]:
    """The teacher's cached NLL in nats over the windows of the given documents (their numbers), and their bytes."""
    numbers = torch.cat(list(teacher_windows.reader.columns("documents")))
    kept = torch.isin(numbers, documents)
    kept_N, first, nll = kept.repeat_interleave(teacher_windows.token_counts), 0, 0.0
    for logprobs in targets.columns("target_logprob"):
        nll -= float(logprobs[kept_N[first : first + len(logprobs)]].double().sum())
        first += len(logprobs)
    return nll, int(teacher_windows.byte_counts[kept].sum())
