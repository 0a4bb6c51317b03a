"""One forward pass of the teacher: final states for the output matrix, residual states for replay.

Shapes: B windows of a batch, L positions of a window, T hidden size, E experts, S captured layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_distill.models.decoder import first_tensor, recorded_states
from moe_distill.models.moe_block import MoeBlock
from moe_distill.shards.value_checks import is_finite
from moe_distill.teacher.architecture import Architecture


@dataclass(frozen=True)
class States:
    """States of a batch, in fp32."""

    final_BLT: Tensor  # after the final norm: the input of the output matrix
    hidden_BLST: Tensor  # residual stream after the captured layers; layer 0 stands for the embeddings
    moe_input_BLT: Tensor | None  # residual stream that enters the last MoE block; None: the last layer has none
    router_logits_BLE: Tensor | None  # of that block

    @cached_property
    def finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        tensors = (self.final_BLT, self.hidden_BLST, self.moe_input_BLT, self.router_logits_BLE)
        return all(is_finite(tensor) for tensor in tensors if tensor is not None)


@torch.inference_mode()
def forward(
    model: PreTrainedModel, architecture: Architecture, input_ids_BL: Tensor, hidden_layers: list[int]
) -> tuple[States, bool]:
    """Run the teacher; where a state is not finite, run the batch again in fp32.

    No mask is given: padding stands to the right, and causal attention keeps other positions from reading it.

    Args:
        input_ids_BL: prefix token, then all tokens but the last, padded to the right.
        hidden_layers: layers whose residual states are returned; 0 stands for the embeddings.

    Returns:
        The states, which may not be finite in fp32 either, and whether fp32 had to be used.
    """
    states = _run(architecture, input_ids_BL, hidden_layers)
    if states.finite or model.dtype is torch.float32:
        return states, not states.finite
    dtype = model.dtype
    _convert_weights(model, torch.float32)
    states = _run(architecture, input_ids_BL, hidden_layers)
    _convert_weights(model, dtype)
    return states, True


def _convert_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the parameters, but no buffers: rotary frequencies are loaded in fp32, and fp16 would change them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _run(architecture: Architecture, input_ids_BL: Tensor, hidden_layers: list[int]) -> States:
    decoder = architecture.decoder
    with recorded_states(decoder, hidden_layers) as residual, _moe_states(architecture.moe) as moe:
        final_BLT = decoder.body(input_ids=input_ids_BL, use_cache=False).last_hidden_state
    shape = final_BLT.shape[:2]
    hidden = [residual[number].float() for number in hidden_layers]
    router_logits, moe_input = moe.get("router_logits"), moe.get("moe_input")
    return States(
        final_BLT=final_BLT.float(),
        hidden_BLST=torch.stack(hidden, 2) if hidden else final_BLT.new_zeros(*shape, 0, final_BLT.shape[-1]),
        moe_input_BLT=None if moe_input is None else moe_input.float(),
        router_logits_BLE=None if router_logits is None else router_logits.float().view(*shape, -1),
    )


@contextmanager
def _moe_states(moe: MoeBlock | str) -> Iterator[dict[str, Tensor]]:
    """Record `moe_input` and `router_logits` of a block that can be replayed."""
    seen: dict[str, Tensor] = {}

    def entering(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen["moe_input"] = arguments[0]

    def routed(_module: nn.Module, _arguments: object, output: object) -> None:
        logits = first_tensor(output)
        assert logits is not None
        seen["router_logits"] = logits

    handles = []
    if not isinstance(moe, str):
        handles += [moe.norm.register_forward_pre_hook(entering), moe.gate.register_forward_hook(routed)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
