"""The student, and beside it what only training needs: projections to the teacher's width and the router.

None of the heads reaches the exported student.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_distill.batches.batch import HiddenRuns
from moe_distill.losses.hidden import paired_layer
from moe_distill.models.decoder import Decoder, recorded_states


class Heads(nn.Module):
    """Linear maps from student states to the teacher's width, and the router's correction.

    Args:
        pairs: student layer of each captured teacher layer.
        num_experts: 0 where the teacher's last block is dense.
    """

    def __init__(self, pairs: list[int], student_size: int, teacher_size: int, num_experts: int) -> None:
        super().__init__()
        self.pairs = pairs
        self.projections = nn.ModuleList(nn.Linear(student_size, teacher_size, bias=False) for _ in pairs)
        self.routed_projection = nn.Linear(student_size, teacher_size, bias=False)
        self.gate_weight = nn.Parameter(torch.zeros(num_experts, student_size))  # 0: the teacher's own gate
        self.gate_bias = nn.Parameter(torch.zeros(num_experts))

    def gate_correction(self, student_ND: Tensor) -> Tensor:
        """What the student's states add to the teacher's gate logits, [N, E]."""
        return F.linear(student_ND, self.gate_weight, self.gate_bias)


@dataclass(frozen=True)
class StudentStates:
    """Hidden states of a batch: what the head reads, and those of the layers that were asked for (0 = embeddings).

    The last layer's are after the final norm; the teacher's captured ones before its own.
    """

    final_BLD: Tensor
    layers: dict[int, Tensor]


def run_student(decoder: Decoder, input_ids_BL: Tensor, layers: Sequence[int]) -> StudentStates:
    """The student's forward pass up to, not including, its output matrix."""
    with recorded_states(decoder, [number for number in layers if number < len(decoder.layers)]) as states:
        final_BLD = decoder.body(input_ids=input_ids_BL, use_cache=False).last_hidden_state
    return StudentStates(final_BLD, states | {len(decoder.layers): final_BLD})


def gather_runs(states_BLD: Tensor, runs: HiddenRuns) -> Tensor:
    """The student's states at the runs' positions, fp32 [W, P, D]; padding repeats position 0."""
    picked = states_BLD.flatten(0, 1).index_select(0, runs.places_WP.flatten())
    return picked.view(*runs.places_WP.shape, -1).float()


def layer_pairs(teacher_layers: list[int], teacher_depth: int, student_depth: int) -> list[int]:
    """The student layer at the relative depth of each captured teacher layer."""
    return [paired_layer(layer, teacher_depth, student_depth) for layer in teacher_layers]


def make_heads(pairs: list[int], student_size: int, teacher_size: int, num_experts: int, seed: int) -> Heads:
    """Heads with seeded weights, whatever was drawn from the global generator before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Heads(pairs, student_size, teacher_size, num_experts)
