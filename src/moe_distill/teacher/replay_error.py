"""How far logits after the replayed block are from the teacher's own."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.replay.block import (
    TeacherHead,
    block_input,
    final_hidden,
    gate_logits,
    output_head,
    replayed_residual,
)
from moe_distill.teacher.architecture import Architecture
from moe_distill.teacher.forward import forward

ABSOLUTE, RELATIVE = 1e-2, 2.0**-10  # nats, and a share of the log-probability: what fp16 shards can hold


@torch.inference_mode()
def replay_error(model: PreTrainedModel, architecture: Architecture, input_ids_BL: Tensor) -> tuple[float, float]:
    """Replay some windows in fp32, and compare with the teacher's own forward pass.

    Returns:
        The largest difference of a log-probability, divided by what is allowed of it (at most 1 is right), and of a
        router logit from the one that the running gate gave.
    """
    assert not isinstance(architecture.moe, str)
    moe, (states, _) = architecture.moe, forward(model, architecture, input_ids_BL, [])
    assert states.moe_input_BLT is not None
    assert states.router_logits_BLE is not None
    moe_input_NT = states.moe_input_BLT.flatten(0, 1)
    head = TeacherHead(
        moe.head.description, {name: each.to(moe_input_NT.device) for name, each in moe.head.tensors.items()}
    )
    truth_NV = model(input_ids=input_ids_BL, use_cache=False).logits.flatten(0, 1).float().log_softmax(-1)
    final_NT = final_hidden(head, replayed_residual(head, moe_input_NT))
    found_NV = output_head(head).to_dtype(torch.float32).logits(final_NT).log_softmax(-1)
    excess = ((found_NV - truth_NV).abs() / (ABSOLUTE + RELATIVE * truth_NV.abs())).max()
    gate_NE = gate_logits(head, block_input(head, moe_input_NT))
    return float(excess), float((gate_NE - states.router_logits_BLE.flatten(0, 1)).abs().max())
