"""The teacher's cached rows, read for some positions and upcast."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_distill.shards.reader import ShardReader
from moe_distill.shards.teacher_store import tail_log_density

COLUMNS = ("topk_ids", "topk_logprobs", "tail_logsumexp", "tail_ids", "tail_logprobs", "target_logprob")


@dataclass(frozen=True)
class TeacherRows:
    """Cached rows of N positions, upcast: log-probabilities at T = 1 in fp32, ids in int64."""

    topk_ids: Tensor  # [N, K]
    topk_logprobs: Tensor  # [N, K]
    tail_logsumexp: Tensor  # [N, G]
    tail_ids: Tensor  # [N, M]
    tail_logprobs: Tensor  # [N, M]
    tail_log_density: Tensor  # [N, M]: log of the density that the samples were drawn from
    target_logprob: Tensor  # [N]: of the token that follows in the text


def read_rows(shards: ShardReader, row_numbers_A: Tensor) -> TeacherRows:
    """Read rows of table `positions` that lie in one file, as those of a window do.

    Args:
        row_numbers_A: int64, ascending.
    """
    if len(row_numbers_A):
        first, stop = int(row_numbers_A[0]), int(row_numbers_A[-1]) + 1
        columns = {name: shards.slice(name, first, stop)[row_numbers_A - first] for name in COLUMNS}
    else:
        columns = {name: torch.zeros(0, *shards.index.fields[name].shape) for name in COLUMNS}
    k = shards.index.fields["topk_ids"].shape[0]
    return teacher_rows(columns, n_tail=int(str(shards.index.metadata["output_rows"])) - k)


def teacher_rows(columns: dict[str, Tensor], n_tail: int) -> TeacherRows:
    """Upcast columns of a store, or fresh records of the same names.

    Args:
        n_tail: ids outside the top-k.
    """
    tail_logsumexp = columns["tail_logsumexp"].float()
    tail_logprobs = columns["tail_logprobs"].float()
    return TeacherRows(
        topk_ids=columns["topk_ids"].long(),
        topk_logprobs=columns["topk_logprobs"].float(),
        tail_logsumexp=tail_logsumexp,
        tail_ids=columns["tail_ids"].long(),
        tail_logprobs=tail_logprobs,
        tail_log_density=tail_log_density(tail_logprobs, tail_logsumexp, n_tail),
        target_logprob=columns["target_logprob"].float(),
    )
