"""What the teacher said, on disk: fp16 shards of teacher positions that any student can use (docs/formats.md).

Table `positions` has a row for each teacher position, in window order. Table `hidden` has a row for each
sampled position, in whole runs, and names its position row.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe_distill.shards.format import FieldSpec
from moe_distill.shards.reader import ShardReader

TEACHER_TARGETS = "moe-distill/teacher-targets"
TAIL_TEMPERATURES = (1.0, 4 / 3, 2.0, 3.0, 4.0)  # nodes of tail_logsumexp
TAIL_SAMPLE_TEMPERATURE = 2.0  # the tail samples are drawn from the teacher at this temperature
SCALE_MAXIMUM = 2.0**15  # a stored state's largest magnitude: neither overflow nor subnormals in fp16


def target_fields(
    k: int, tail_samples: int, hidden_layers: int, hidden_size: int, router_layers: int, num_experts: int
) -> dict[str, FieldSpec]:
    """The columns of a store of teacher targets."""
    fields = {
        "topk_ids": FieldSpec(table="positions", dtype="int32", shape=(k,)),
        "topk_logprobs": FieldSpec(table="positions", dtype="float16", shape=(k,)),
        "tail_logsumexp": FieldSpec(table="positions", dtype="float32", shape=(len(TAIL_TEMPERATURES),)),
        "tail_ids": FieldSpec(table="positions", dtype="int32", shape=(tail_samples,)),
        "tail_logprobs": FieldSpec(table="positions", dtype="float16", shape=(tail_samples,)),
        "target_logprob": FieldSpec(table="positions", dtype="float32"),
        "hidden_rows": FieldSpec(table="hidden", dtype="int64"),
        "hidden": FieldSpec(table="hidden", dtype="float16", shape=(hidden_layers, hidden_size)),
        "hidden_scales": FieldSpec(table="hidden", dtype="float32", shape=(hidden_layers,)),
    }
    if router_layers:
        fields |= {
            "moe_input": FieldSpec(table="hidden", dtype="float16", shape=(hidden_size,)),
            "moe_input_scales": FieldSpec(table="hidden", dtype="float32"),
            "router_logits": FieldSpec(table="hidden", dtype="float16", shape=(router_layers, num_experts)),
        }
    return fields


def open_targets(folder: Path) -> ShardReader:
    return ShardReader(folder, TEACHER_TARGETS)


@dataclass(frozen=True)
class TeacherRows:
    """Cached rows of N positions, upcast: log-probabilities at T = 1 in fp32, ids in int64.

    Legend: K kept logits, M tail samples, G temperature nodes.
    """

    topk_ids: Tensor  # [N, K]
    topk_logprobs: Tensor  # [N, K]
    tail_logsumexp: Tensor  # [N, G]
    tail_ids: Tensor  # [N, M]
    tail_logprobs: Tensor  # [N, M]

    def __len__(self) -> int:
        return len(self.topk_ids)


def read_rows(targets: ShardReader, rows_of_windows: list[Tensor]) -> TeacherRows:
    """The rows of windows, in order; a row number below 0 is left out.

    Args:
        rows_of_windows: int64 row numbers of each window, ascending where they are not negative; a window's rows lie
            in one file.
    """
    names = ("topk_ids", "topk_logprobs", "tail_logsumexp", "tail_ids", "tail_logprobs")
    columns: dict[str, list[Tensor]] = {name: [] for name in names}
    for rows in rows_of_windows:
        wanted = rows[rows >= 0]
        if not len(wanted):
            continue
        first, last = int(wanted[0]), int(wanted[-1])
        for name in names:
            columns[name].append(targets.slice(name, first, last + 1)[wanted - first])
    shape = {name: targets.index.fields[name].shape for name in names}
    joined = {name: torch.cat(parts) if parts else torch.zeros(0, *shape[name]) for name, parts in columns.items()}
    return TeacherRows(
        topk_ids=joined["topk_ids"].long(),
        topk_logprobs=joined["topk_logprobs"].float(),
        tail_logsumexp=joined["tail_logsumexp"].float(),
        tail_ids=joined["tail_ids"].long(),
        tail_logprobs=joined["tail_logprobs"].float(),
    )
