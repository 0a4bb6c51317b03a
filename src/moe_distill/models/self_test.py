"""Whether the parts of a model that the pipeline runs one by one give what the model itself gives.

Shapes: B windows, L positions, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.errors import DataError
from moe_distill.models.config_checks import check_windows, find_positions
from moe_distill.models.decoder import ANOTHER, Decoder, find_decoder, recorded_states

MOST_CHANGED = 512  # positions of the windows whose last token is changed
COMPARED = 64  # positions of a window whose logits are compared: as many rows of the vocabulary exist at once
EXACT = 1e-5  # largest difference, as a share of the largest value: rounding of fp32, and no factor or cap
UNCHANGED = 1e-4  # the same: experts may sum the tokens of another batch in another order, in every layer


@dataclass(frozen=True)
class SelfTest:
    """What a model that passed differs by, as shares of the largest value."""

    logit_error: float
    causality_error: float


@torch.inference_mode()
def self_test(model: PreTrainedModel, name: str, window_length: int, seed: int) -> SelfTest:
    """Run two random windows through a model and through its parts, in fp32.

    Args:
        name: what the user calls the model, for errors.
        window_length: positions of the longest window, prefix token included.

    Raises:
        ConfigError: the windows are longer than the model's positions.
        DataError: the model cannot run on token ids alone; logits
            made of the parts are not the model's; states inside have another size; or a state depends on a later token.
    """
    kind = model.config.model_type
    check_windows(find_positions(model.config), kind, name, window_length)
    try:
        decoder = find_decoder(model)
        depth, length = len(decoder.layers), min(window_length, MOST_CHANGED)
        ids_BL = random_windows(decoder, window_length, seed)
        changing_BL, short_BL = ids_BL[:, :length], ids_BL[:, :COMPARED]
        decoder.body(input_ids=ids_BL[:1], use_cache=False)
        causality_error = _causality_error(decoder, changing_BL)
        if not causality_error <= UNCHANGED:  # a tie between two experts can fall either way, but not twice
            another_BL = random_windows(decoder, length, seed + 1)
            causality_error = min(causality_error, _causality_error(decoder, another_BL))
        with recorded_states(decoder, [0, 1, depth]) as layers:
            states = decoder.body(input_ids=short_BL, use_cache=False).last_hidden_state
        own = model(input_ids=short_BL, use_cache=False).logits.float()
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise DataError(f"{name}, a {kind} model, cannot be run on token ids alone", _line(error), ANOTHER) from error
    rows, size = decoder.head.weight_VD.shape
    if states.shape != (*short_BL.shape, size):
        what = f"{name}, a {kind} model, has other modules between its states and its output matrix"
        raise DataError(what, f"its states are {tuple(states.shape[1:])}, the matrix is [{rows}, {size}]", ANOTHER)
    for number, state in layers.items():
        if state.shape != states.shape:
            what = f"{name}, a {kind} model, has states of another size inside than its output matrix reads"
            raise DataError(what, f"after layer {number} {tuple(state.shape[1:])}, {tuple(states.shape[1:])}", ANOTHER)
    if not causality_error <= UNCHANGED:
        raise DataError(
            f"{name}, a {kind} model, looks ahead",
            f"another last token changes earlier states by {causality_error:.1%} of the largest",
            "choose a model that reads from left to right; of an encoder, set `is_decoder` in its config.json",
        )
    logit_error = _largest_difference(decoder.head.logits(states), own)
    if not logit_error <= EXACT:
        raise DataError(
            f"{name}, a {kind} model, makes logits in a way that is not known",
            f"its own and those of its states differ by {logit_error:.1%} of the largest; {_logit_keys(model)}",
            ANOTHER,
        )
    return SelfTest(logit_error, causality_error)


def random_windows(decoder: Decoder, length: int, seed: int) -> Tensor:
    """Two windows of random ids, int64 [2, length], on the model's device."""
    weight_VD = decoder.head.weight_VD
    ids_BL = torch.randint(len(weight_VD), (2, length), generator=torch.Generator().manual_seed(seed))
    return ids_BL.to(weight_VD.device)


def _causality_error(decoder: Decoder, ids_BL: Tensor) -> float:
    """How far another last token moves the states before it."""
    changed_BL = ids_BL.clone()
    changed_BL[:, -1] = (changed_BL[:, -1] + 1) % len(decoder.head.weight_VD)
    before, after = (
        decoder.body(input_ids=each, use_cache=False).last_hidden_state[:, :-1] for each in (ids_BL, changed_BL)
    )
    return _largest_difference(after, before)


def _largest_difference(found: Tensor, truth: Tensor) -> float:
    if found.shape != truth.shape:
        return float("inf")
    return float((found - truth).abs().max() / truth.abs().max().clamp_min(1e-30))


def _logit_keys(model: PreTrainedModel) -> str:
    """Keys of the configuration that may say how logits are made."""
    settings: dict[str, object] = model.config.to_dict()
    parts = ("logit", "softcap", "soft_cap", "lm_head", "multiplier", "scaling")
    named = [f"{key} {value}" for key, value in sorted(settings.items()) if any(part in key for part in parts)]
    return f"config.json has {', '.join(named) or 'no key about logits'}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
