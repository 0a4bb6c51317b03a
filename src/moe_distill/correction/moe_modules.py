"""Find the experts and the routers of a transformers model by what they are made of, whatever the family calls them."""

import math
from dataclasses import dataclass

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # their weights have three dimensions or more too


@dataclass(frozen=True)
class MoeModules:
    """Names of modules in a model; all are empty where it is dense."""

    experts: dict[str, int]  # a module that holds the experts of a layer -> how many
    fused: tuple[str, ...]  # of these, the parameters with all experts in one tensor
    routers: tuple[str, ...]  # modules with a matrix of one row an expert, and gates of shared experts


def find_moe_modules(model: nn.Module) -> MoeModules:
    """Look through all modules.

    Experts are parameters of three dimensions, the first of which counts them, or a list of modules called `experts`.
    The module around them holds the router too.
    """
    experts: dict[str, int] = {}
    fused: list[str] = []
    for name, module in model.named_modules():
        stacked = {key: each for key, each in module.named_parameters(recurse=False) if each.ndim == 3}
        if stacked and not isinstance(module, CONVOLUTIONS) and min(len(each) for each in stacked.values()) > 1:
            experts[name] = len(next(iter(stacked.values())))
            fused += [f"{name}.{key}" for key in stacked]
        elif isinstance(module, nn.ModuleList) and name.endswith("experts") and len(module) > 1:
            experts[name] = len(module)
    routers: list[str] = []
    for name, n_experts in experts.items():
        block, _, own = name.rpartition(".")
        for inner, module in model.get_submodule(block).named_modules():
            rows = [each.shape[0] for each in module.parameters(recurse=False) if each.ndim == 2]
            if not is_below(inner, own) and any(n_rows in (1, n_experts) for n_rows in rows):
                routers.append(f"{block}.{inner}" if inner else block)
    return MoeModules(experts, tuple(fused), tuple(dict.fromkeys(routers)))


def is_below(name: str, other: str) -> bool:
    """Whether a module is another one, or a part of it, by their names."""
    return name == other or name.startswith(f"{other}.")


def effective_experts(shares: list[float]) -> float:
    """The number of evenly used experts that have the entropy of these shares: 1 at collapse."""
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0.0))
