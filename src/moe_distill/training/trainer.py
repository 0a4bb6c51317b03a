"""What changes while training: modules, optimizer, scaler and counters, and how they are saved and restored."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_distill.config.profile import Train
from moe_distill.shards.checkpoint import KEPT, Checkpoint, optimizer_tensors, restore_optimizer
from moe_distill.training.early_stopping import EarlyStoppingState
from moe_distill.training.objective import Student
from moe_distill.training.optimizer import make_optimizer, parameter_names
from moe_distill.utils.device import Runtime

SCALER_STATE = ("scale", "_growth_tracker")  # of a gradient scaler: what changes


class Counters(BaseModel):
    """The part of a checkpoint that is not tensors."""

    model_config = ConfigDict(extra="forbid")

    watch: EarlyStoppingState = EarlyStoppingState()
    scales: dict[str, float] = {}  # factors of adaptive balancing
    kd_weight: float | None = None  # that the teacher has earned; None: not measured yet, or not asked
    skipped_steps: int = 0
    consecutive_nonfinite: int = 0
    tokens: int = 0
    seconds: float = 0.0
    scaler: dict[str, int | float] = {}  # counts must stay whole numbers


@dataclass
class Trainer:
    """Mutable state of a phase."""

    student: Student
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    step: int  # optimizer steps done, of both phases
    counters: Counters = field(default_factory=Counters)
    best: dict[str, Tensor] = field(default_factory=dict)  # student weights at the watch's best, on the CPU

    @property
    def names(self) -> dict[Tensor, str]:
        return parameter_names(self.student.model, self.student.heads)


def make_trainer(student: Student, train: Train, runtime: Runtime, first_step: int) -> Trainer:
    """A trainer at the beginning of a phase."""
    optimizer = make_optimizer(student.model, student.heads, train)
    scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.scales_loss)
    return Trainer(student, optimizer, scaler, first_step)


def student_weights(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of the student's weights on the CPU, tied ones once."""
    return {name: weight.detach().cpu().clone() for name, weight in trainer.student.model.named_parameters()}


def load_student_weights(trainer: Trainer, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in trainer.student.model.named_parameters():
            weight.copy_(weights[name])


def to_checkpoint(trainer: Trainer) -> Checkpoint:
    """All that a resumed run needs to go on as if nothing had happened."""
    names = trainer.names
    tensors = {f"weight:{name}": parameter.detach() for parameter, name in names.items()}
    tensors |= optimizer_tensors(trainer.optimizer, names)
    tensors |= {f"best:{name}": weight for name, weight in trainer.best.items()}
    counters = trainer.counters.model_copy(update={"scaler": trainer.scaler.state_dict()})
    return Checkpoint(
        step=trainer.step,
        tensors={name: tensor.cpu() for name, tensor in tensors.items()},
        state=counters.model_dump(mode="json"),
    )


def work_bytes(trainer: Trainer) -> int:
    """`phase_bytes` of this phase."""
    trained = sum(parameter.numel() * parameter.element_size() for parameter in trainer.names)
    student = sum(weight.numel() * weight.element_size() for weight in trainer.student.model.parameters())
    return phase_bytes(trained, student)


def phase_bytes(trained: int, student: int) -> int:
    """The most bytes that a phase has in its work folder at once: its checkpoints, one being written, the export.

    A checkpoint holds every weight and its two moments; beside them the student's best weights, once there are any.

    Args:
        trained: bytes of all trained weights, the heads' among them.
        student: bytes of the student's.
    """
    return (KEPT + 1) * (3 * trained + student) + student


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint of the same phase back."""
    names = trainer.names
    with torch.no_grad():
        for parameter, name in names.items():
            parameter.copy_(checkpoint.tensors[f"weight:{name}"])
    restore_optimizer(trainer.optimizer, names, checkpoint.tensors)
    best = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("best:")}
    trainer.best = {name.removeprefix("best:"): tensor for name, tensor in best.items()}
    trainer.counters = Counters.model_validate(checkpoint.state)
    if trainer.counters.scaler:
        trainer.scaler.load_state_dict(trainer.counters.scaler)
    trainer.step = checkpoint.step


def save_for_next_phase(trainer: Trainer, path: Path) -> None:
    """Write what the next phase goes on with, beside the weights: the student's moments, and the loss scale in fp16."""
    names = {parameter: name for parameter, name in trainer.names.items() if name.startswith("student.")}
    scaler = trainer.scaler.state_dict()  # empty without one
    state = {f"scaler:{name}": torch.tensor(scaler[name]) for name in SCALER_STATE if scaler}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(optimizer_tensors(trainer.optimizer, names) | state, path)


def take_over(trainer: Trainer, path: Path) -> None:
    """Go on from what the phase before has written; heads that it had not start afresh."""
    tensors = load_file(path)
    restore_optimizer(trainer.optimizer, trainer.names, tensors)
    state = {name: tensors[f"scaler:{name}"].item() for name in SCALER_STATE if f"scaler:{name}" in tensors}
    if state and trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(trainer.scaler.state_dict() | state)
