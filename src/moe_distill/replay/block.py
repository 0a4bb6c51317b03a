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

from moe_distill.losses.router import mixture
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
    """The output of every expert at every position, [N, E, D]; one expert's weights are fp32 at a time."""
    return torch.stack([_expert_output(head, expert, block_input_ND) for expert in range(head.num_experts)], dim=1)


def _expert_output(head: TeacherHead, expert: int, block_input_ND: Tensor) -> Tensor:
    gate_NI, up_NI = (block_input_ND @ head.tensors["gate_up"][expert].float().T).chunk(2, dim=-1)
    inner_NI: Tensor = ACT2FN[head.description.activation](gate_NI) * up_NI
    return inner_NI @ head.tensors["down"][expert].float().T


def teacher_mixture(head: TeacherHead, gate_logits_NE: Tensor) -> Tensor:
    """The teacher's own weights of its experts, [N, E]."""
    return mixture(gate_logits_NE, 1.0, head.description.experts_per_token, head.description.normalizes_topk)


def routed_hidden(moe_input_ND: Tensor, expert_outputs_NED: Tensor, mixture_NE: Tensor) -> Tensor:
    """The residual stream after the block under any mixture of the experts, [N, D]."""
    return moe_input_ND + torch.einsum("ne,ned->nd", mixture_NE, expert_outputs_NED)


def final_hidden(head: TeacherHead, residual_ND: Tensor) -> Tensor:
    """The state that the output matrix reads, [N, D]."""
    return rms_norm(residual_ND, head.tensors["final_norm"], head.description.norm_epsilon)


def replayed_logits(head: TeacherHead, residual_ND: Tensor, ids_NK: Tensor) -> Tensor:
    """Logits after the block of each position's own ids, [N, K]; no other row of the output matrix is read."""
    rows_NKD = F.embedding(ids_NK, head.tensors["output"]).float()
    return torch.einsum("nd,nkd->nk", final_hidden(head, residual_ND), rows_NKD)
