"""One forward pass of the teacher: final states for the head, residual states for replay.

Legend: B windows, L positions, D hidden size, E experts, S captured layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_distill.shards.value_checks import is_finite
from moe_distill.teacher.architecture import Architecture


@dataclass(frozen=True)
class States:
    """fp32 states of a batch."""

    final_BLD: Tensor  # after the final norm: what the output matrix reads
    hidden_BLSD: Tensor  # residual stream at the captured layers; 0 is the embeddings
    moe_input_BLD: Tensor | None  # residual stream that enters the last MoE block
    router_logits_BLE: Tensor | None

    def finite(self) -> bool:
        tensors = (self.final_BLD, self.hidden_BLSD, self.moe_input_BLD, self.router_logits_BLE)
        return all(is_finite(tensor) for tensor in tensors if tensor is not None)


@torch.inference_mode()
def forward(
    model: PreTrainedModel, architecture: Architecture, input_ids_BL: Tensor, hidden_layers: list[int]
) -> tuple[States, bool]:
    """Run the teacher; a batch with a non-finite value is run again in fp32.

    Padding stands to the right, where causal attention keeps it from every real position, so no mask is needed.

    Returns:
        The states, and whether fp32 had to be used.
    """
    states = _run(architecture, input_ids_BL, hidden_layers)
    if states.finite() or model.dtype is torch.float32:
        return states, not states.finite()
    dtype = model.dtype
    _convert_weights(model, torch.float32)
    states = _run(architecture, input_ids_BL, hidden_layers)
    _convert_weights(model, dtype)
    return states, True


def _convert_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Parameters alone: buffers (the rotary frequencies) are fp32 as loaded, and half precision would change them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _run(architecture: Architecture, input_ids_BL: Tensor, hidden_layers: list[int]) -> States:
    with _recorder(architecture, hidden_layers) as seen:
        final_BLD = architecture.body(input_ids=input_ids_BL, use_cache=False).last_hidden_state
    shape = final_BLD.shape[:2]
    hidden = [seen[f"layer {number}"].float() for number in hidden_layers]
    router_logits = seen.get("router_logits")
    moe_input = seen.get("moe_input")
    return States(
        final_BLD=final_BLD.float(),
        hidden_BLSD=torch.stack(hidden, 2) if hidden else final_BLD.new_zeros(*shape, 0, final_BLD.shape[-1]),
        moe_input_BLD=None if moe_input is None else moe_input.float(),
        router_logits_BLE=None if router_logits is None else router_logits.float().view(*shape, -1),
    )


@contextmanager
def _recorder(architecture: Architecture, hidden_layers: list[int]) -> Iterator[dict[str, Tensor]]:
    """Record the wanted residual states, the MoE block's input and its router logits while the block runs."""
    seen: dict[str, Tensor] = {}

    def before_first(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen["layer 0"] = arguments[0]

    def after(number: int, output: Tensor | tuple[Tensor, ...]) -> None:
        seen[f"layer {number}"] = output if isinstance(output, Tensor) else output[0]

    handles = []
    for number in hidden_layers:
        if number == 0:
            handles.append(architecture.layers[0].register_forward_pre_hook(before_first))
            continue
        layer = architecture.layers[number - 1]
        handles.append(layer.register_forward_hook(lambda _m, _a, output, number=number: after(number, output)))
    if architecture.moe is not None:
        handles.append(
            architecture.moe.norm.register_forward_pre_hook(lambda _m, arguments: seen.update(moe_input=arguments[0]))
        )
        handles.append(
            architecture.moe.gate.register_forward_hook(lambda _m, _a, output: seen.update(router_logits=output[0]))
        )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
