"""Hand on the part of the teacher that replay needs: last MoE block, final norm, output matrix."""

from pathlib import Path

from transformers import PreTrainedModel

from moe_distill.replay.head import HeadDescription, write_head
from moe_distill.teacher.architecture import find_modules


def export_head(model: PreTrainedModel, teacher_fingerprint: str, folder: Path) -> None:
    """Write `models/teacher_head`, in the teacher's dtype.

    Tensors: final_norm [d], output [rows, d]; of a MoE block also moe_norm [d], gate [experts, d],
    gate_up [experts, 2 * expert size, d] and down [experts, d, expert size].
    """
    architecture = find_modules(model)
    tensors = {"final_norm": architecture.final_norm, "output": architecture.output}
    moe = architecture.moe
    if moe is not None:
        tensors |= {"moe_norm": moe.norm_weight, "gate": moe.gate_weight, "gate_up": moe.gate_up, "down": moe.down}
    description = HeadDescription(
        teacher_fingerprint=teacher_fingerprint,
        num_experts=0 if moe is None else moe.gate_weight.shape[0],
        experts_per_token=0 if moe is None else moe.experts_per_token,
        normalizes_topk=moe is not None and moe.normalizes_topk,
        activation="silu" if moe is None else moe.activation,
        norm_epsilon=architecture.norm_epsilon,
        weights_sha256="",
    )
    write_head(folder, tensors, description)
