"""What a token costs in a model: multiplications and weights, counted from the shapes of its parameters.

A multiplication and its addition are two operations. Attention is counted whole, as kernels without a causal shortcut
compute it. Norms, rotations and activations are left out: they are less than a hundredth of the operations.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moe_distill.models.config_checks import EXPERTS

CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "top_k_experts")  # by family


@dataclass(frozen=True)
class ModelWork:
    """Sizes of a causal language model."""

    parameters: int  # tied ones once
    body: int  # weights of the layers' matrices that one token meets: of the experts, the chosen ones alone
    head: int  # weights of the output matrix
    rows: int  # of the output matrix
    hidden_size: int
    layers: int
    heads: int  # of attention; 0: it has none
    head_size: int
    width: int  # of the feed-forward part that one token meets
    experts: int  # of a layer; 0: all are dense
    last_block: int  # weights of the last layer's experts


def count_work(config: PreTrainedConfig) -> ModelWork:
    """Count a model of this configuration; no weight is made."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    experts, share = _experts(config)
    head = model.get_output_embeddings()
    assert head is not None
    body = float(sum(_met(name, module, share) for name, module in model.named_modules() if module is not head))
    layers = int(config.num_hidden_layers)
    heads = int(getattr(config, "num_attention_heads", 0))  # a Mamba or RWKV has no attention
    expert_weights = sum(
        parameter.numel() for name, parameter in model.named_parameters() if _is_of_experts(name) and parameter.ndim > 1
    )
    weight = head.weight
    assert isinstance(weight, torch.Tensor)
    dense = getattr(config, "intermediate_size", None) or 4 * weight.shape[1]
    chosen = getattr(config, "moe_intermediate_size", None) or dense
    return ModelWork(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        body=round(body),
        head=weight.numel(),
        rows=weight.shape[0],
        hidden_size=weight.shape[1],
        layers=layers,
        heads=heads,
        head_size=int(getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else 0,
        width=int(chosen * share * experts if experts else dense),
        experts=experts,
        last_block=expert_weights // layers,
    )


def body_flops(work: ModelWork, length: float) -> float:
    """Operations of a token in the layers, in a window of `length` tokens."""
    return 2 * work.body + 4 * length * work.heads * work.head_size * work.layers


def forward_flops(work: ModelWork, length: float) -> float:
    """Operations of a token in layers and output matrix."""
    return body_flops(work, length) + 2 * work.head


def training_flops(work: ModelWork, length: float, layers_twice: bool = False) -> float:
    """Operations of a token forward and backward; with `layers_twice`, under gradient checkpointing."""
    return 3 * forward_flops(work, length) + (body_flops(work, length) if layers_twice else 0.0)


def _met(name: str, module: nn.Module, share: float) -> float:
    """Weights of a module's own matrices that one token meets."""
    if isinstance(module, nn.Embedding):
        return 0.0
    of_matrices = sum(each.numel() for each in module.parameters(recurse=False) if each.ndim > 1)
    return of_matrices * (share if _is_of_experts(f"{name}.") else 1.0)


def _is_of_experts(name: str) -> bool:
    return ".experts." in name and "shared" not in name


def _experts(config: PreTrainedConfig) -> tuple[int, float]:
    """Experts of a layer, and the share of them that a token meets."""
    found = (getattr(config, name, None) for name in EXPERTS)
    experts = next((number for number in found if isinstance(number, int) and number > 1), 0)
    if not experts:
        return 0, 1.0
    chosen = (getattr(config, name, None) for name in CHOSEN)
    return experts, next((number for number in chosen if isinstance(number, int)), experts) / experts
