"""What is kept of a batch of windows: the columns of the tables `positions` and `hidden`.

Shapes: B windows of a batch, L positions of a window, N positions of a batch without padding, R rows of the output
matrix, T hidden size, S captured layers, E experts, O ids that stand for no text.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from moe_distill.config.profile import Capture
from moe_distill.errors import DataError
from moe_distill.losses.output_head import OutputHead
from moe_distill.shards.teacher_store import SCALE_MAXIMUM
from moe_distill.shards.value_checks import is_finite
from moe_distill.shards.window_store import WindowStore
from moe_distill.teacher.forward import States
from moe_distill.teacher.sparsify import Records, sparsify

CACHED_BYTES = 4 << 20  # of logits, which are gone over 35 times (planning/rates.py)
FP16_MAXIMUM = torch.finfo(torch.float16).max
OTHER_TEACHER = "use another revision of the teacher: its weights are damaged or overflow"


@dataclass(frozen=True)
class Batch:
    """Consecutive windows, padded to the right."""

    numbers: range  # of the windows
    input_ids_BL: Tensor  # prefix token, then all tokens but the last
    tokens: list[Tensor]  # of each window, [tokens]

    def __str__(self) -> str:
        return f"windows {self.numbers.start} to {self.numbers.stop - 1}"

    @property
    def lengths(self) -> list[int]:
        """Tokens of each window."""
        return [len(ids) for ids in self.tokens]

    def rows(self, values: Tensor) -> Tensor:
        """[B, L, ...] -> [N, ...]: without padding, in the order of the windows."""
        return torch.cat([values[number, :length] for number, length in enumerate(self.lengths)])


def position_columns(
    batch: Batch, states: States, head: OutputHead, textless_ids_O: Tensor, params: Capture, seed: int
) -> tuple[dict[str, Tensor], float]:
    """The columns of table `positions`, and the sum over positions of the probability of all ids without text.

    Raises:
        DataError: a logit is not finite.
    """
    final_NT = batch.rows(states.final_BLT)
    targets_N = torch.cat(batch.tokens).to(final_NT.device)
    generator = torch.Generator().manual_seed(_stable_hash(seed, batch.numbers.start))
    uniforms_N = torch.rand(len(final_NT), generator=generator).to(final_NT.device)
    records, textless_probability = [], 0.0
    for hidden, targets, uniforms in _chunks(params.chunk_positions, final_NT, targets_N, uniforms_N):
        whole = head.logits(hidden)  # fp32: an fp16 product alone costs 0.02 in log-probability
        for logits, next_ids, offsets in _chunks(_rows_at_once(whole), whole, targets, uniforms):
            if not is_finite(logits):
                raise DataError(f"the teacher gives non-finite logits in {batch}", fix=OTHER_TEACHER)
            record = sparsify(logits, next_ids, params.k, params.tail_samples, offsets)
            beside_largest_NO = logits[:, textless_ids_O] - logits.gather(1, record.topk_ids[:, :1])
            textless_probability += float((beside_largest_NO + record.topk_logprobs[:, :1]).exp().sum())
            records.append(record)
    columns = {field.name: torch.cat([getattr(record, field.name) for record in records]) for field in fields(Records)}
    return columns, textless_probability


def _chunks(size: int, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield `size` rows of every column at a time; as many rows of logits exist at once."""
    return zip(*(column.split(size) for column in columns), strict=True)


def _rows_at_once(logits_NR: Tensor) -> int:
    """How many rows are made sparse at a time: as many as a CPU's cache holds, all on a GPU."""
    in_cache = CACHED_BYTES // (logits_NR.shape[1] * logits_NR.element_size())
    return max(1, in_cache if logits_NR.device.type == "cpu" else len(logits_NR))


def hidden_columns(batch: Batch, states: States, windows: WindowStore, params: Capture, seed: int) -> dict[str, Tensor]:
    """The columns of table `hidden`: one run of positions of each chosen window."""
    places = [
        (number, run)
        for number, window in enumerate(batch.numbers)
        if (run := run_of(window, batch.lengths[number], params, seed)) is not None
    ]
    rows = [torch.arange(run.start, run.stop) + windows.span(batch.numbers[n]).start for n, run in places]
    columns = {"hidden_rows": torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)}

    def picked(values: Tensor) -> Tensor:
        parts = [values[number, run.start : run.stop] for number, run in places]
        return torch.cat(parts) if parts else values[0, :0]

    columns["hidden"], columns["hidden_scales"] = scaled(picked(states.hidden_BLST))
    if states.moe_input_BLT is not None and states.router_logits_BLE is not None:
        columns["moe_input"], columns["moe_input_scales"] = scaled(picked(states.moe_input_BLT))
        columns["router_logits"] = picked(states.router_logits_BLE)[:, None]
    return columns


def run_of(window: int, length: int, params: Capture, seed: int) -> range | None:
    """The run of positions of a window whose states are kept; None: the window keeps none.

    Window number, length and seed decide, so that a resumed capture keeps the same runs.
    """
    number = _stable_hash(seed, window)
    chosen = (number >> 31) / 2**32 < params.hidden_fraction  # the upper 32 of 63 bits
    if not chosen or length < params.hidden_run:
        return None
    start = (number & 0x7FFFFFFF) % (length - params.hidden_run + 1)
    return range(start, start + params.hidden_run)


def _stable_hash(seed: int, number: int) -> int:
    """63 bits that depend on seed and number alone, in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8], "big") >> 1


def scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """fp16 values, and an fp32 scale for each row: value = stored * scale, where the largest |stored| is 2^15."""
    scales = values.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny * SCALE_MAXIMUM) / SCALE_MAXIMUM
    return (values / scales[..., None]).half(), scales


def fitted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in their stored dtype; those beyond fp16 become its extreme, as exp(-65504) is 0 all the same."""
    return values.clamp(-FP16_MAXIMUM, FP16_MAXIMUM).half() if dtype is torch.float16 else values.to(dtype)
