"""Targets at positions inside a teacher token, from the teacher in the loop: the best that a cache of them could give.

Where the text has written the first bytes of a teacher token, the teacher's distribution before that token says how it
goes on: of all tokens that begin with those bytes, each has its probability over that of them all. It goes to the first
token that the student makes of the bytes that are left; of the token that follows in the text to the text's own next
token. Tokens that end right here, and those below `LEAST`, are in one bucket with all ids that are not listed. What the
student's tokenizer would have joined to its last token is left out.

Shapes: N positions of a window, Z entries, V student vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from exact_targets import Window, window_of
from native import cross_entropy
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.vocabulary_map import first_student_ids
from moe_distill.shards.window_store import TEACHER_WINDOWS, WindowStore
from moe_distill.targets.canonical import MergeRules, may_follow
from moe_distill.targets.sparse_target import SparseTarget

LEAST = 1e-3  # of a token's share of those that begin with the written bytes


@dataclass(frozen=True)
class Inside:
    """The targets of some positions; their entries and residual sum to 1."""

    covered_N: Tensor  # bool
    residual_N: Tensor  # probability outside the entries
    positions_Z: Tensor
    ids_Z: Tensor
    probs_Z: Tensor


class InsideTargets:
    """Of the windows of a split, each made once.

    Args:
        windows: the student's.
        around: folder of the teacher's windows.
        encoders: of the student and of the teacher.
    """

    def __init__(
        self,
        windows: WindowStore,
        around: Path,
        encoders: tuple[Encoder, Encoder],
        teacher: PreTrainedModel,
        merges: MergeRules,
    ) -> None:
        self._stores, self._encoders = (windows, WindowStore(around, TEACHER_WINDOWS)), encoders
        self._teacher, self._merges = teacher, merges
        self._kept: dict[int, Inside] = {}
        self._beginning: dict[bytes, list[int]] = {}
        self._firsts: dict[bytes, int] = {}

    def of(self, number: int) -> Inside:
        """The targets of a window."""
        if number not in self._kept:
            self._kept[number] = self._made(number)
        return self._kept[number]

    def _made(self, number: int) -> Inside:
        window = window_of(self._stores, self._encoders, number)
        context = torch.tensor([[self._stores[1].prefix_id, *window.teacher_ids]])
        with torch.no_grad():
            probs_LR = self._teacher(input_ids=context, use_cache=False).logits[0].softmax(-1)
        unaligned = (self._stores[0].tokens("teacher_rows", number) < 0).nonzero().squeeze(1).tolist()
        residual_N = torch.zeros(len(window.student_ids))
        covered_N = torch.zeros(len(window.student_ids), dtype=torch.bool)
        entries: list[tuple[int, int, float]] = []
        for position in unaligned:
            start = int(window.student_starts[position])
            row = int(np.searchsorted(window.teacher_starts, start, "right")) - 1
            written = window.text[int(window.teacher_starts[row]) : start] if row >= 0 else b""
            if not written:
                continue
            probs, residual_N[position] = self._handed_out(window, position, row, written, probs_LR[row])
            covered_N[position] = True
            entries += [(position, student_id, prob) for student_id, prob in probs.items()]
        positions_Z, ids_Z = (torch.tensor([entry[n] for entry in entries], dtype=torch.int64) for n in (0, 1))
        return Inside(covered_N, residual_N, positions_Z, ids_Z, torch.tensor([prob for *_, prob in entries]))

    def _handed_out(
        self, window: Window, position: int, row: int, written: bytes, probs_R: Tensor
    ) -> tuple[dict[int, float], float]:
        """The probability of each student token that gets any, and the bucket's."""
        found: dict[int, float] = defaultdict(float)
        ids, text_id, next_id = self._that_begin_with(written), window.teacher_ids[row], window.student_ids[position]
        probs, bucket = probs_R[ids].double(), 0.0
        for teacher_id, share in zip(ids, (probs / probs.sum()).tolist(), strict=True):
            rest = (self._encoders[1].token_bytes.table[teacher_id] or b"")[len(written) :]
            student_id = next_id if teacher_id == text_id else self._first(rest) if share >= LEAST else -1
            if student_id >= 0:
                found[student_id] += share
            else:
                bucket += share
        previous = window.student_ids[position - 1] if position else self._stores[0].prefix_id
        candidates = torch.tensor(list(found))
        is_read = may_follow(self._merges, torch.full_like(candidates, previous), candidates).tolist()
        read = {
            student_id: share
            for (student_id, share), each in zip(found.items(), is_read, strict=True)
            if each or student_id == next_id
        }
        left = bucket + sum(read.values())
        return {student_id: share / left for student_id, share in read.items()}, bucket / left

    def _that_begin_with(self, written: bytes) -> list[int]:
        if written not in self._beginning:
            table = self._encoders[1].token_bytes.table
            self._beginning[written] = [
                number for number, token in enumerate(table) if token and token.startswith(written)
            ]
        return self._beginning[written]

    def _first(self, rest: bytes) -> int:
        """The student's first token of some bytes; -1: there are none."""
        if rest not in self._firsts:
            self._firsts[rest] = int(first_student_ids(self._encoders[0], [rest])[0]) if rest else -1
        return self._firsts[rest]


def with_aligned(targets: Sequence[Inside], aligned: SparseTarget, logprobs_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions of a batch have a target of either kind (0 or 1, [N]), and their cross-entropy, summed."""
    covered_N, loss_inside = bucketed(targets, logprobs_NV)
    return (covered_N | aligned.has_target_N).float(), loss_inside + cross_entropy(aligned, logprobs_NV)


def bucketed(targets: Sequence[Inside], logprobs_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions inside teacher tokens have a target, bool [N], and their cross-entropy, summed."""
    sizes = [len(target.covered_N) for target in targets]
    firsts = np.cumsum([0, *sizes[:-1]]).tolist()
    covered_N = torch.cat([target.covered_N for target in targets])
    residual_N = torch.cat([target.residual_N for target in targets])
    positions_Z = torch.cat([target.positions_Z + first for target, first in zip(targets, firsts, strict=True)])
    ids_Z, probs_Z = (torch.cat([getattr(target, name) for target in targets]) for name in ("ids_Z", "probs_Z"))
    listed_Z = logprobs_NV[positions_Z, ids_Z]
    rest_N = (1.0 - torch.zeros(len(covered_N)).index_add(0, positions_Z, listed_Z.exp())).clamp_min(1e-6).log()
    return covered_N, -(probs_Z @ listed_Z) - residual_N @ rest_N
