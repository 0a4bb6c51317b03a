"""AdamW over the student and its heads, each with its own learning rate."""

import torch
from torch import Tensor, nn

from moe_distill.config.profile import Train

BETAS = (0.9, 0.95)


def make_optimizer(model: nn.Module, heads: nn.Module | None, train: Train) -> torch.optim.AdamW:
    """Groups carry `peak`, the rate that the schedule scales; only matrices decay."""
    groups = []
    for module, peak in ((model, train.learning_rate), (heads, train.router_learning_rate)):
        if module is None:
            continue
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for decays in (True, False):
            chosen = [parameter for parameter in parameters if (parameter.ndim > 1) == decays]
            if chosen:
                decay = train.weight_decay if decays else 0.0
                groups.append({"params": chosen, "peak": peak, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=BETAS, eps=1e-8, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, fraction: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * fraction


def parameter_names(model: nn.Module, heads: nn.Module | None) -> dict[Tensor, str]:
    """A unique name of every trained tensor; tied weights have one."""
    names: dict[Tensor, str] = {parameter: f"student.{name}" for name, parameter in model.named_parameters()}
    if heads is not None:
        names |= {parameter: f"heads.{name}" for name, parameter in heads.named_parameters()}
    return names
