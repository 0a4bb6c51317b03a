"""Ask every expert of the teacher's last block from cached states, without the teacher.

Legend: N positions, D hidden size, E experts, I expert size, V rows of the output matrix.
All results are fp32.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import ACT2FN

from moe_distill.replay.head import HeadDescription, read_head


@dataclass(frozen=True)
class TeacherHead:
    """The last MoE block, the final norm and the output matrix."""

    description: HeadDescription
    tensors: dict[str, Tensor]

    @property
    def num_experts(self) -> int:
        return self.description.num_experts

    @property
    def hidden_size(self) -> int:
        return int(self.tensors["final_norm"].shape[0])


def load_teacher_head(folder: Path, device: torch.device) -> TeacherHead:
    """Open `models/teacher_head`; see `read_head` for what is refused."""
    return TeacherHead(*read_head(folder, device))


def rms_norm(hidden_ND: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """Root mean square normalisation (Zhang and Sennrich 2019)."""
    return F.rms_norm(hidden_ND.float(), weight_D.shape, weight_D.float(), epsilon)


def block_input(head: TeacherHead, moe_input_ND: Tensor) -> Tensor:
    """What the experts and the gate read: the normalised residual stream, [N, D]."""
    return rms_norm(moe_input_ND, head.tensors["moe_norm"], head.description.norm_epsilon)


def gate_logits(head: TeacherHead, block_input_ND: Tensor) -> Tensor:
    """The teacher's own router logits, [N, E]."""
    return block_input_ND @ head.tensors["gate"].float().T


def expert_outputs(head: TeacherHead, block_input_ND: Tensor) -> Tensor:
    """The output of every expert at every position, [N, E, D]."""
    gate_up_NEI = torch.einsum("nd,eid->nei", block_input_ND, head.tensors["gate_up"].float())
    gate_NEI, up_NEI = gate_up_NEI.chunk(2, dim=-1)
    inner_NEI = ACT2FN[head.description.activation](gate_NEI) * up_NEI
    return torch.einsum("nei,edi->ned", inner_NEI, head.tensors["down"].float())


def teacher_mixture(head: TeacherHead, gate_logits_NE: Tensor) -> Tensor:
    """The teacher's own weights of its experts, [N, E]: top-k of the softmax, normalised where it does so."""
    probs_NE = gate_logits_NE.float().softmax(-1)
    top, chosen = probs_NE.topk(head.description.experts_per_token, dim=-1)
    if head.description.normalizes_topk:
        top = top / top.sum(-1, keepdim=True)
    return torch.zeros_like(probs_NE).scatter(1, chosen, top)


def routed_hidden(moe_input_ND: Tensor, expert_outputs_NED: Tensor, mixture_NE: Tensor) -> Tensor:
    """The residual stream after the block under any mixture of the experts, [N, D]."""
    return moe_input_ND + torch.einsum("ne,ned->nd", mixture_NE, expert_outputs_NED)


def final_hidden(head: TeacherHead, residual_ND: Tensor) -> Tensor:
    """The state that the output matrix reads, [N, D]."""
    return rms_norm(residual_ND, head.tensors["final_norm"], head.description.norm_epsilon)


def replayed_logits(head: TeacherHead, residual_ND: Tensor, ids: Tensor | None = None) -> Tensor:
    """Logits after the block, [N, V], or of the given ids alone, [N, len(ids)]: only their rows are read."""
    output = head.tensors["output"] if ids is None else head.tensors["output"][ids]
    return final_hidden(head, residual_ND) @ output.float().T
