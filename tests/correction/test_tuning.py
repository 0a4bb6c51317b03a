"""The steps: the same however they are split and wherever they are broken off; a reference computes the first one."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from moe_distill.batches.batch_order import batches_from
from moe_distill.correction import tuning
from moe_distill.correction.adapters import adapter_parameters, attach_adapters
from moe_distill.correction.tuning import Counters, tune
from moe_distill.errors import DataError, DivergenceError
from moe_distill.losses.auxiliary import router_auxiliary_loss
from moe_distill.shards.window_store import WindowStore, model_inputs
from moe_distill.utils.device import Runtime
from tests.correction.conftest import PARAMS
from tests.models.families import make_model
from tests.teacher.conftest import SIZES, VOCABULARY, make_teacher, windows

__all__ = ["windows"]

CPU = Runtime(torch.device("cpu"), torch.float32)
SEED = 5


def tuned(
    model: PreTrainedModel, windows: WindowStore, work: Path, **changes: object
) -> tuple[dict[str, torch.Tensor], Counters]:
    """The trained weights of all adapters, and the counters."""
    params = PARAMS.model_copy(update={"batch_windows": 4, "micro_batch_windows": 4, "steps": 3} | changes)
    adapters = adapter_parameters(attach_adapters(model, params, seed=0))
    counters = tune(model, adapters, windows, params, SEED, Runtime(torch.device("cpu"), model.dtype), work)
    return {name: each.detach().clone() for name, each in adapters.items()}, counters


def with_balance(weight: float) -> PreTrainedModel:
    model = make_teacher("qwen3_moe")
    model.set_experts_implementation("eager")
    model.config.router_aux_loss_coef = weight
    return model


def test_a_model_that_shows_no_routers_logits_is_tuned_without_the_balance(
    windows: WindowStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model("deepseek_v4", VOCABULARY)  # so small that all its layers route by a hash
    assert model.config.router_aux_loss_coef
    tuned(model, windows, tmp_path)
    assert "without the load-balancing loss" in capsys.readouterr().out


def test_a_model_without_any_attention_is_asked_for_its_routers_logits() -> None:
    """Jamba's first layers are Mamba's alone; the cache of such a model has no length to ask for."""
    model = make_model("jamba", VOCABULARY)
    assert "attention" not in model.config.layers_block_type
    balance = tuning._balance(model)
    assert balance is not None
    assert balance.experts_per_token == model.config.num_experts_per_tok


def test_the_loss_scale_of_the_steps_has_its_floor(windows: WindowStore) -> None:
    """Twenty steps that are not finite end the tuning; the scale would be 0.06 by then."""
    model = make_teacher("qwen3_moe").half()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.inf)
    adapters = adapter_parameters(attach_adapters(model, PARAMS, seed=0))
    scaler = torch.amp.GradScaler("cpu", init_scale=1.5)
    optimizer, counters = torch.optim.AdamW(adapters.values()), Counters()
    for _ in range(3):
        tuning._step(model, windows, [0], 1, None, optimizer, scaler, counters)
    assert counters.skipped_steps == 3
    assert scaler.get_scale() == 1.0


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_first_gradient_is_that_of_a_reference(
    weight: float, windows: WindowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-entropy of the tokens, one window at a time; and the balance of each micro-batch's real positions."""
    monkeypatch.setattr(tuning, "GRADIENT_CLIP", 1e9)
    model, gradients = with_balance(weight), dict[str, torch.Tensor]()
    params = PARAMS.model_copy(update={"batch_windows": 4, "micro_batch_windows": 2, "steps": 1})
    adapters = adapter_parameters(attach_adapters(model, params, seed=0))
    numbers = next(batches_from(windows.token_counts, 4, SEED, 0))
    total = int(windows.token_counts[numbers].sum())
    expected: torch.Tensor = torch.zeros(())
    for part in (numbers[:2], numbers[2:]):
        routed: list[list[torch.Tensor]] = []
        for number in part:
            inputs, [tokens] = model_inputs(windows, [number])
            output = model(input_ids=inputs, output_router_logits=True)
            expected = expected + F.cross_entropy(output.logits[0], tokens, reduction="sum") / total
            routed.append(list(output.router_logits))
        layers = [torch.cat(parts) for parts in zip(*routed, strict=True)]
        share = sum(len(windows.tokens("token_ids", number)) for number in part) / total
        expected = expected + weight * share * router_auxiliary_loss(layers, 2)
    expected.backward()
    reference = {name: each.grad.clone() for name, each in adapters.items() if each.grad is not None}
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *arguments: object) -> object:
        gradients.update({name: each.grad.clone() for name, each in adapters.items() if each.grad is not None})
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    tune(model, adapters, windows, params, SEED, CPU, tmp_path)
    assert gradients.keys() == reference.keys() == adapters.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference[name], atol=1e-5, rtol=1e-3)
    assert max(float(each.abs().max()) for each in reference.values()) > 1e-3


