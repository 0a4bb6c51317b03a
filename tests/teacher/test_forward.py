"""One forward pass: what is recorded, and a batch that half precision cannot hold."""

import weakref
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from moe_distill.models.decoder import recorded_states
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.forward import States, forward
from tests.teacher.conftest import FAMILIES, SIZES, VOCABULARY, make_teacher

LOUD_ID = VOCABULARY - 1
LAYERS = [0, 1, 3]


def loud_teacher(family: str) -> PreTrainedModel:
    """An fp16 teacher, its buffers as loaded, that overflows where token `LOUD_ID` stands."""
    model = make_teacher(family)
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[LOUD_ID] = torch.finfo(torch.float16).max
        projection = model.get_parameter("model.layers.0.self_attn.o_proj.weight")
        projection.mul_(1000)  # what is added to it tips it over
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    return model


def run(model: PreTrainedModel, ids: torch.Tensor) -> tuple[States, bool]:
    return forward(model, find_architecture(model), ids, LAYERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_after_an_overflow_is_that_of_a_fresh_teacher(family: str) -> None:
    ids = torch.randint(1, LOUD_ID, (2, 80), generator=torch.Generator().manual_seed(0))
    loud = ids.clone()
    loud[1, 40] = LOUD_ID
    model = loud_teacher(family)
    states, in_fp32 = run(model, loud)
    assert in_fp32
    assert states.finite
    after, in_fp32 = run(model, ids)
    assert not in_fp32
    fresh, _ = run(loud_teacher(family), ids)
    for name, expected in vars(fresh).items():
        torch.testing.assert_close(getattr(after, name), expected, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wanted", [[0], [2], [1, 3], [0, 1, 2]])
def test_states_are_the_wanted_layers_and_no_others_are_held(family: str, wanted: list[int]) -> None:
    ids = torch.randint(1, LOUD_ID, (2, 12), generator=torch.Generator().manual_seed(0))
    model = make_teacher(family)
    architecture = find_architecture(model)
    with recorded_states(architecture.decoder, wanted) as seen, torch.inference_mode():
        model(input_ids=ids)
    assert seen.keys() == set(wanted)
    with torch.inference_mode():
        every = model(input_ids=ids, output_hidden_states=True).hidden_states  # the last one is after the norm
    states, _ = forward(model, architecture, ids, wanted)
    for place, number in enumerate(wanted):
        if number < 3:
            torch.testing.assert_close(states.hidden_BLST[:, :, place], every[number])


@pytest.mark.parametrize("wanted", [[], [2], [0, 5]])
def test_a_layers_states_are_freed_before_the_next_but_one_unless_they_are_wanted(wanted: list[int]) -> None:
    """All the states of a teacher of many layers would be many times the wanted ones."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 8}, intermediate_size=48)).eval()
    architecture = find_architecture(model)
    made: list[weakref.ref[torch.Tensor]] = []
    held: list[set[int]] = []

    def enters(_module: object, arguments: tuple[Any, ...]) -> None:
        held.append({number for number, each in enumerate(made) if each() is not None})
        made.append(weakref.ref(arguments[0]))

    for layer in model.model.layers:
        layer.register_forward_pre_hook(enters)
    states, _ = forward(model, architecture, torch.ones(2, 12, dtype=torch.int64), wanted)
    embeddings = {0}  # which transformers holds to the end
    assert held == [{number for number in {*wanted} | embeddings if number < layer} for layer in range(8)]
    assert states.hidden_BLST.shape[2] == len(wanted)
