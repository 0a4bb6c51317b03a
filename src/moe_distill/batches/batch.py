"""What one forward pass of the student is given; docs/architecture.md has the shape letters."""

from dataclasses import dataclass, fields

from torch import Tensor

from moe_distill.losses.text_loss import Text
from moe_distill.utils.tensors import map_tensors


@dataclass(frozen=True)
class HiddenRuns:
    """Teacher states at runs of aligned positions, upcast to fp32; N of the P positions of all runs are real."""

    places_WP: Tensor  # int64: position in the flattened [B * L], ascending; 0 where padded
    mask_WP: Tensor  # bool
    filled_N: Tensor  # int64: the real positions in the flattened [W * P]
    states_WPST: Tensor  # residual stream at the captured layers
    moe_input_WPT: Tensor | None  # None: the teacher's last block is dense
    router_logits_NE: Tensor | None  # the teacher's own
    gate_noise_NE: Tensor | None  # standard normal, of the step and the window alone, however a step is split

    def packed(self, values_WP: Tensor) -> Tensor:
        """[W, P, ...] -> [N, ...] without padding."""
        return values_WP.flatten(0, 1).index_select(0, self.filled_N)

    def padded(self, values_N: Tensor) -> Tensor:
        """[N, ...] -> [W, P, ...], 0 where padded."""
        zeros = values_N.new_zeros(self.mask_WP.numel(), *values_N.shape[1:])
        return zeros.index_copy(0, self.filled_N, values_N).view(*self.mask_WP.shape, *values_N.shape[1:])


@dataclass(frozen=True)
class Counts:
    """What sums of losses are divided by, over a whole optimizer step or validation set."""

    tokens: int = 0
    with_target: int = 0  # positions that have one
    hidden: int = 0  # positions with teacher states
    n_bytes: int = 0
    places: int = 0  # padding included

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def padding_share(self) -> float:
        return 1.0 - self.tokens / self.places


@dataclass(frozen=True)
class Batch:
    """Some windows; N positions predict a token."""

    windows: tuple[int, ...]  # their numbers
    input_ids_BL: Tensor  # prefix token, then all tokens but the last, padded to the right
    places_N: Tensor  # int64: the predicting positions in the flattened [B * L]
    text: Text
    runs: HiddenRuns | None
    counts: Counts
    dropout_seed: int  # of the step and the windows, whichever process reads them

    def pin_memory(self) -> "Batch":
        """Called by a DataLoader that pins: copies to a GPU then need not wait."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())
