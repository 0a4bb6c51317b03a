"""What a teacher says of validation text, and which experts it asks: before the correction and after it.

Shapes: B windows of a batch, L positions of a padded window, N positions of a batch, R rows of the output matrix.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from moe_distill.correction.moe_modules import find_moe_modules
from moe_distill.errors import DataError
from moe_distill.log import progress_bar
from moe_distill.shards.window_store import WindowStore, model_inputs


class HeldOut(BaseModel):
    """A teacher on some validation windows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits_per_byte: float
    expert_shares: list[list[float]]  # for each layer with experts: the share of all choices that each expert gets


@torch.inference_mode()
def measure(model: PreTrainedModel, store: WindowStore, numbers: list[int], batch_windows: int) -> HeldOut:
    """Bits per byte of windows under the model's own logits, and the use of its experts.

    Raises:
        DataError: a logit is not finite.
    """
    model.eval()
    nats, counts = 0.0, dict[str, Tensor]()
    starts = range(0, len(numbers), batch_windows)
    for start in progress_bar(starts, len(starts), "teacher_correction: validation"):
        input_ids_BL, tokens = model_inputs(store, numbers[start : start + batch_windows])
        input_ids_BL, real_BL = input_ids_BL.to(model.device), real_positions(tokens).to(model.device)
        with _counted_choices(model, real_BL, counts):
            logits_BLR = model(input_ids=input_ids_BL, use_cache=False).logits
        targets_N = torch.cat(tokens).to(model.device)
        nats += float(F.cross_entropy(logits_BLR[real_BL].float(), targets_N, reduction="sum"))
    if not nats < float("inf"):
        raise DataError(
            "the teacher gives non-finite logits on validation text",
            f"{str(model.dtype).removeprefix('torch.')} may be too narrow for it",
            "set `teacher.precision`, or use another revision of the teacher",
        )
    shares = [(each / each.sum()).tolist() for each in counts.values()]
    n_bytes = int(store.byte_counts[numbers].sum())
    return HeldOut(bits_per_byte=nats / math.log(2) / n_bytes, expert_shares=shares)


def real_positions(tokens: list[Tensor]) -> Tensor:
    """Which positions of padded windows stand for a token of text: bool [B, L]."""
    lengths_B1 = torch.tensor([[len(each)] for each in tokens])
    return torch.arange(int(lengths_B1.max())) < lengths_B1


@contextmanager
def _counted_choices(model: nn.Module, real_BL: Tensor, counts: dict[str, Tensor]) -> Iterator[None]:
    """Inside the block, add how often each expert of each layer is chosen at real positions to `counts`, by layer.

    Modules of fused experts are given the chosen experts' numbers beside the states; a family that passes something
    else is not counted.
    """

    def counter(name: str, n_experts: int) -> object:
        def count(_module: nn.Module, arguments: tuple[object, ...], keywords: dict[str, object]) -> None:
            for each in (*arguments, *keywords.values()):
                if isinstance(each, Tensor) and each.dtype == torch.int64 and len(each) == real_BL.numel():
                    chosen = each[real_BL.flatten()].flatten()
                    counts[name] = counts.get(name, 0) + chosen.bincount(minlength=n_experts)[:n_experts].cpu().double()
                    return

        return count

    experts = find_moe_modules(model).experts
    handles = [
        model.get_submodule(name).register_forward_pre_hook(counter(name, n), with_kwargs=True)  # type: ignore[arg-type]
        for name, n in experts.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
