"""What the teacher said, on disk: fp16 shards of teacher positions that any student can use (docs/formats.md).

Table `positions` has a row for each teacher position, in window order. Table `hidden` has a row for each
sampled position, in whole runs, and names its position row.
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from moe_distill.shards.format import FieldSpec
from moe_distill.shards.reader import ShardReader

TEACHER_TARGETS = "moe-distill/teacher-targets"
TAIL_TEMPERATURES = (1.0, 4 / 3, 2.0, 3.0, 4.0)  # nodes of tail_logsumexp
TAIL_SAMPLE_TEMPERATURE = 2.0  # half of the density the tail samples are drawn from: the teacher at this temperature
TAIL_UNIFORM_SHARE = 0.5  # the other half: uniform over the tail, so that no weight explodes
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
    """Open a store of teacher targets; a file that names an id or a row that does not exist is refused."""
    targets = ShardReader(folder, TEACHER_TARGETS)
    ids = range(int(str(targets.index.metadata["output_rows"])))
    targets.expect("topk_ids", ids)
    targets.expect("tail_ids", ids)
    targets.expect("hidden_rows", range(targets.rows("positions")))
    return targets


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
    tail_log_density: Tensor  # [N, M]: log of the density that the samples were drawn from
    target_logprob: Tensor  # [N]: of the token that follows in the text

    def __len__(self) -> int:
        return len(self.topk_ids)

    def take(self, rows: Tensor | slice) -> "TeacherRows":
        """Some of the rows."""
        return TeacherRows(*(getattr(self, field.name)[rows] for field in fields(self)))


def read_rows(targets: ShardReader, rows_of_windows: list[Tensor]) -> TeacherRows:
    """The rows of windows, in order; a row number below 0 is left out.

    Args:
        rows_of_windows: int64 row numbers of each window, ascending where they are not negative; a window's rows lie
            in one file.
    """
    names = ("topk_ids", "topk_logprobs", "tail_logsumexp", "tail_ids", "tail_logprobs", "target_logprob")
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
    n_tail = int(str(targets.index.metadata["output_rows"])) - shape["topk_ids"][0]
    return teacher_rows(joined, n_tail)


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


def tail_log_density(tail_logprobs: Tensor, tail_logsumexp: Tensor, n_tail: int) -> Tensor:
    """Log of the density tail samples are drawn from: the tempered tail and the uniform distribution, mixed.

    Args:
        tail_logprobs: at T = 1, of any ids of the tail, [N, M].
        tail_logsumexp: [N, G].
        n_tail: ids outside the top-k.
    """
    node = TAIL_TEMPERATURES.index(TAIL_SAMPLE_TEMPERATURE)
    tempered = tail_logprobs / TAIL_SAMPLE_TEMPERATURE - tail_logsumexp[:, node, None]
    uniform = torch.full_like(tempered, math.log(TAIL_UNIFORM_SHARE / n_tail))
    return torch.logaddexp(tempered + math.log(1.0 - TAIL_UNIFORM_SHARE), uniform)