@pytest.mark.parametrize("changes", [{"micro_batch_windows": 1}, {"gradient_checkpointing": True}])
def test_split_steps_and_layers_computed_twice_change_nothing(
    changes: dict[str, object], windows: WindowStore, tmp_path: Path
) -> None:
    whole, counters = tuned(with_balance(0.0), windows, tmp_path / "whole")
    other, _ = tuned(with_balance(0.0), windows, tmp_path / "other", **changes)
    for name, weight in whole.items():
        torch.testing.assert_close(other[name], weight, atol=2e-4, rtol=1e-3)
    assert counters.positions == sum(
        int(windows.token_counts[numbers].sum())
        for numbers, _ in zip(batches_from(windows.token_counts, 4, SEED, 0), range(3), strict=False)
    )


def test_layers_computed_twice_keep_the_balancing_loss(windows: WindowStore, tmp_path: Path) -> None:
    whole, _ = tuned(with_balance(2.0), windows, tmp_path / "whole")
    twice, _ = tuned(with_balance(2.0), windows, tmp_path / "twice", gradient_checkpointing=True)
    without, _ = tuned(with_balance(0.0), windows, tmp_path / "without")
    for name, weight in whole.items():
        torch.testing.assert_close(twice[name], weight, atol=2e-4, rtol=1e-3)
    assert max(float((without[name] - weight).abs().max()) for name, weight in whole.items()) > 1e-3


