"""Tune a teacher's adapters on windows of training text, resumable at every checkpoint.

The objective is the next-token cross-entropy under the model's own logits, and for a model that was trained with a
load-balancing loss that loss too, under its own weight. Whatever is random is a function of seed and step.
Shapes: B windows of a micro-batch, L positions of a padded window, N real positions of it, R rows of the output matrix,
E experts.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from moe_distill.batches.batch_order import batches_from
from moe_distill.config.model_keys import TeacherCorrection
from moe_distill.correction.held_out import real_positions
from moe_distill.correction.moe_modules import find_moe_modules
from moe_distill.errors import DataError, DivergenceError
from moe_distill.log import log, progress
from moe_distill.losses.auxiliary import router_auxiliary_loss
from moe_distill.models.checkpointing import checkpoint_layers
from moe_distill.shards.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from moe_distill.shards.window_store import WindowStore, model_inputs
from moe_distill.utils.device import Runtime, update_loss_scale
from moe_distill.utils.learning_rate import warmup_cosine
from moe_distill.utils.signals import postponed_signals

WARMUP_SHARE = 0.05  # of the steps
FINAL_LEARNING_RATE_SHARE = 0.1  # of the learning rate, at the last step
ADAM_BETAS = (0.9, 0.95)
GRADIENT_CLIP = 1.0
MAX_CONSECUTIVE_NONFINITE = 20
LOSS_LINES = 20  # of a whole run, spread evenly; how far it has got is told by `progress`


class Counters(BaseModel):
    """The part of a checkpoint that is not tensors."""

    model_config = ConfigDict(extra="forbid")

    positions: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    consecutive_nonfinite: int = 0
    scaler: dict[str, int | float] = {}


@dataclass(frozen=True)
class _Balance:
    """The load-balancing loss that a model was trained with."""

    weight: float
    experts_per_token: int


def tune(
    model: PreTrainedModel,
    adapters: dict[str, nn.Parameter],
    windows: WindowStore,
    params: TeacherCorrection,
    seed: int,
    runtime: Runtime,
    work: Path,
) -> Counters:
    """Train the adapters in place; continue from the newest valid checkpoint in `work`.

    SIGTERM or Ctrl-C ends it after the step it is in, with a checkpoint.

    Args:
        model: with the adapters in it, all else frozen.
        windows: the teacher's training windows.

    Raises:
        DataError: fewer windows than one batch.
        DivergenceError: too many steps in a row were not finite.
    """
    if len(windows) < params.batch_windows:
        raise DataError(
            f"the training split has {len(windows)} teacher windows, one batch has {params.batch_windows}",
            fix="lower `models.teacher_correction.batch_windows`, or raise `windows.train_fraction`",
        )
    optimizer = torch.optim.AdamW(
        adapters.values(), lr=params.learning_rate, betas=ADAM_BETAS, weight_decay=0.0, fused=True
    )
    scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.scales_loss)
    names: dict[Tensor, str] = {parameter: name for name, parameter in adapters.items()}
    first_step, counters = _restore(work, adapters, names, optimizer, scaler)
    balance = _balance(model)
    if params.gradient_checkpointing:
        checkpoint_layers(model, "models.teacher_correction.gradient_checkpointing")
    model.train()
    batches = batches_from(windows.token_counts, params.batch_windows, seed, first_step)
    warmup_steps = max(1, round(WARMUP_SHARE * params.steps))
    with (
        postponed_signals() as postponed,
        progress(params.steps, "teacher_correction", done=first_step) as advance,
    ):
        for step in range(first_step, params.steps):
            began = time.perf_counter()
            torch.manual_seed(seed * 1_000_003 + step)  # of dropout, where the model has any
            share = warmup_cosine(step, warmup_steps, params.steps, FINAL_LEARNING_RATE_SHARE)
            optimizer.param_groups[0]["lr"] = params.learning_rate * share
            numbers = next(batches)
            nats = _step(model, windows, numbers, params.micro_batch_windows, balance, optimizer, scaler, counters)
            if step == 0:
                _warn_of_unreached(adapters)
            done, positions = step + 1, int(windows.token_counts[numbers].sum())
            counters.positions += positions
            counters.seconds += time.perf_counter() - began
            advance(tokens=positions)
            if done in (1, params.steps) or done * LOSS_LINES % params.steps < LOSS_LINES:
                _say(done, params.steps, nats, counters)
            if done % params.checkpoint_every == 0 or done == params.steps or postponed.arrived:
                save_checkpoint(work, _checkpoint(done, adapters, names, optimizer, scaler, counters))
            postponed.obey()
    model.eval()
    return counters


def _step(
    model: PreTrainedModel,
    windows: WindowStore,
    numbers: list[int],
    micro_batch_windows: int,
    balance: _Balance | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    counters: Counters,
) -> float:
    """One optimizer step over all windows of a batch; returns its mean negative log-likelihood, nats a token.

    Raises:
        DivergenceError: see `tune`.
    """
    optimizer.zero_grad(set_to_none=True)
    n_tokens, nll_of_step = int(windows.token_counts[numbers].sum()), []
    for start in range(0, len(numbers), micro_batch_windows):
        nll, loss = _losses(model, windows, numbers[start : start + micro_batch_windows], n_tokens, balance)
        scaler.scale(loss).backward()
        nll_of_step.append(nll)
    scaler.unscale_(optimizer)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    norm, nats = float(torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)), float(torch.stack(nll_of_step).sum())
    applied = math.isfinite(norm) and math.isfinite(nats)
    if applied:
        optimizer.step()
        counters.consecutive_nonfinite = 0
    else:
        counters.skipped_steps += 1
        counters.consecutive_nonfinite += 1
    update_loss_scale(scaler, applied, scaler.get_scale())
    if counters.consecutive_nonfinite >= MAX_CONSECUTIVE_NONFINITE:
        raise DivergenceError(
            f"teacher_correction: {counters.consecutive_nonfinite} steps in a row were not finite",
            f"gradient norm {norm}, loss {nats}",
            "lower `models.teacher_correction.learning_rate`",
        )
    return nats


def _losses(
    model: PreTrainedModel, windows: WindowStore, numbers: list[int], n_tokens: int, balance: _Balance | None
) -> tuple[Tensor, Tensor]:
    """The share of a micro-batch in a step's cross-entropy, for the log, and in its whole loss."""
    input_ids_BL, tokens = model_inputs(windows, numbers)
    places_N = real_positions(tokens).flatten().nonzero().squeeze(1).to(model.device)
    targets_N = torch.cat(tokens).to(model.device)
    asked = {} if balance is None else {"output_router_logits": True}
    output = model(input_ids=input_ids_BL.to(model.device), use_cache=False, **asked)
    logits_NR = output.logits.flatten(0, 1).index_select(0, places_N).float()
    nll = F.cross_entropy(logits_NR, targets_N, reduction="sum") / n_tokens
    if balance is None:
        return nll.detach(), nll
    n_positions = input_ids_BL.numel()
    of_layers = [each.reshape(n_positions, -1).index_select(0, places_N).float() for each in output.router_logits]
    uneven = router_auxiliary_loss(of_layers, balance.experts_per_token) * len(targets_N) / n_tokens
    return nll.detach(), nll + balance.weight * uneven


