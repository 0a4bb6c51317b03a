"""Recompute every expert of the teacher's last MoE block, and logits after any mixture of them, from cached states.

Shapes: N positions, T hidden size of the teacher, E experts, I expert size, K ids. All results are fp32.
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
    """The last MoE block, the final norm and the output matrix; see docs/formats.md for the tensors."""

    description: HeadDescription
    tensors: dict[str, Tensor]

    @property
    def num_experts(self) -> int:
        """Experts of the block; 0: the last layer is dense."""
        return self.description.num_experts

    @property
    def hidden_size(self) -> int:
        """T."""
        return int(self.tensors["final_norm"].shape[0])


def load_teacher_head(folder: Path, device: torch.device) -> TeacherHead:
    """Open `models/teacher_head`; see `read_head` for the errors."""
    return TeacherHead(*read_head(folder, device))


def rms_norm(hidden_NT: Tensor, weight_T: Tensor, epsilon: float) -> Tensor:
    """Root mean square normalisation (Zhang and Sennrich 2019)."""
    return F.rms_norm(hidden_NT.float(), weight_T.shape, weight_T.float(), epsilon)


def block_input(head: TeacherHead, moe_input_NT: Tensor) -> Tensor:
    """The input of experts and gate, the normalised residual stream, [N, T]."""
    return rms_norm(moe_input_NT, head.tensors["moe_norm"], head.description.norm_epsilon)


def gate_logits(head: TeacherHead, block_input_NT: Tensor) -> Tensor:
    """The teacher's own router logits, [N, E]."""
    return block_input_NT @ head.tensors["gate"].float().T


def expert_outputs(head: TeacherHead, block_input_NT: Tensor) -> Tensor:
    """The output of every expert at every position, [N, E, T]. One expert's weights are in fp32 at a time."""
    return torch.stack([_expert_output(head, expert, block_input_NT) for expert in range(head.num_experts)], dim=1)


def _expert_output(head: TeacherHead, expert: int, block_input_NT: Tensor) -> Tensor:
    gate_NI, up_NI = (block_input_NT @ head.tensors["gate_up"][expert].float().T).chunk(2, dim=-1)
    inner_NI: Tensor = ACT2FN[head.description.activation](gate_NI) * up_NI
    return inner_NI @ head.tensors["down"][expert].float().T


def teacher_mixture(head: TeacherHead, gate_logits_NE: Tensor) -> Tensor:
    """The teacher's own mixture, the weight of each expert, [N, E]."""
    return mixture(gate_logits_NE, 1.0, head.description.experts_per_token, head.description.normalizes_topk)


def routed_hidden(moe_input_NT: Tensor, expert_outputs_NET: Tensor, mixture_NE: Tensor) -> Tensor:
    """The residual stream after the block for any mixture of the experts, [N, T]."""
    return moe_input_NT + torch.einsum("ne,net->nt", mixture_NE, expert_outputs_NET)


def final_hidden(head: TeacherHead, residual_NT: Tensor) -> Tensor:
    """The input of the output matrix, [N, T]."""
    return rms_norm(residual_NT, head.tensors["final_norm"], head.description.norm_epsilon)


def replayed_logits(head: TeacherHead, residual_NT: Tensor, ids_NK: Tensor) -> Tensor:
    """Logits for K ids of each position's own, [N, K]; no other row of the output matrix is read."""
    rows_NKT = F.embedding(ids_NK, head.tensors["output"]).float()
    return torch.einsum("nt,nkt->nk", final_hidden(head, residual_NT), rows_NKT)
