"""What the teacher says over one student window, made from the cache alone and kept for later epochs."""

from dataclasses import dataclass
from operator import itemgetter

from torch import Tensor
from torch.nn import functional as F

from moe_distill.config.params import ExperimentParams, KdOrder, KdTail
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.window_store import WindowStore
from moe_distill.targets.canonical import NO_TOKEN
from moe_distill.targets.last_tokens import (
    LAST_FIELDS,
    LastTokens,
    check_last_tokens,
    continuations,
    with_continuations,
)
from moe_distill.targets.sparse_target import NextTokens, SparseTarget, sparse_target
from moe_distill.targets.teacher_rows import read_rows
from moe_distill.targets.token_shares import VocabularyMap
from moe_distill.utils.tensors import map_tensors


@dataclass(frozen=True)
class TargetSettings:
    """How cached rows become targets."""

    temperature: float
    order: KdOrder
    tail: KdTail
    follows_text: bool = True  # whether the teacher's next token goes to the text's own; False: the map alone decides


def target_settings(experiment: ExperimentParams) -> TargetSettings:
    """As an experiment asks for them."""
    return TargetSettings(experiment.temperature, experiment.kd_order, experiment.kd_tail)


def asks_inside_tokens(experiment: ExperimentParams) -> bool:
    """Whether an experiment asks for targets inside the teacher's tokens, which are defined at T = 1 alone."""
    return experiment.kd_positions == "auto" and experiment.temperature == 1.0


class WindowTargets:
    """The targets of a split's student windows, by number.

    A target does not depend on which other windows are asked for, nor on whether it was kept.

    Args:
        vocabulary_map: with beginnings (at T = 1, and where the text is followed), the last teacher tokens may go on.
        memory_bytes: what is kept of finished targets; once it is full, all others are made again each time.
    """

    def __init__(
        self,
        windows: WindowStore,
        shards: ShardReader,
        vocabulary_map: VocabularyMap,
        settings: TargetSettings,
        memory_bytes: int = 0,
    ) -> None:
        self._windows, self._shards, self._vocabulary_map = windows, shards, vocabulary_map
        self._settings, self._free_bytes = settings, memory_bytes
        self._kept: dict[int, SparseTarget] = {}
        if vocabulary_map.beginnings is not None:
            assert settings.temperature == 1.0
            assert settings.follows_text
            check_last_tokens(windows, vocabulary_map.beginnings)

    def of(self, window: int) -> SparseTarget:
        """The target of each position of a window, in order."""
        if window in self._kept:
            return self._kept[window]
        target = self._made(window)
        if target.nbytes <= self._free_bytes:
            self._free_bytes -= target.nbytes
            self._kept[window] = target
        return target

    def _made(self, window: int) -> SparseTarget:
        rows_N, next_teacher_ids_N, ids_N = (
            self._windows.tokens(name, window).long() for name in ("teacher_rows", "next_teacher_ids", "token_ids")
        )
        previous_ids_N = F.pad(ids_N[:-1], (1, 0), value=NO_TOKEN)
        has_target_N = rows_N >= 0
        settings, text = self._settings, None
        if settings.follows_text:
            text = NextTokens(next_teacher_ids_N[has_target_N], ids_N[has_target_N])
        target = sparse_target(
            read_rows(self._shards, rows_N[has_target_N]),
            has_target_N,
            self._vocabulary_map,
            settings.temperature,
            settings.order,
            settings.tail,
            text,
            previous_ids_N[has_target_N],
        )
        beginnings = self._vocabulary_map.beginnings
        if beginnings is None:
            return target
        positions_P, last = self._last_tokens(window, previous_ids_N, ids_N)
        return with_continuations(target, positions_P, continuations(last, beginnings))

    def _last_tokens(self, window: int, previous_ids_N: Tensor, next_ids_N: Tensor) -> tuple[Tensor, LastTokens]:
        """The positions of a window that have a last teacher token, int64 [P], and those."""
        rows_N, ids_N, n_read_N = (self._windows.tokens(name, window).long() for name in LAST_FIELDS)
        positions_P = (rows_N >= 0).nonzero().squeeze(1)
        numbers, place_P = rows_N[positions_P].unique(return_inverse=True)
        rows = map_tensors(read_rows(self._shards, numbers), itemgetter(place_P))
        columns = (ids_N, n_read_N, previous_ids_N, next_ids_N)
        return positions_P, LastTokens(rows, *(each_N[positions_P] for each_N in columns))
