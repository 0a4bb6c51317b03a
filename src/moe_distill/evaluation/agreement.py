"""How far the student agrees with the mapped teacher at aligned positions, at T = 1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_distill.targets.sparse_rows import padded
from moe_distill.targets.sparse_target import SparseTarget

TOP = 5


@dataclass(frozen=True)
class Agreement:
    """Sums over positions."""

    positions: int
    top1: float  # both put the same token first
    top5: float  # shared tokens of the two first fives, over five
    kl: float  # KL(teacher || student) with everything outside the top-k in one bucket, nats

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.positions + other.positions, self.top1 + other.top1, self.top5 + other.top5, self.kl + other.kl
        )


NO_AGREEMENT = Agreement(0, 0.0, 0.0, 0.0)


def likeliest_ids(target: SparseTarget) -> Tensor:
    """The teacher's first tokens at each position, the likeliest first, int64 [N, at most TOP]; -1: no further one."""
    positions, n_positions = target.entry_positions_Z.long(), len(target)
    probs_NU = padded(positions, target.entry_probs_Z, n_positions, -1.0)
    ids_NU = padded(positions, target.entry_ids_Z.long(), n_positions, -1)
    first = probs_NU.topk(min(TOP, probs_NU.shape[1]), dim=-1).indices
    return ids_NU.gather(-1, first)


def ranking_agreement(logits_AV: Tensor, teacher_ids_AX: Tensor) -> Agreement:
    """Compare the rankings of fp32 logits and of the teacher (`likeliest_ids`); the KL is left at 0."""
    student_ids_AX = logits_AV.topk(TOP, dim=-1).indices
    shared_A = (student_ids_AX[:, :, None] == teacher_ids_AX[:, None, :]).any(-1).sum(-1)
    is_same_A = student_ids_AX[:, 0] == teacher_ids_AX[:, 0]
    top1, top5 = torch.stack([is_same_A.sum(), shared_A.sum()]).tolist()
    return Agreement(positions=len(logits_AV), top1=float(top1), top5=top5 / TOP, kl=0.0)
