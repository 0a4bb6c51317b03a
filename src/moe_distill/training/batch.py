"""What one forward pass of the student is given.

Legend: B windows, L positions, N positions that predict a token, A of them with a teacher target,
W windows with a run of teacher states, R positions of a run (padded), S captured layers, D teacher's hidden size,
J chunks. In runs, N are their real positions.
"""

from dataclasses import dataclass

from torch import Tensor

from moe_distill.shards.teacher_store import TeacherRows
from moe_distill.targets.inside import InsideText


@dataclass(frozen=True)
class HiddenRuns:
    """Teacher states at runs of aligned positions, upcast to fp32."""

    windows_W: Tensor  # int64: numbers of the windows
    places_WR: Tensor  # int64: position in the flattened [B * L], ascending; 0 where padded
    mask_WR: Tensor  # bool
    filled_N: Tensor  # int64: the real positions in the flattened [W * R]
    states_WRSD: Tensor  # residual stream at the captured layers
    moe_input_WRD: Tensor | None  # None: the teacher's last block is dense

    def packed(self, values_WR: Tensor) -> Tensor:
        """[W, R, ...] -> [N, ...] without padding."""
        return values_WR.flatten(0, 1)[self.filled_N]

    def padded(self, values_N: Tensor) -> Tensor:
        """[N, ...] -> [W, R, ...], 0 where padded."""
        zeros = values_N.new_zeros(self.mask_WR.numel(), *values_N.shape[1:])
        return zeros.index_copy(0, self.filled_N, values_N).view(*self.mask_WR.shape, *values_N.shape[1:])


@dataclass(frozen=True)
class Chunks:
    """Stretches of text between neighbouring common boundaries, where either model has more than one token."""

    chunk_of_N: Tensor  # int64: the chunk that each position's token belongs to; -1: none
    teacher_logprobs_J: Tensor  # fp32 [J]: the teacher's log-probability of each chunk's text


@dataclass(frozen=True)
class Inside:
    """The I positions inside a teacher token, and what the teacher said at the common boundary before."""

    positions_I: Tensor  # int64: numbers in [0, N), ascending
    rows: TeacherRows
    text: InsideText


@dataclass(frozen=True)
class Batch:
    input_ids_BL: Tensor  # prefix token, then all tokens but the last, padded to the right
    places_N: Tensor  # int64: the predicting positions in the flattened [B * L]
    labels_N: Tensor
    aligned_A: Tensor  # int64: numbers in [0, N) of the positions that have a target, ascending
    rows: TeacherRows | None  # of those A positions
    next_teacher_ids_A: Tensor  # int64: the teacher's next token at those positions
    runs: HiddenRuns | None
    inside: Inside | None
    chunks: Chunks | None
    n_bytes: int  # text bytes of the windows

    @property
    def counts(self) -> "Counts":
        hidden = 0 if self.runs is None else int(self.runs.mask_WR.sum())
        return Counts(
            tokens=len(self.labels_N),
            aligned=0 if self.rows is None else len(self.aligned_A),
            inside=0 if self.inside is None else len(self.inside.positions_I),
            hidden=hidden,
            chunks=0 if self.chunks is None else len(self.chunks.teacher_logprobs_J),
            n_bytes=self.n_bytes,
        )

    @property
    def previous_ids(self) -> Tensor:
        """The token that each predicting position has read last."""
        return self.input_ids_BL.flatten()[self.places_N]

    @property
    def padding_share(self) -> float:
        return 1.0 - len(self.labels_N) / self.input_ids_BL.numel()


@dataclass(frozen=True)
class Counts:
    """What sums of losses are divided by, over a whole optimizer step or validation set."""

    tokens: int
    aligned: int
    inside: int  # whether the target is known or not
    hidden: int
    chunks: int
    n_bytes: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.tokens + other.tokens,
            self.aligned + other.aligned,
            self.inside + other.inside,
            self.hidden + other.hidden,
            self.chunks + other.chunks,
            self.n_bytes + other.n_bytes,
        )


NO_COUNTS = Counts(0, 0, 0, 0, 0, 0)
