"""What a MoE block does when it is run alone: which experts its router asks, and by which rule it weights them.

Shapes: N positions, T hidden size, E experts.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_distill.models.decoder import first_tensor
from moe_distill.models.moe_experts import UnknownBlockError
from moe_distill.replay.router_rule import RouterRule, mixture

PROBED = 64  # positions
EXACT = 1e-4  # largest difference of two fp32 computations of the same, as a share of the largest value


def probe_states(hidden_size: int) -> Tensor:
    """Random states to run parts of a model on, fp32 [N, T]."""
    return torch.randn(PROBED, hidden_size, generator=torch.Generator().manual_seed(0))


@contextmanager
def recorded(modules: list[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """First tensors of input and output of each module in forward passes inside the block."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, arguments: tuple[object, ...], named: dict[str, object], output: object) -> None:
        given = first_tensor(arguments) if arguments else first_tensor(tuple(named.values()))
        made = first_tensor(output)
        if given is not None and made is not None:
            seen[module] = given, made

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def in_fp32(module: nn.Module) -> nn.Module:
    """A copy on the CPU in fp32."""
    return copy.deepcopy(module).cpu().float().eval()


def is_near(found: Tensor, truth: Tensor) -> bool:
    """Whether two results in fp32 differ by rounding alone."""
    return bool((found - truth).abs().max() <= EXACT * truth.abs().max())


def find_selection_bias(block: nn.Module, num_experts: int) -> Tensor | None:
    """What the router adds to its scores for the choice of experts."""
    named = [*block.named_buffers(), *block.named_parameters()]
    found = [each.detach().float() for name, each in named if "correction_bias" in name and each.numel() == num_experts]
    return found[0].flatten() if found else None


@dataclass(frozen=True)
class Observed:
    """What the block's own code did with its input."""

    logits_NE: Tensor
    mixture_NE: Tensor
    output_NT: Tensor


@torch.inference_mode()
def observe(block: nn.Module, gate: nn.Module, read_NT: Tensor) -> Observed:
    """Run a copy of the block alone, and see which experts it asks with which weights."""
    gate_name = next(name for name, each in block.named_children() if each is gate)
    alone = in_fp32(block)
    asked: list[tuple[object, ...]] = []
    experts = alone.get_submodule("experts")

    def record(_module: nn.Module, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        asked.append((*arguments, *named.values()))

    handle = experts.register_forward_pre_hook(record, with_kwargs=True)
    with recorded([alone.get_submodule(gate_name)]) as seen:
        try:
            output = first_tensor(alone(read_NT[None]))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # it may ask for anything beside states
            raise UnknownBlockError("it cannot be run alone") from error
        finally:
            handle.remove()
    if not asked or not seen or output is None or output.numel() != read_NT.numel():
        raise UnknownBlockError("it does not run its router and its experts as modules")
    logits_NE = next(iter(seen.values()))[1].view(len(read_NT), -1)
    tensors = [each for each in asked[0] if isinstance(each, Tensor)][1:]
    ids = next((each for each in tensors if not each.is_floating_point()), None)
    weights = next((each for each in tensors if each.is_floating_point()), None)
    if ids is None or weights is None or ids.shape != weights.shape or ids.shape[:-1].numel() != len(read_NT):
        raise UnknownBlockError("its experts are not asked by numbers and weights")
    mixture_NE = torch.zeros_like(logits_NE).scatter_add(
        1, ids.view(len(read_NT), -1).long(), weights.view(len(read_NT), -1)
    )
    return Observed(logits_NE, mixture_NE, output.view_as(read_NT))


def find_rule(model: PreTrainedModel, observed: Observed, bias: Tensor | None) -> RouterRule:
    """The rule that gives the observed mixture."""
    config = model.config
    per_token = int((observed.mixture_NE != 0).sum(-1).max())
    groups = int(getattr(config, "n_group", None) or 1)
    kept = int(getattr(config, "topk_group", None) or groups)
    num_experts = observed.logits_NE.shape[1]
    grouped: set[tuple[int, int]] = {(1, 1)}
    if num_experts % groups == 0 and num_experts // groups > 1:  # else the groups are of something else
        grouped.add((groups, kept))
    scores: tuple[Literal["softmax", "sigmoid"], ...] = ("softmax", "sigmoid")
    counted: tuple[Literal["largest", "two_largest"], ...] = ("largest", "two_largest")
    for score, normalizes, (n, of_n), group_score in product(scores, (True, False), sorted(grouped), counted):
        rule = RouterRule(
            score=score,
            experts_per_token=per_token,
            normalizes=normalizes,
            groups=n,
            kept_groups=of_n,
            group_score=group_score,
        )
        unscaled_NE = mixture(rule, observed.logits_NE, bias, 1.0, per_token)
        scale = float(f"{float(observed.mixture_NE.sum() / unscaled_NE.sum()):.6g}")  # configurations name it variously
        if is_near(scale * unscaled_NE, observed.mixture_NE):
            return rule.model_copy(update={"scale": scale})
    raise UnknownBlockError("its router weights the experts by an unknown rule")
