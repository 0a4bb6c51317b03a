"""How far the student agrees with the mapped teacher at aligned positions, at T = 1.

Legend: A aligned positions, V student vocabulary, S entries of the target.
"""

from dataclasses import dataclass

from torch import Tensor

from moe_distill.losses.kd import forward_kl
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


def agreement(logits_AV: Tensor, target: SparseTarget) -> Agreement:
    """Compare fp32 logits with the teacher's distribution; its merged top-k ranks the teacher's tokens."""
    student_first = logits_AV.topk(TOP, dim=-1).indices
    order = target.logprobs.topk(min(TOP, target.logprobs.shape[1]), dim=-1)
    teacher_first = target.ids.gather(-1, order.indices).masked_fill(order.values == float("-inf"), -1)
    shared = (student_first[:, :, None] == teacher_first[:, None, :]).any(-1).sum(-1)
    return Agreement(
        positions=len(logits_AV),
        top1=float((student_first[:, 0] == teacher_first[:, 0]).sum()),
        top5=float(shared.sum()) / TOP,
        kl=float(forward_kl(logits_AV, target, 1.0).sum()),
    )
