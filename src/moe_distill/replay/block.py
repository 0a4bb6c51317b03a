"""Recompute every expert of the teacher's last MoE block, and logits after any mixture of them, from cached states.

Shapes: N positions, T hidden size of the teacher, E experts, I expert size, K ids. All results are fp32.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import ACT2FN

from moe_distill.losses.output_head import OutputHead
from moe_distill.replay.head import HeadDescription, read_head
from moe_distill.replay.router_rule import RouterRule, mixture


@dataclass(frozen=True)
class TeacherHead:
    """The last MoE block, the final norm and the output matrix; see docs/formats.md for the tensors."""

    description: HeadDescription
    tensors: dict[str, Tensor]  # empty where nothing can be replayed

    @property
    def num_experts(self) -> int:
        """Experts of the block; 0: it cannot be replayed."""
        return self.description.num_experts

    @property
    def router(self) -> RouterRule:
        """How the block's router mixes its experts."""
        assert self.description.router is not None
        return self.description.router


def load_teacher_head(folder: Path, device: torch.device) -> TeacherHead:
    """Open `models/teacher_head`; see `read_head` for the errors."""
    return TeacherHead(*read_head(folder, device))


def rms_norm(hidden_NT: Tensor, weight_T: Tensor, epsilon: float) -> Tensor:
    """Root mean square normalisation (Zhang and Sennrich 2019)."""
    return F.rms_norm(hidden_NT.float(), weight_T.shape, weight_T.float(), epsilon)


def block_input(head: TeacherHead, moe_input_NT: Tensor) -> Tensor:
    """The input of experts and gate, the normalised residual stream, [N, T]."""
    return rms_norm(moe_input_NT, head.tensors["moe_norm"], head.description.moe_norm_epsilon)


def gate_logits(head: TeacherHead, block_input_NT: Tensor) -> Tensor:
    """The teacher's own router logits, [N, E]."""
    return _linear(head, "gate", block_input_NT)


def expert_outputs(head: TeacherHead, block_input_NT: Tensor) -> Tensor:
    """The output of every expert at every position, [N, E, T]. One expert's weights are in fp32 at a time."""
    outputs = [_mlp(head, "", block_input_NT, expert) for expert in range(head.num_experts)]
    return head.description.output_scale * torch.stack(outputs, dim=1)


def shared_output(head: TeacherHead, block_input_NT: Tensor) -> Tensor:
    """What the block adds at every position whatever its router says, [N, T]; 0 where it has no shared experts."""
    if "shared_gate_up" not in head.tensors:
        return torch.zeros_like(block_input_NT)
    output_NT = _mlp(head, "shared_", block_input_NT, None)
    if "shared_gate" in head.tensors:
        output_NT = _linear(head, "shared_gate", block_input_NT).sigmoid() * output_NT
    return head.description.output_scale * output_NT


def _mlp(head: TeacherHead, prefix: str, block_input_NT: Tensor, expert: int | None) -> Tensor:
    """One expert, or all shared ones (None), which are one wide expert."""
    gate_NI, up_NI = _linear(head, f"{prefix}gate_up", block_input_NT, expert).chunk(2, dim=-1)
    description = head.description
    if description.activation_limit is None:
        inner_NI: Tensor = ACT2FN[description.activation](gate_NI) * up_NI
    else:  # gpt-oss: both halves are clamped, and the linear half is shifted by 1
        limit = description.activation_limit
        gate_NI, up_NI = gate_NI.clamp(max=limit), up_NI.clamp(-limit, limit)
        inner_NI = (up_NI + 1.0) * gate_NI * (gate_NI * description.activation_slope).sigmoid()
    return _linear(head, f"{prefix}down", inner_NI, expert)


def _linear(head: TeacherHead, name: str, values: Tensor, expert: int | None = None) -> Tensor:
    weight, bias = head.tensors[name], head.tensors.get(f"{name}_bias")
    if expert is not None:
        weight, bias = weight[expert], None if bias is None else bias[expert]
    return F.linear(values, weight.float(), None if bias is None else bias.float())


def teacher_mixture(head: TeacherHead, gate_logits_NE: Tensor) -> Tensor:
    """The teacher's own mixture, the weight of each expert, [N, E]."""
    return mixture(head.router, gate_logits_NE, selection_bias(head), 1.0, head.router.experts_per_token)


def selection_bias(head: TeacherHead) -> Tensor | None:
    """What is added to the router's scores when experts are chosen, [E]."""
    return head.tensors.get("selection_bias")


def routed_hidden(unrouted_NT: Tensor, expert_outputs_NET: Tensor, mixture_NE: Tensor) -> Tensor:
    """What the block makes of any mixture of the experts, [N, T].

    Args:
        unrouted_NT: what they are added to: the stream that enters the block, and what shared experts give.
    """
    return unrouted_NT + torch.einsum("ne,net->nt", mixture_NE, expert_outputs_NET)


def replayed_residual(head: TeacherHead, moe_input_NT: Tensor) -> Tensor:
    """The residual stream after the block as the teacher itself routes, [N, T]."""
    read_NT = block_input(head, moe_input_NT)
    unrouted_NT = moe_input_NT + shared_output(head, read_NT)
    mixture_NE = teacher_mixture(head, gate_logits(head, read_NT))
    return routed_hidden(unrouted_NT, expert_outputs(head, read_NT), mixture_NE)


def block_output(head: TeacherHead, moe_input_NT: Tensor) -> Tensor:
    """What the block adds to the residual stream as the teacher itself routes, [N, T]."""
    read_NT = block_input(head, moe_input_NT)
    mixture_NE = teacher_mixture(head, gate_logits(head, read_NT))
    return routed_hidden(shared_output(head, read_NT), expert_outputs(head, read_NT), mixture_NE)


def final_hidden(head: TeacherHead, residual_NT: Tensor) -> Tensor:
    """The input of the output matrix, [N, T]."""
    return rms_norm(residual_NT, head.tensors["final_norm"], head.description.final_norm_epsilon)


def output_head(head: TeacherHead) -> OutputHead:
    """What makes the teacher's logits of its final states."""
    description, tensors = head.description, head.tensors
    return OutputHead(tensors["output"], tensors.get("output_bias"), description.logit_scale, description.logit_softcap)


def replayed_logits(head: TeacherHead, residual_NT: Tensor, ids_NK: Tensor) -> Tensor:
    """Logits for K ids of each position's own, [N, K]."""
    return output_head(head).logits_of(final_hidden(head, residual_NT), ids_NK)
