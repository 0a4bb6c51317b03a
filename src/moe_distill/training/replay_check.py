"""Whether the replayed block is the one that the teacher ran, by what is cached of both its input and its output."""

import torch

from moe_distill.batches.hidden_runs import read_states
from moe_distill.replay.block import TeacherHead, block_input, gate_logits, replayed_logits, replayed_residual
from moe_distill.shards.reader import ShardReader
from moe_distill.targets.teacher_rows import read_rows

POSITIONS = 64
MAX_MEDIAN_ERROR = 0.05  # nats, and units of router logits; fp16 states move either by thousandths


def replay_fault(shards: ShardReader, head: TeacherHead) -> str | None:
    """Why the router cannot be trained on this replay; None where replay and cache agree.

    Compares router logits and the kept ids' log-probabilities at the first positions with states: both are cached as
    the running teacher gave them, and both follow from the cached residual stream if the block is of a known kind.
    """
    file = next(number for number in range(len(shards.index.files)) if len(shards.column("hidden_rows", number)))
    chosen = torch.arange(min(POSITIONS, len(shards.column("hidden_rows", file))))
    moe_input_NT, stored_NE = (read_states(shards, name, file, chosen) for name in ("moe_input", "router_logits"))
    rows = read_rows(shards, shards.column("hidden_rows", file)[chosen])
    with torch.inference_mode():
        router_logits_NE = gate_logits(head, block_input(head, moe_input_NT))
        residual_NT = replayed_residual(head, moe_input_NT)
        # the kept ids' share of the whole is known from the cache; their relations are what replay must give
        replayed_NK = replayed_logits(head, residual_NT, rows.topk_ids).log_softmax(-1)
        cached_NK = rows.topk_logprobs.log_softmax(-1)
    errors = {
        "router logits": float((router_logits_NE - stored_NE).abs().median()),
        "log-probabilities": float((replayed_NK - cached_NK).abs().median()),
    }
    wrong = [f"{name} by {error:.2g}" for name, error in errors.items() if not error <= MAX_MEDIAN_ERROR]
    return f"replayed {' and '.join(wrong)} off the cached ones (median)" if wrong else None
