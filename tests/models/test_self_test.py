"""The self-test: what it lets through, and what it refuses in one line."""

from typing import Any

import pytest
import torch
from torch import nn

from moe_distill.errors import ConfigError, DataError
from moe_distill.losses.output_head import OutputHead
from moe_distill.models.decoder import find_decoder
from moe_distill.models.self_test import self_test
from tests.models.families import make_model


def refusal(family: str, window: int = 64, **changes: Any) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        self_test(make_model(family, 120, **changes), "teacher", window, seed=0)
    return str(caught.value)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite", "hyperclovax", "mpt", "phi", "gpt2"])
def test_heads_are_found(family: str) -> None:
    found = self_test(make_model(family, 120), "student", 64, seed=0)
    assert found.logit_error <= 1e-6


def test_the_nearest_head_is_taken_by_what_the_model_does() -> None:
    assert find_decoder(make_model("granite", 120)).head.scale == 1 / 2
    assert find_decoder(make_model("hyperclovax", 120)).head.scale == 2.0
    assert find_decoder(make_model("mpt", 120)).head.scale == 1.0, "it has the key and does not use it"
    assert find_decoder(make_model("gemma2", 120)).head.softcap == 3.0
    assert find_decoder(make_model("phi", 120)).head.bias_V is not None


def test_finding_a_head_leaves_the_model_as_it_was() -> None:
    model = make_model("granite", 120).train()
    state = torch.get_rng_state()
    find_decoder(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("factor", [1.001, 0.5, 30.0])
def test_no_tolerance_hides_a_scale(factor: float) -> None:
    model = make_model("llama", 120)
    projection = model.get_output_embeddings()
    projection.register_forward_hook(lambda _module, _arguments, output: factor * output)
    with pytest.raises(DataError, match=r"a llama model, makes logits in a way that is not known; .* differ by"):
        self_test(model, "teacher", 64, seed=0)


def test_a_cap_that_no_key_names_is_refused() -> None:
    model = make_model("qwen2", 120)
    model.get_output_embeddings().register_forward_hook(lambda _m, _a, output: 5.0 * torch.tanh(output / 5.0))
    with pytest.raises(DataError, match=r"config\.json has no key about logits"):
        self_test(model, "teacher", 64, seed=0)


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = make_model("llama", 120)
    with torch.no_grad():
        model.get_output_embeddings().get_parameter("weight")[5, 3] = float("nan")
    with pytest.raises(DataError, match=r"makes logits in a way that is not known; .* differ by nan%"):
        self_test(model, "teacher", 64, seed=0)


@pytest.mark.parametrize("family", ["bert", "bert-generation"])
def test_models_that_look_ahead_are_refused(family: str) -> None:
    said = refusal(family)
    assert f"teacher, a {family} model, looks ahead; another last token changes earlier states by" in said
    assert "set `is_decoder`" in said


def test_a_decoder_of_that_family_is_not() -> None:
    assert self_test(make_model("bert-generation", 120, is_decoder=True), "student", 64, seed=0).causality_error <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_windows_longer_than_the_positions_are_refused(family: str) -> None:
    said = refusal(family, window=257)
    assert said == (
        "`windows.teacher_max_length` is 257, the teacher has 256 positions; max_position_embeddings of its "
        f"config.json, a {family} model; lower `windows.teacher_max_length` to 256 at most"
    )
    self_test(make_model(family, 120), "teacher", 256, seed=0)


def test_a_map_between_states_and_matrix_is_refused() -> None:
    assert "has other modules between its states and its output matrix" in refusal("electra")


def test_a_model_that_needs_more_than_token_ids_is_refused() -> None:
    model = make_model("llama", 120)

    def fails(*_arguments: object) -> None:
        raise ValueError("give me an image")

    model.get_decoder().register_forward_pre_hook(fails)
    with pytest.raises(DataError, match="cannot be run on token ids alone; give me an image"):
        self_test(model, "student", 64, seed=0)


def test_a_wrong_head_is_seen_whatever_its_family() -> None:
    model = make_model("granite", 120)
    decoder = find_decoder(model)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        states, own = decoder.body(input_ids=ids).last_hidden_state, model(input_ids=ids).logits
        plain = OutputHead(decoder.head.weight_VD).logits(states)
    assert float((plain - own).detach().abs().max()) > 1.0
    torch.testing.assert_close(decoder.head.logits(states), own, atol=1e-5, rtol=1e-5)


def test_states_of_another_size_inside_are_refused() -> None:
    """OPT-350m as released: its layers are wider than what its output matrix reads."""
    said = refusal("opt", word_embed_proj_dim=16)
    assert "has states of another size inside than its output matrix reads; after layer" in said


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_a_head_is_found_where_the_layers_overflow(family: str) -> None:
    model = make_model(family, 120)
    exact = find_decoder(model).head
    with torch.no_grad():
        for layer in find_decoder(model).layers:
            next(weight for name, weight in layer.named_parameters() if "norm" in name).fill_(6e4)
    nn.Module.to(model, torch.float16)
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        assert not model(input_ids=ids, use_cache=False).logits.isfinite().all()
    found = find_decoder(model).head
    assert (found.scale, found.softcap) == (exact.scale, exact.softcap)
