"""Estimated memory against what autograd really keeps, and against arithmetic by hand."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from moe_distill.planning.model_work import ModelWork, count_work
from moe_distill.planning.peak_memory import (
    Layers,
    capture_memory,
    evaluation_memory,
    saved_activations,
    training_memory,
)
from tests.planning.plans import STUDENT, TEACHER

WINDOWS, LENGTH = 2, 64


def llama(hidden: int, width: int, layers: int, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=1,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.train()
    return model


def kept_by_autograd(model: PreTrainedModel, autocast: bool) -> float:
    """Bytes of all storages that the layers' graph holds, but for weights and their copies in bf16."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(parameter.shape) for parameter in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in shapes:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        model.get_decoder()(input_ids=torch.randint(64, (WINDOWS, LENGTH)), use_cache=False)
    return float(sum(size for size, _ in kept.values()))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("hidden", "width"), [(192, 512), (384, 1024), (192, 1024)])
def test_activations_are_what_autograd_keeps(hidden: int, width: int, autocast: bool) -> None:
    model = llama(hidden, width, 6, "sdpa")
    layers = Layers(2 if autocast else 4, LENGTH, fuses_attention=True)
    said = saved_activations(count_work(model.config), layers, WINDOWS * LENGTH)
    assert said == pytest.approx(kept_by_autograd(model, autocast), rel=0.1)


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_that_is_not_fused_keeps_its_probabilities_and_is_not_underestimated(autocast: bool) -> None:
    model = llama(192, 512, 4, "eager")
    layers = Layers(2 if autocast else 4, LENGTH, fuses_attention=False)
    kept = kept_by_autograd(model, autocast)
    assert kept <= saved_activations(count_work(model.config), layers, WINDOWS * LENGTH) <= 1.5 * kept


def test_layers_computed_twice_keep_their_inputs_and_one_layer() -> None:
    layers, positions = Layers(2, LENGTH, fuses_attention=True), 100.0
    whole = saved_activations(STUDENT, layers, positions)
    twice = saved_activations(STUDENT, layers, positions, twice=True)
    assert twice == pytest.approx(whole / STUDENT.layers + positions * STUDENT.layers * 4 * STUDENT.hidden_size)


def test_a_training_step_by_hand() -> None:
    layers = Layers(2, 8, fuses_attention=True)
    found = training_memory(STUDENT, layers, 1000.0, 16, False, heads=30, teacher_head=5)
    weights = (10**6 + 30) * 16 + 10**6 * 2 + 200 * 4
    assert found == weights + saved_activations(STUDENT, layers, 1000.0) + 16 * 20 * (2 + 4) + 5
    in_fp32 = training_memory(STUDENT, Layers(4, 8, fuses_attention=True), 0.0, 16, False)
    assert in_fp32 == 10**6 * 16 + 200 * 4, "no copies"


def test_a_larger_batch_chunk_and_vocabulary_take_more() -> None:
    def taken(work: ModelWork = TEACHER, positions: float = 1000.0, chunk: int = 64) -> float:
        return capture_memory(work, Layers(2, 8, fuses_attention=True), positions, chunk, kept_layers=2)

    least = 1000 * 2 + 200 * 4 + 64 * 20 * 4 * 3
    assert least < taken() < taken(positions=2000.0)
    assert taken(chunk=128) - taken() == 64 * 20 * 4 * 3
    in_fp32 = Layers(4, 8, fuses_attention=True)
    of_student = [evaluation_memory(STUDENT, in_fp32, positions) for positions in (100.0, 200.0)]
    assert 4e6 < of_student[0] < of_student[1]
