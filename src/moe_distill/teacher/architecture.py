"""Find the modules and weights of a transformers decoder that capture and replay need.

All supported families (Qwen3-MoE, Mixtral, OLMoE) share one architecture: pre-norm decoder layers whose MoE block
reads `post_attention_layernorm` of the residual stream and adds to it.

Shapes: R rows of the output matrix, T hidden size, E experts, I expert size.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_distill.errors import DataError


@dataclass(frozen=True)
class MoeParts:
    """The last decoder layer's MoE block."""

    norm: nn.Module  # reads the residual stream that enters the block
    norm_weight: Tensor  # [T]
    gate: nn.Module  # returns router logits first
    gate_weight: Tensor  # [E, T]
    gate_up: Tensor  # [E, 2 * I, T]: gate rows, then up rows
    down: Tensor  # [E, T, I]
    experts_per_token: int
    normalizes_topk: bool  # whether the weights of the chosen experts are divided by their sum
    activation: str  # name of the function in transformers, such as `silu`


@dataclass(frozen=True)
class Architecture:
    """The parts of a decoder."""

    layers: list[nn.Module]
    body: nn.Module  # token ids -> final hidden states
    final_norm: Tensor  # [T]
    norm_epsilon: float
    output: Tensor  # [R, T]
    moe: MoeParts | None  # None: the last layer has no MoE block

    @property
    def hidden_size(self) -> int:
        return self.output.shape[1]

    @property
    def num_experts(self) -> int:
        """0: the last layer is dense."""
        return 0 if self.moe is None else self.moe.gate_weight.shape[0]

    @property
    def head(self) -> dict[str, Tensor]:
        """What replay needs, by the names of models/teacher_head: final norm, output matrix, and a MoE block."""
        tensors = {"final_norm": self.final_norm, "output": self.output}
        if self.moe is not None:
            tensors |= {
                "moe_norm": self.moe.norm_weight,
                "gate": self.moe.gate_weight,
                "gate_up": self.moe.gate_up,
                "down": self.moe.down,
            }
        return tensors


def find_modules(model: PreTrainedModel) -> Architecture:
    """Find the parts of a causal language model.

    Raises:
        DataError: the model has another architecture than the families above.
    """
    try:
        body = model.get_decoder()
        layers = list(body.layers)
        return Architecture(
            layers=layers,
            body=body,
            final_norm=body.norm.weight,
            norm_epsilon=float(model.config.rms_norm_eps),
            output=model.get_output_embeddings().weight,
            moe=_moe_parts(layers[-1], model),
        )
    except AttributeError as error:
        raise DataError(f"a {model.config.model_type} model cannot be captured", str(error)) from error


def _moe_parts(layer: nn.Module, model: PreTrainedModel) -> MoeParts | None:
    block = layer.get_submodule("mlp")
    if not hasattr(block, "experts"):
        return None
    config = model.config
    return MoeParts(
        norm_weight=layer.get_parameter("post_attention_layernorm.weight"),
        norm=layer.get_submodule("post_attention_layernorm"),
        gate=block.get_submodule("gate"),
        gate_weight=block.get_parameter("gate.weight"),
        gate_up=block.get_parameter("experts.gate_up_proj"),
        down=block.get_parameter("experts.down_proj"),
        experts_per_token=int(config.num_experts_per_tok),
        normalizes_topk=bool(getattr(config, "norm_topk_prob", True)),  # Mixtral has no such key and always does
        activation=str(config.hidden_act),
    )
