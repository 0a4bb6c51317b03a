"""What the teacher said, on disk: fp16 shards of teacher positions that any student can use (docs/formats.md).

Table `positions` has a row for each teacher position, in window order. Table `hidden` has a row for each
sampled position, in whole runs, and names its position row.
"""

import math
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
