"""A student whose layers are computed twice learns the same, to the bit, and is exported the same."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from moe_distill.errors import ConfigError
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.models.checkpointing import checkpoint_layers
from moe_distill.tracking.curves import CURVE_NAME, VALIDATION_CURVE_NAME
from moe_distill.training.phases import control, train_router
from tests.replay.teachers import VOCABULARY
from tests.teacher.conftest import make_teacher
from tests.training.folders import Folders, make_folders, make_params

ALL_ON = dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A student of another family, with dropout in every layer."""
    found = make_folders(tmp_path_factory.mktemp("twice"), make_teacher("qwen3_moe_top1"))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=2, n_positions=128)
    assert config.resid_pdrop > 0.0
    GPT2LMHeadModel(config).save_pretrained(found.inputs.student)
    return found


@pytest.mark.parametrize("stage", [control, train_router])
def test_losses_and_weights_are_the_same_bits_dropout_included(
    folders: Folders, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, found, of_layers = {}, GPT2MLP.forward, 0

    def counted(self: GPT2MLP, *arguments: Any) -> object:
        nonlocal of_layers
        of_layers += self.training
        return found(self, *arguments)

    monkeypatch.setattr(GPT2MLP, "forward", counted)
    for twice in (False, True):
        of_layers = 0
        outputs = folders.outputs(f"{stage.__name__} {twice}")
        params = make_params(losses=ALL_ON, max_steps=8, gradient_checkpointing=twice)
        stage(params, folders.inputs, outputs)
        curves = [(outputs.work / name).read_bytes() for name in (CURVE_NAME, VALIDATION_CURVE_NAME)]
        weights, config = load_file(outputs.student / "model.safetensors"), (outputs.student / "config.json")
        runs[twice] = (curves, weights, json.loads(config.read_text()), of_layers)
    (curves, weights, config, once), (same_curves, same_weights, same_config, computed) = runs[False], runs[True]
    assert computed == 2 * once > 0, "every layer of a training step, and of no validation"
    assert curves == same_curves
    assert all(torch.equal(weight, same_weights[name]) for name, weight in weights.items())
    assert config == same_config


def test_a_family_that_cannot_is_refused_in_one_line() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2))
    model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match=r"layers of a gpt2 model.*set `train\.gradient_checkpointing: false`"):
        checkpoint_layers(model, "train.gradient_checkpointing")