def _balance(model: PreTrainedModel) -> _Balance | None:
    """The model's own load-balancing loss; None: it is dense, was trained without one, or shows no router's logits."""
    config = model.config
    weight = float(getattr(config, "router_aux_loss_coef", None) or 0.0)
    if not weight or not hasattr(config, "output_router_logits") or not find_moe_modules(model).experts:
        return None
    with torch.no_grad():  # its layers alone: a language model computes that loss too, and fails where it has no logits
        one_id = torch.zeros(1, 1, dtype=torch.int64).to(model.device)
        shown = model.base_model(one_id, output_router_logits=True, use_cache=False)
    if not shown.router_logits:
        log("teacher_correction: without the load-balancing loss: no layer of this model shows its router's logits")
        return None
    return _Balance(weight, int(config.num_experts_per_tok))


def _warn_of_unreached(adapters: dict[str, nn.Parameter]) -> None:
    """Name adapters that the loss does not depend on: their layer's weights are read past them."""
    unreached = sorted(name for name, each in adapters.items() if each.grad is None)
    if unreached:
        log(f"warning: {len(unreached)} of {len(adapters)} adapters got no gradient, such as {unreached[0]}")


def _say(step: int, steps: int, nats: float, counters: Counters) -> None:
    speed = counters.positions / max(counters.seconds, 1e-9)
    skipped = f", {counters.skipped_steps} skipped" if counters.skipped_steps else ""
    log(f"teacher_correction: step {step:,} of {steps:,}, loss {nats:.3f} nats/token, {speed:,.0f} tokens/s{skipped}")


def _checkpoint(
    step: int,
    adapters: dict[str, nn.Parameter],
    names: dict[Tensor, str],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    counters: Counters,
) -> Checkpoint:
    tensors = {f"weight:{name}": each.detach() for name, each in adapters.items()}
    tensors |= optimizer_tensors(optimizer, names)
    state = counters.model_copy(update={"scaler": scaler.state_dict()})
    return Checkpoint(step, {name: each.cpu() for name, each in tensors.items()}, state.model_dump(mode="json"))


def _restore(
    work: Path,
    adapters: dict[str, nn.Parameter],
    names: dict[Tensor, str],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> tuple[int, Counters]:
    """Put the newest checkpoint back, if there is one; returns the steps that are done."""
    checkpoint = newest_checkpoint(work)
    if checkpoint is None:
        return 0, Counters()
    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.copy_(checkpoint.tensors[f"weight:{name}"])
    restore_optimizer(optimizer, names, checkpoint.tensors)
    counters = Counters.model_validate(checkpoint.state)
    if counters.scaler:
        scaler.load_state_dict(counters.scaler)
    log(f"teacher_correction: resumed at step {checkpoint.step}")
    return checkpoint.step, counters
