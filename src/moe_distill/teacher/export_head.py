"""Export the part of the teacher that replay needs: last MoE block, final norm, output matrix."""

from pathlib import Path

from transformers import PreTrainedModel

from moe_distill.replay.head import HeadDescription, write_head
from moe_distill.teacher.architecture import find_modules


def export_head(model: PreTrainedModel, teacher_fingerprint: str, folder: Path) -> None:
    """Write `models/teacher_head`, in the teacher's dtype.

    Tensors, with R rows of the output matrix, T hidden size, E experts and I expert size: final_norm [T], output
    [R, T]; of a MoE block also moe_norm [T], gate [E, T], gate_up [E, 2 * I, T] and down [E, T, I].
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
