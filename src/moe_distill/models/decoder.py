"""The parts of a causal language model of transformers that capture, training and evaluation run one by one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from moe_distill.errors import DataError
from moe_distill.losses.output_head import OutputHead

# Keys by which families scale or cap their logits. What a family does with its key, if anything, is found out.
SCALE_KEYS = (
    "logits_scaling",  # Granite divides, HyperCLOVA X multiplies
    "logit_scale",  # Cohere multiplies, MPT has the key and does not
    "lm_head_multiplier",
    "output_multiplier",
    "logits_mup_width_multiplier",
)
SOFTCAP_KEYS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM
PROBED = 8  # positions
ANOTHER = "choose another model; README.md has the families that are known to work"


@dataclass(frozen=True)
class Decoder:
    """What maps token ids to states, and states to logits."""

    body: nn.Module  # token ids -> final states, which the head reads
    layers: list[nn.Module]
    head: OutputHead

    @property
    def hidden_size(self) -> int:
        """Of the states that the head reads."""
        return self.head.weight_VD.shape[1]


def find_decoder(model: PreTrainedModel) -> Decoder:
    """Find the parts of a causal language model.

    Raises:
        DataError: it has no output matrix over states, or no list of layers.
    """
    body, projection = model.get_decoder(), model.get_output_embeddings()
    if body is model:  # families that name no decoder of their own: the part that holds the embeddings
        embeddings = model.get_input_embeddings()
        holders = [each for each in model.children() if any(part is embeddings for part in each.modules())]
        body = holders[0] if holders else None
    kind = model.config.model_type
    if not isinstance(body, nn.Module) or body is model or not isinstance(projection, nn.Module):
        raise DataError(f"a {kind} model has no decoder beneath an output matrix", fix=ANOTHER)
    return Decoder(body, _layers(body, model), _head(body, projection, model))


@contextmanager
def recorded_states(decoder: Decoder, numbers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Record the residual stream after some layers in forward passes of the body inside the block.

    Args:
        numbers: of the layers, counted from 1; 0 stands for the embeddings. Other layers' states are not held.
    """
    seen: dict[int, Tensor] = {}

    def before_first(_module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen[0] = arguments[0] if arguments else named["hidden_states"]

    handles = []
    for number in numbers:
        if number == 0:
            handles.append(decoder.layers[0].register_forward_pre_hook(before_first, with_kwargs=True))
            continue

        def after(_module: nn.Module, _arguments: object, output: object, number: int = number) -> None:
            state = first_tensor(output)
            assert state is not None
            seen[number] = state

        handles.append(decoder.layers[number - 1].register_forward_hook(after))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(values: object) -> Tensor | None:
    """The first floating-point tensor of a module's output, which may be a tuple; None: there is none."""
    if isinstance(values, tuple | list):
        return next((found for value in values if (found := first_tensor(value)) is not None), None)
    return values if isinstance(values, Tensor) and values.is_floating_point() else None


def _layers(body: nn.Module, model: PreTrainedModel) -> list[nn.Module]:
    """The outermost list of modules that is as long as the configuration says, else the only list in the body."""
    depth = model.config.num_hidden_layers
    lists = [each for each in body.modules() if isinstance(each, nn.ModuleList)]
    outermost = [each for each in body.children() if isinstance(each, nn.ModuleList)]
    found = [each for each in lists if len(each) == depth] or (outermost if len(outermost) == 1 else [])
    if not found:
        raise DataError(f"a {model.config.model_type} model has no list of {depth} layers", fix=ANOTHER)
    return list(found[0])


def _head(body: nn.Module, projection: nn.Module, model: PreTrainedModel) -> OutputHead:
    """The head whose logits are nearest to the model's own, of those that the configuration's numbers allow."""
    weight, bias = projection.weight, getattr(projection, "bias", None)
    assert isinstance(weight, Tensor)
    bias_V = bias if isinstance(bias, Tensor) else None
    values = [value for key in SCALE_KEYS if (value := _number(model, key)) and value != 1.0]
    scales = [1.0, *(scale for value in values for scale in (value, 1.0 / value))]
    caps = [None, *(cap for key in SOFTCAP_KEYS if (cap := _number(model, key)))]
    heads = [OutputHead(weight, bias_V, scale, cap) for scale in scales for cap in caps]
    return heads[0] if len(heads) == 1 else _nearest(heads, body, model)


@torch.inference_mode()
def _nearest(heads: list[OutputHead], body: nn.Module, model: PreTrainedModel) -> OutputHead:
    """The head that is nearest to what the model's own code makes of given states.

    The layers' own states are not used: those of a model in fp16 may overflow.
    """
    weight_VD, was_training = heads[0].weight_VD, model.training
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(256, len(weight_VD)), (1, PROBED), generator=generator).to(weight_VD.device)
    given = torch.randn(1, PROBED, weight_VD.shape[1], generator=generator).to(weight_VD)

    def replaced(_module: nn.Module, _arguments: object, output: BaseModelOutput) -> BaseModelOutput:
        output.last_hidden_state = given
        return output

    model.eval()
    handle = body.register_forward_hook(replaced)
    try:
        own = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        handle.remove()
        model.train(was_training)
    errors = [float((head.logits(given).float() - own).abs().max()) for head in heads]
    return heads[errors.index(min(errors))]


def _number(model: PreTrainedModel, key: str) -> float | None:
    value = getattr(model.config, key, None)
    return float(value) if isinstance(value, int | float) else None
