"""Find the last layer's MoE block in a transformers model, and put it into the form that replay computes.

Nothing is concluded from a family's name. A short forward pass shows which norm feeds the block, and that the block's
output is added to the residual stream which that norm reads. A pass of the block alone, in fp32, shows which rule turns
its router's logits into weights, and that replay gives its output. A block that differs anywhere is not replayed.

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
from torch.nn import functional as F
from transformers import PreTrainedModel

from moe_distill.models.decoder import Decoder, first_tensor
from moe_distill.models.moe_experts import UnknownBlockError, expert_tensors, linear_map, shared_tensors
from moe_distill.replay.block import TeacherHead, block_input, final_hidden, replayed_residual
from moe_distill.replay.head import HeadDescription
from moe_distill.replay.router_rule import RouterRule, mixture

PROBED = 64  # positions
EXACT = 1e-4  # largest difference of two fp32 computations of the same, as a share of the largest value


@dataclass(frozen=True)
class MoeBlock:
    """A block that can be replayed."""

    norm: nn.Module  # reads the residual stream that enters the block
    gate: nn.Module  # the first tensor that it returns is the router's logits
    head: TeacherHead  # replays it, on the CPU; of no teacher's fingerprint yet

    @property
    def num_experts(self) -> int:
        return self.head.num_experts


def find_moe_block(model: PreTrainedModel, decoder: Decoder) -> MoeBlock | str:
    """The last layer's MoE block in a form that can be replayed, or in words why there is none."""
    last = decoder.layers[-1]
    if not has_experts(last):
        others = any(has_experts(layer) for layer in decoder.layers)
        return "the teacher's last layer is dense" if others else "the teacher has no experts"
    block = next((each for each in last.modules() if _router_name(each) and hasattr(each, "experts")), None)
    if block is None:
        return "the teacher's last MoE block is of an unknown form: no router beside its experts"
    try:
        return _replayable(model, decoder, block)
    except UnknownBlockError as error:
        return f"the teacher's last MoE block is of an unknown form: {error}"


def has_experts(module: nn.Module) -> bool:
    """Whether there are experts anywhere inside a module."""
    return any("expert" in name.lower() for name, _ in module.named_parameters())


def _router_name(block: nn.Module) -> str | None:
    return next((name for name in ("gate", "router") if isinstance(getattr(block, name, None), nn.Module)), None)


def _replayable(model: PreTrainedModel, decoder: Decoder, block: nn.Module) -> MoeBlock:
    norm, final_norm, output_scale = _surroundings(model, decoder, block)
    name = _router_name(block)
    assert name is not None
    gate = block.get_submodule(name)
    moe_norm, moe_epsilon = _rms_norm(norm, decoder.hidden_size)
    final_weight, final_epsilon = _rms_norm(final_norm, decoder.hidden_size)
    tensors = {"moe_norm": moe_norm, "final_norm": final_weight, "output": decoder.head.weight_VD.detach()}
    if decoder.head.bias_V is not None:
        tensors["output_bias"] = decoder.head.bias_V.detach()
    tensors |= linear_map("gate", gate, decoder.hidden_size)
    experts, activation = expert_tensors(block.get_submodule("experts"))
    tensors |= experts | shared_tensors(block, {name, "experts"})
    bias = _selection_bias(block, len(tensors["gate"]))
    if bias is not None:
        tensors["selection_bias"] = bias
    tensors = {key: tensor.cpu() for key, tensor in tensors.items()}  # a teacher on a GPU keeps no second copy there
    observed = _observe(block, gate, _probe(decoder.hidden_size))
    rule = _rule(model, observed, tensors.get("selection_bias"))
    description = HeadDescription(
        teacher_fingerprint="",
        num_experts=len(tensors["gate"]),
        router=rule,
        activation=activation.name,
        activation_limit=activation.limit,
        activation_slope=activation.slope,
        output_scale=output_scale,
        moe_norm_epsilon=moe_epsilon,
        final_norm_epsilon=final_epsilon,
        logit_scale=decoder.head.scale,
        logit_softcap=decoder.head.softcap,
    )
    head = TeacherHead(description, tensors)
    _check(head, norm, final_norm, block)
    return MoeBlock(norm, gate, head)


def _probe(hidden_size: int) -> Tensor:
    return torch.randn(PROBED, hidden_size, generator=torch.Generator().manual_seed(0))


