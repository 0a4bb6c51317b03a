"""Find the last layer's MoE block in a transformers model, and put it into the form that replay computes.

Nothing is concluded from a family's name. A short forward pass shows which norm feeds the block, and that the block's
output is added to the residual stream which that norm reads. A pass of the block alone, in fp32, shows which rule turns
its router's logits into weights, and that replay gives its output. A block that differs anywhere is not replayed.

Shapes: N positions, T hidden size, E experts.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from moe_distill.models.decoder import Decoder
from moe_distill.models.moe_experts import UnknownBlockError, expert_tensors, linear_map, shared_tensors
from moe_distill.models.router_probe import (
    EXACT,
    find_rule,
    find_selection_bias,
    in_fp32,
    is_near,
    observe,
    probe_states,
    recorded,
)
from moe_distill.replay.block import TeacherHead, block_output
from moe_distill.replay.head import HeadDescription


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
    bias = find_selection_bias(block, len(tensors["gate"]))
    if bias is not None:
        tensors["selection_bias"] = bias
    tensors = {key: tensor.cpu() for key, tensor in tensors.items()}  # a teacher on a GPU keeps no second copy there
    residual_NT = probe_states(decoder.hidden_size)
    observed = observe(block, gate, F.rms_norm(residual_NT, moe_norm.shape, moe_norm, moe_epsilon))
    rule = find_rule(model, observed, tensors.get("selection_bias"))
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
    _check(head, residual_NT, observed.output_NT)
    return MoeBlock(norm, gate, head)


@torch.inference_mode()
def _surroundings(model: PreTrainedModel, decoder: Decoder, block: nn.Module) -> tuple[nn.Module, nn.Module, float]:
    """The norm that feeds the block, the final norm, and the factor of the block's output in the residual stream."""
    last, device = decoder.layers[-1], decoder.head.weight_VD.device
    ids = torch.randint(min(256, len(decoder.head.weight_VD)), (1, 8), generator=torch.Generator().manual_seed(0))
    outside = [each for each in decoder.body.children() if not isinstance(each, nn.ModuleList)]
    inside = [each for each in last.children() if each is not block]
    with recorded([*inside, *outside, block, last]) as seen:
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
    probe = probe_states(hidden_size)
    try:
        with torch.inference_mode():
            truth = in_fp32(norm)(probe)
    except (RuntimeError, TypeError) as error:  # it reads more than states, or states of another size
        raise UnknownBlockError("a norm around it is no RMS norm") from error
    for shift, epsilon in product((0.0, 1.0), epsilons):
        if len(weights) != 1 or weights[0].shape != (hidden_size,):
            break
        weight = weights[0].float().cpu() + shift
        if torch.allclose(F.rms_norm(probe, weight.shape, weight, epsilon), truth, atol=EXACT, rtol=EXACT):
            return weight, epsilon
    raise UnknownBlockError("a norm around it is no RMS norm")


@torch.inference_mode()
def _check(head: TeacherHead, residual_NT: Tensor, output_NT: Tensor) -> None:
    """Compare what replay gives with what the block's own code gave, in fp32.

    Without the residual stream, whose rounding is more than a share of the output where that is small.
    """
    truth_NT = head.description.output_scale * output_NT
    found_NT = block_output(head, residual_NT)
    if not is_near(found_NT, truth_NT):
        raise UnknownBlockError(f"replayed, its output differs by up to {float((found_NT - truth_NT).abs().max()):.2g}")
