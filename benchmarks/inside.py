"""Targets that do not know where the teacher's token ends, as the student does not, and which are everywhere.

After some bytes of text the teacher's last token may have ended, or go on: a longer token that begins with these bytes
was as possible. The distribution before that token says how likely each is. So both cases are in the target:

* it ends here: what the project makes of the cache, where that is what the text does; elsewhere what would follow is
  not known, and this case is in one bucket with all ids that are not listed;
* it goes on: each longer token's probability goes to the first token that the student makes of the bytes that are left;
  of the token that follows in the text to the text's own next token. What the student's tokenizer would have joined to
  its last token is left out. Shares below `LEAST` are in the bucket; where there is none, they are left out too.

To say one case alone at each position, as `ours` does, is to teach by the text where teacher tokens end.

Shapes: N positions of a window, L positions of the teacher's, Z entries, V student vocabulary, R teacher vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from exact_targets import Window, window_of
from native import cross_entropy
from torch import Tensor
from transformers import PreTrainedModel

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.vocabulary_map import first_student_ids
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.window_store import WindowStore
from moe_distill.targets.canonical import MergeRules, may_follow
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.teacher_rows import read_rows

LEAST = 1e-3  # of a token's share of those that begin with the written bytes
Probs = Callable[[Window], Tensor]  # the teacher's before each of its tokens of a window around a student's: [L, R]


@dataclass(frozen=True)
class Inside:
    """What the targets of some positions have beside those at common boundaries.

    Inside a teacher token entries and residual sum to 1; at a common boundary entries and `ended` do.
    """

    covered_N: Tensor  # bool: inside a teacher token
    residual_N: Tensor  # probability outside the entries; 0 at a common boundary
    ended_N: Tensor  # at a common boundary: probability that the teacher's token ends there
    positions_Z: Tensor
    ids_Z: Tensor
    probs_Z: Tensor


def from_teacher(teacher: PreTrainedModel, prefix_id: int) -> Probs:
    """With the teacher in the loop."""

    def probs_of(window: Window) -> Tensor:
        context = torch.tensor([[prefix_id, *window.teacher_ids[:-1]]])
        with torch.no_grad():
            probs_LR: Tensor = teacher(input_ids=context, use_cache=False).logits[0].softmax(-1)
        return probs_LR

    return probs_of


def from_cache(shards: ShardReader, windows: WindowStore) -> Probs:
    """Of the top-k and the text's token what they have; of a sampled token what its samples stand for; of others 0.

    Args:
        windows: the teacher's.
    """
    n_rows = int(str(shards.index.metadata["output_rows"]))

    def probs_of(window: Window) -> Tensor:
        span = windows.span(window.around)
        rows = read_rows(shards, torch.arange(span.start, span.stop))
        probs_LR = torch.zeros(len(rows.topk_ids), n_rows)
        sampled_LM = (rows.tail_logprobs - rows.tail_log_density).exp() / rows.tail_ids.shape[1]
        probs_LR.scatter_add_(1, rows.tail_ids, sampled_LM)
        probs_LR.scatter_(1, rows.topk_ids, rows.topk_logprobs.exp())
        return probs_LR.scatter_(1, torch.tensor(window.teacher_ids)[:, None], rows.target_logprob.exp()[:, None])

    return probs_of


class InsideTargets:
    """Of the windows of a split, each made once.

    Args:
        stores: the student's windows and the teacher's.
        encoders: of the student and of the teacher.
    """

    def __init__(
        self,
        stores: tuple[WindowStore, WindowStore],
        encoders: tuple[Encoder, Encoder],
        probs_of: Probs,
        merges: MergeRules,
    ) -> None:
        self._stores, self._encoders, self._probs_of, self._merges = stores, encoders, probs_of, merges
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
        probs_LR, aligned_N = self._probs_of(window), self._stores[0].tokens("teacher_rows", number) >= 0
        residual_N, ended_N = torch.zeros(len(aligned_N)), torch.ones(len(aligned_N))
        covered_N = torch.zeros_like(aligned_N)
        entries: list[tuple[int, int, float]] = []
        for position, is_aligned in enumerate(aligned_N.tolist()):
            start = int(window.student_starts[position])
            row = int(np.searchsorted(window.teacher_starts, start, "left")) - 1  # of the token before, or around
            if row < 0:
                continue
            written = window.text[int(window.teacher_starts[row]) : start]
            longer, ended, unlisted = self._handed_out(window, position, row, written, probs_LR[row], is_aligned)
            rest = ended if is_aligned else ended + unlisted
            left = rest + sum(longer.values())
            if is_aligned:
                ended_N[position] = rest / left
            else:
                covered_N[position], residual_N[position] = True, rest / left
            entries += [(position, student_id, prob / left) for student_id, prob in longer.items()]
        positions_Z, ids_Z = (torch.tensor([entry[n] for entry in entries], dtype=torch.int64) for n in (0, 1))
        probs_Z = torch.tensor([prob for *_, prob in entries])
        return Inside(covered_N, residual_N, ended_N, positions_Z, ids_Z, probs_Z)

    def _handed_out(
        self, window: Window, position: int, row: int, written: bytes, probs_R: Tensor, is_aligned: bool
    ) -> tuple[dict[int, float], float, float]:
        """What longer tokens give each student token, the probability that the token ends here, and what is left."""
        found: dict[int, float] = defaultdict(float)
        ids, next_id = self._that_begin_with(written), window.student_ids[position]
        probs, ended, unlisted = probs_R[ids].double(), 0.0, 0.0
        for teacher_id, share in zip(ids, (probs / probs.sum()).tolist(), strict=True):
            rest = (self._encoders[1].token_bytes.table[teacher_id] or b"")[len(written) :]
            if not rest:
                ended += share
                continue
            is_text = teacher_id == window.teacher_ids[row] and not is_aligned
            student_id = next_id if is_text else self._first(rest) if share >= LEAST else -1
            if student_id >= 0:
                found[student_id] += share
            else:
                unlisted += share
        previous = window.student_ids[position - 1] if position else self._stores[0].prefix_id
        candidates = torch.tensor(list(found), dtype=torch.int64)
        is_read = may_follow(self._merges, torch.full_like(candidates, previous), candidates).tolist()
        read = {
            student_id: share
            for (student_id, share), each in zip(found.items(), is_read, strict=True)
            if each or (student_id == next_id and not is_aligned)
        }
        return read, ended, unlisted

    def _that_begin_with(self, written: bytes) -> list[int]:
        if written not in self._beginning:
            table = self._encoders[1].token_bytes.table
            self._beginning[written] = [
                number for number, token in enumerate(table) if token and token.startswith(written)
            ]
        return self._beginning[written]

    def _first(self, rest: bytes) -> int:
        """The student's first token of some bytes; -1: there is none."""
        if rest not in self._firsts:
            self._firsts[rest] = int(first_student_ids(self._encoders[0], [rest])[0])
        return self._firsts[rest]