@contextmanager
def _recorded(modules: list[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
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


@torch.inference_mode()
def _surroundings(model: PreTrainedModel, decoder: Decoder, block: nn.Module) -> tuple[nn.Module, nn.Module, float]:
    """The norm that feeds the block, the final norm, and the factor of the block's output in the residual stream."""
    last, device = decoder.layers[-1], decoder.head.weight_VD.device
    ids = torch.randint(min(256, len(decoder.head.weight_VD)), (1, 8), generator=torch.Generator().manual_seed(0))
    outside = [each for each in decoder.body.children() if not isinstance(each, nn.ModuleList)]
    inside = [each for each in last.children() if each is not block]
    with _recorded([*inside, *outside, block, last]) as seen:
        final = decoder.body(input_ids=ids.to(device), use_cache=False).last_hidden_state
    if block not in seen or last not in seen:
        raise UnknownBlockError("its last layer does not run it")
    read, made = seen[block]
    norm = next((each for each in inside if each in seen and _same(seen[each][1], read)), None)
    final_norm = next((each for each in outside if each in seen and _same(seen[each][1], final)), None)
    if norm is None:
        raise UnknownBlockError("it does not read a norm of the residual stream")
    if final_norm is None or not _same(seen[final_norm][0], seen[last][1]):
        raise UnknownBlockError("no final norm follows the last layer")
    residual, after = seen[norm][0].float(), seen[last][1].float()
    if not residual.numel() == made.numel() == after.numel():
        raise UnknownBlockError("the residual stream is wider than what it reads")
    scale = float(getattr(model.config, "residual_multiplier", None) or 1.0)
    error = (residual + scale * made.float().view_as(residual) - after).abs().max()
    if float(error) > 4 * torch.finfo(made.dtype).eps * float(after.abs().max()):
        raise UnknownBlockError("its output is not simply added to the residual stream that it reads")
    return norm, final_norm, scale


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _rms_norm(norm: nn.Module, hidden_size: int) -> tuple[Tensor, float]:
    """Weight in fp32 and epsilon of a norm, as `rms_norm` takes them."""
    weights = [weight.detach() for _, weight in norm.named_parameters()]
    epsilons = [float(value) for key, value in vars(norm).items() if "eps" in key and isinstance(value, float)]
    probe = _probe(hidden_size)
    with torch.inference_mode():
        truth = _in_fp32(norm)(probe)
    for shift, epsilon in product((0.0, 1.0), epsilons):
        if len(weights) != 1 or weights[0].shape != (hidden_size,):
            break
        weight = weights[0].float().cpu() + shift
        if torch.allclose(F.rms_norm(probe, weight.shape, weight, epsilon), truth, atol=EXACT, rtol=EXACT):
            return weight, epsilon
    raise UnknownBlockError("a norm around it is no RMS norm")


def _in_fp32(module: nn.Module) -> nn.Module:
    """A copy on the CPU in fp32."""
    return copy.deepcopy(module).cpu().float().eval()


def _selection_bias(block: nn.Module, num_experts: int) -> Tensor | None:
    """What the router adds to its scores for the choice of experts."""
    named = [*block.named_buffers(), *block.named_parameters()]
    found = [each.detach().float() for name, each in named if "correction_bias" in name and each.numel() == num_experts]
    return found[0].flatten() if found else None


@dataclass(frozen=True)
class _Observed:
    """What the block's own code did with the router's logits."""

    logits_NE: Tensor
    mixture_NE: Tensor


@torch.inference_mode()
def _observe(block: nn.Module, gate: nn.Module, read_NT: Tensor) -> _Observed:
    """Run a copy of the block alone, and see which experts it asks with which weights."""
    gate_name = next(name for name, each in block.named_children() if each is gate)
    alone = _in_fp32(block)
    asked: list[tuple[object, ...]] = []
    experts = alone.get_submodule("experts")

    def record(_module: nn.Module, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        asked.append((*arguments, *named.values()))

    handle = experts.register_forward_pre_hook(record, with_kwargs=True)
    with _recorded([alone.get_submodule(gate_name)]) as seen:
        try:
            alone(read_NT[None])
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # it may ask for anything beside states
            raise UnknownBlockError("it cannot be run alone") from error
        finally:
            handle.remove()
    if not asked or not seen:
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
    return _Observed(logits_NE, mixture_NE)


def _rule(model: PreTrainedModel, observed: _Observed, bias: Tensor | None) -> RouterRule:
    """The rule that gives the observed mixture."""
    config = model.config
    per_token = int((observed.mixture_NE != 0).sum(-1).max())
    groups = int(getattr(config, "n_group", None) or 1)
    kept = int(getattr(config, "topk_group", None) or groups)
    scales = {1.0, float(getattr(config, "routed_scaling_factor", None) or 1.0)}
    grouped: set[tuple[int, int]] = {(1, 1), (groups, kept)}
    scores: tuple[Literal["softmax", "sigmoid"], ...] = ("softmax", "sigmoid")
    counted: tuple[Literal["largest", "two_largest"], ...] = ("largest", "two_largest")
    for score, normalizes, scale, (n, of_n), group_score in product(
        scores, (True, False), sorted(scales), sorted(grouped), counted
    ):
        rule = RouterRule(
            score=score,
            experts_per_token=per_token,
            normalizes=normalizes,
            scale=scale,
            groups=n,
            kept_groups=of_n,
            group_score=group_score,
        )
        if _is_near(mixture(rule, observed.logits_NE, bias, 1.0, per_token), observed.mixture_NE):
            return rule
    raise UnknownBlockError("its router weights the experts by an unknown rule")


def _is_near(found: Tensor, truth: Tensor) -> bool:
    return bool((found - truth).abs().max() <= EXACT * truth.abs().max())


@torch.inference_mode()
def _check(head: TeacherHead, norm: nn.Module, final_norm: nn.Module, block: nn.Module) -> None:
    """Compute block and final norm by replay and by the model's own modules, in fp32."""
    residual_NT = _probe(head.tensors["final_norm"].shape[0])
    read_NT = _in_fp32(norm)(residual_NT)
    own = first_tensor(_in_fp32(block)(read_NT[None]))
    assert own is not None
    if not _is_near(block_input(head, residual_NT), read_NT):
        raise UnknownBlockError("its norm is another")
    truth_NT = residual_NT + head.description.output_scale * own.view_as(residual_NT)
    found_NT = replayed_residual(head, residual_NT)
    if not _is_near(found_NT - residual_NT, truth_NT - residual_NT):
        raise UnknownBlockError(f"replayed, its output differs by up to {float((found_NT - truth_NT).abs().max()):.2g}")
    if not _is_near(final_hidden(head, truth_NT), _in_fp32(final_norm)(truth_NT)):
        raise UnknownBlockError("the final norm is another")
