"""The weights of routers and experts, in the layout of models/teacher_head (docs/formats.md).

Shapes: T hidden size, E experts, I expert size; matrices are [outputs, inputs].
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN


class UnknownBlockError(Exception):
    """A block that replay has no form for; says what about it."""


@dataclass(frozen=True)
class Activation:
    """What stands between an expert's two maps."""

    name: str  # in transformers
    limit: float | None = None  # see `HeadDescription`
    slope: float = 1.0


def linear_map(name: str, module: nn.Module, inputs: int) -> dict[str, Tensor]:
    """The one matrix of a module that maps T inputs, as `name`, and its bias as `<name>_bias`."""
    parameters = dict(module.named_parameters())
    matrices = [weight for weight in parameters.values() if weight.ndim == 2 and weight.shape[1] == inputs]
    if len(matrices) != 1:
        raise UnknownBlockError("its router is not one linear map")
    biases = [each for key, each in parameters.items() if key.split(".")[-1] == "bias"]
    return {name: matrices[0].detach()} | {f"{name}_bias": each.detach() for each in biases[:1]}


def expert_tensors(experts: nn.Module) -> tuple[dict[str, Tensor], Activation]:
    """`gate_up` [E, 2 I, T] (gate rows, then up rows), `down` [E, T, I], and their biases if there are any."""
    gate_up, down = getattr(experts, "gate_up_proj", None), getattr(experts, "down_proj", None)
    if not isinstance(gate_up, Tensor) or not isinstance(down, Tensor):
        raise UnknownBlockError("its experts are not stored as `gate_up_proj` and `down_proj`")
    gate_up, down = gate_up.detach(), down.detach()
    if getattr(experts, "is_transposed", False):
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    tensors = {"gate_up": gate_up, "down": down}
    for name in ("gate_up", "down"):
        if isinstance(bias := getattr(experts, f"{name}_proj_bias", None), Tensor):
            tensors[f"{name}_bias"] = bias.detach()
    if not getattr(experts, "is_concatenated", True):
        for name in {"gate_up", "gate_up_bias"} & tensors.keys():
            tensors[name] = torch.cat([tensors[name][:, 0::2], tensors[name][:, 1::2]], dim=1)
    limit, slope = getattr(experts, "limit", None), getattr(experts, "alpha", None)
    if limit is not None and slope is not None:
        return tensors, Activation("silu", float(limit), float(slope))
    return tensors, Activation(_activation_name(experts))


def _activation_name(module: nn.Module) -> str:
    """The name under which transformers has a module's activation."""
    own = getattr(module, "act_fn", None) or getattr(module, "activation_fn", None)
    probe = torch.linspace(-3.0, 3.0, 31)
    for name in ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"):
        if own is not None and torch.equal(own(probe), ACT2FN[name](probe)):
            return name
    raise UnknownBlockError("the activation of its experts is unknown")


def shared_tensors(block: nn.Module, known: set[str]) -> dict[str, Tensor]:
    """`shared_gate_up`, `shared_down` and `shared_gate` of experts that every position asks; empty without any.

    Args:
        known: children of the block that are router and routed experts.
    """
    tensors: dict[str, Tensor] = {}
    for name, child in block.named_children():
        if name in known or not list(child.parameters()):
            continue
        if all(isinstance(getattr(child, part, None), nn.Linear) for part in ("gate_proj", "up_proj", "down_proj")):
            gate, up, down = (child.get_submodule(part) for part in ("gate_proj", "up_proj", "down_proj"))
            tensors["shared_gate_up"] = torch.cat([gate.get_parameter("weight"), up.get_parameter("weight")]).detach()
            tensors["shared_down"] = down.get_parameter("weight").detach()
        elif isinstance(child, nn.Linear) and child.out_features == 1:
            tensors["shared_gate"] = child.weight.detach()
        else:
            raise UnknownBlockError(f"what its part `{name}` does is unknown")
    return tensors