def with_aligned(targets: Sequence[Inside], aligned: SparseTarget, logprobs_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions of a batch have a target of either kind (0 or 1, [N]), and their cross-entropy, summed."""
    sizes = [len(target.covered_N) for target in targets]
    firsts = np.cumsum([0, *sizes[:-1]]).tolist()
    covered_N, residual_N, ended_N, ids_Z, probs_Z = (
        torch.cat([getattr(target, name) for target in targets])
        for name in ("covered_N", "residual_N", "ended_N", "ids_Z", "probs_Z")
    )
    positions_Z = torch.cat([target.positions_Z + first for target, first in zip(targets, firsts, strict=True)])
    listed_Z = logprobs_NV[positions_Z, ids_Z]
    rest_N = (1.0 - torch.zeros(len(covered_N)).index_add(0, positions_Z, listed_Z.exp())).clamp_min(1e-6).log()
    ended = replace(
        aligned,
        entry_probs_Z=aligned.entry_probs_Z * ended_N[aligned.entry_positions_Z.long()],
        sample_probs_Y=aligned.sample_probs_Y * ended_N[aligned.sample_positions_Y.long()],
    )
    loss = cross_entropy(ended, logprobs_NV) - probs_Z @ listed_Z - residual_N @ rest_N
    return (covered_N | aligned.has_target_N).float(), loss