def test_the_rate_warms_up_and_falls_by_half_a_cosine_and_layers_are_in_training_mode(
    windows: WindowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "WARMUP_SHARE", 0.5)
    model, step = make_teacher("dense"), torch.optim.AdamW.step
    assert not model.training
    rates, is_training = list[float](), list[bool]()

    def noted(self: torch.optim.AdamW, *arguments: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        is_training.append(model.training)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    tuned(model, windows, tmp_path, steps=4, learning_rate=2e-2)
    assert rates == pytest.approx([1e-2, 2e-2, 2e-2, 2e-2 * (0.1 + 0.9 / 2)])  # ends, after four, at a tenth
    assert is_training == [True] * 4
    assert not model.training


def with_dropout() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    assert config.resid_pdrop > 0.0
    return GPT2LMHeadModel(config)


def in_fp16() -> PreTrainedModel:
    """Frozen weights as on a 16 GB GPU; the loss is scaled."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48))
    nn.Module.half(model)
    return model


def test_a_teacher_in_fp16_learns_with_a_scaled_loss(windows: WindowStore, tmp_path: Path) -> None:
    in_fp32, _ = tuned(in_fp16().float(), windows, tmp_path / "fp32")
    weights, counters = tuned(in_fp16(), windows, tmp_path / "fp16")
    assert counters.skipped_steps == 0
    state = json.loads((tmp_path / "fp16/checkpoint_000003/state.json").read_text())
    assert state["scaler"]["scale"] > 1.0
    agree = [
        F.cosine_similarity(weight.flatten(), in_fp32[name].flatten(), dim=0)
        for name, weight in weights.items()
        if "lora_B" in name
    ]
    assert min(agree) > 0.9


def test_r21_the_scale_of_the_loss_survives_a_resume(
    windows: WindowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = tuning._losses

    def overflowing(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        nll, loss = losses(*arguments)  # type: ignore[arg-type]
        return nll, loss * float("inf")

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "_losses", overflowing)
        tuned(in_fp16(), windows, tmp_path, steps=1)
    tuned(in_fp16(), windows, tmp_path, steps=2)
    scales = [
        json.loads((tmp_path / f"checkpoint_00000{step}/state.json").read_text())["scaler"]["scale"] for step in (1, 2)
    ]
    assert scales == [2.0**15, 2.0**15]  # half of where it begins


@pytest.mark.parametrize("make", [with_dropout, lambda: with_balance(0.01), in_fp16])
@pytest.mark.parametrize("broken_after", [1, 2, 3, 4])
def test_r21_a_broken_off_tuning_ends_with_the_same_bits(
    make: Callable[[], PreTrainedModel],
    broken_after: int,
    windows: WindowStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unbroken, counters = tuned(make(), windows, tmp_path / "unbroken", steps=4)
    step, calls = tuning._step, 0

    def killed(*arguments: object) -> float:
        nonlocal calls
        calls += 1
        if calls > broken_after:
            raise KeyboardInterrupt
        return step(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "_step", killed)
        if broken_after < 4:
            with pytest.raises(KeyboardInterrupt):
                tuned(make(), windows, tmp_path / "broken", steps=4)
        else:
            tuned(make(), windows, tmp_path / "broken", steps=4)
    torch.manual_seed(99)  # whatever the process drew before
    resumed, again = tuned(make(), windows, tmp_path / "broken", steps=4)
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert again.positions == counters.positions


def test_a_signal_ends_it_after_the_step_with_a_checkpoint(
    windows: WindowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tuning._step

    def interrupted(*arguments: object) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(make_teacher("dense"), windows, tmp_path / "work", checkpoint_every=100)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["checkpoint_000001"]


def test_fewer_windows_than_a_batch_are_refused(windows: WindowStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 12 teacher windows, one batch has 16; lower `models\.teacher_correction"):
        tuned(make_teacher("dense"), windows, tmp_path, batch_windows=16)


def test_r22_steps_that_are_not_finite_are_skipped_and_a_run_of_them_ends_it(
    windows: WindowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, bad = tuning._losses, {0, 2}

    def sometimes(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        nll, loss = losses(*arguments)  # type: ignore[arg-type]
        factor = float("nan") if sometimes.calls in bad else 1.0  # type: ignore[attr-defined]
        sometimes.calls += 1  # type: ignore[attr-defined]
        return nll, loss * factor

    sometimes.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(tuning, "_losses", sometimes)
    weights, counters = tuned(make_teacher("dense"), windows, tmp_path / "some", steps=4)
    assert (counters.skipped_steps, counters.consecutive_nonfinite) == (2, 0)
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    monkeypatch.setattr(tuning, "MAX_CONSECUTIVE_NONFINITE", 3)
    bad |= set(range(99))
    with pytest.raises(DivergenceError, match=r"3 steps in a row were not finite.*learning_rate"):
        tuned(make_teacher("dense"), windows, tmp_path / "all", steps=9)


def test_r22_a_step_is_skipped_where_the_loss_alone_is_not_finite(
    windows: WindowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = tuning._losses

    def without_nll(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        nll, loss = losses(*arguments)  # type: ignore[arg-type]
        return nll * math.nan, loss

    monkeypatch.setattr(tuning, "_losses", without_nll)
    weights, counters = tuned(make_teacher("dense"), windows, tmp_path, steps=2)
    assert (counters.skipped_steps, counters.consecutive_nonfinite) == (2, 2)
    assert not any(bool(weight.any()) for name, weight in weights.items() if "lora_B" in name), "as at the beginning"


def test_adapters_past_which_weights_are_read_are_named(
    windows: WindowStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_teacher("dense")
    model.unused = nn.Linear(4, 4)
    tuned(model, windows, tmp_path, steps=1)
    said = capsys.readouterr().out
    assert "warning: 2 of 44 adapters got no gradient, such as base_model.model.unused.lora_A" in said
