"""One place of a store in words: a position with both distributions, a window's tokens, a part of the map."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from moe_distill.config.params import ExperimentParams
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.shards.reader import ShardReader
from moe_distill.shards.window_store import STUDENT_WINDOWS, NextToken, WindowStore
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.window_targets import WindowTargets, asks_inside_tokens, target_settings

TOP = 5
CONTEXT = 70  # characters before a position
COLUMN = 44  # characters of the teacher's side
SHOWN_TOKENS = 12
REPLACEMENT, SPACE_MARK = "\ufffd", "\u2581"


@dataclass(frozen=True)
class Pieces:
    """The tokens of a tokenizer as one reads them."""

    tokenizer: Tokenizer

    @classmethod
    def of(cls, folder: Path) -> "Pieces":
        return cls(load_tokenizer(folder))

    def show(self, number: int) -> str:
        """A token's text in quotes; where it is no whole text, as it stands in the vocabulary."""
        token = str(self.tokenizer.id_to_token(number))
        if SPACE_MARK in token:  # a decoder drops the blank before the first token
            return repr(token.replace(SPACE_MARK, " "))
        text = self.tokenizer.decode([number], skip_special_tokens=False)
        return repr(text if text and REPLACEMENT not in text else token)

    def read(self, ids: torch.Tensor) -> str:
        """The end of the text of some tokens, in quotes."""
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return repr(text if len(text) <= CONTEXT else "…" + text[-CONTEXT:])


def position_example(
    targets: ShardReader, windows: Path, teacher: Pieces, student: Pieces, row: int | None, experiment: ExperimentParams
) -> Iterator[str]:
    """What the teacher said at a row of table `positions`, and what the student of data/windows is to say there."""
    split = targets.folder.name
    if not (windows / "student" / split).is_dir():
        row = targets.rows("positions") // 2 if row is None else row
        yield f"  row {row} of positions (the text is in data/windows, which is not here: dvc repro tokenize)"
        yield from (f"    {line}" for line in _teacher_says(targets, teacher, row))
        return
    store = WindowStore(windows / "student" / split, STUDENT_WINDOWS)
    window, place = _aligned(store, row)
    if window is None:
        yield f"  row {row} of positions: no student position stands before the same byte"
        yield from (f"    {line}" for line in _teacher_says(targets, teacher, row or 0))
        return
    rows, ids = store.tokens("teacher_rows", window), store.tokens("token_ids", window)
    row = int(rows[place])
    yield f"  row {row} of positions: window {window} of the student, before its token {place}"
    yield f"    both have read  {student.read(ids[:place])}"
    next_teacher = int(store.tokens("next_teacher_ids", window)[place])
    next_tokens = f"teacher's token {teacher.show(next_teacher)}, student's {student.show(int(ids[place]))}"
    yield f"    the text goes on: {next_tokens}"
    train = WindowStore(windows / "student/train", STUDENT_WINDOWS)
    vocabulary_map = load_vocabulary_map(windows / "student/vocabulary_map", train, asks_inside_tokens(experiment))
    target = WindowTargets(store, targets, vocabulary_map, target_settings(experiment)).of(window)
    yield f"    {'the teacher, T = 1':<{COLUMN}}the student's target, T = {target.temperature:g}"
    for left, right in zip(_teacher_says(targets, teacher, row), _target_says(target, student, place), strict=True):
        yield f"    {left:<{COLUMN}}{right}".rstrip()


def _aligned(store: WindowStore, row: int | None) -> tuple[int | None, int]:
    """A student window and the place in it that is aligned with a teacher's row; None where there is none.

    Without a row: the first aligned place of the second half of a window from the middle.
    """
    middle = len(store) // 2
    for window in [*range(middle, len(store)), *range(middle)]:
        rows = store.tokens("teacher_rows", window)
        is_it = rows == row if row is not None else (rows >= 0) & (torch.arange(len(rows)) >= len(rows) // 2)
        if is_it.any():
            return window, int(is_it.nonzero()[0])
    return None, 0


def _teacher_says(targets: ShardReader, teacher: Pieces, row: int) -> list[str]:
    """The likeliest tokens of a teacher's row, and what the other kept ones and the tail have."""
    ids, logprobs = (targets.slice(name, row, row + 1)[0] for name in ("topk_ids", "topk_logprobs"))
    probs = logprobs.float().exp()
    lines = [f"{float(p):.4f}  {teacher.show(int(i))}" for p, i in zip(probs[:TOP], ids[:TOP], strict=True)]
    lines += [""] * (TOP - len(lines))
    kept, tail = float(probs[TOP:].sum()), max(0.0, 1.0 - float(probs.sum()))
    return [*lines, f"{kept:.4f}  in {max(0, len(ids) - TOP)} more kept, {tail:.4f} in the tail"]


def _target_says(target: SparseTarget, student: Pieces, place: int) -> list[str]:
    at = target.entry_positions_Z == place
    probs, order = target.entry_probs_Z[at].sort(descending=True, stable=True)
    ids = target.entry_ids_Z[at][order]
    lines = [f"{float(p):.4f}  {student.show(int(i))}" for p, i in zip(probs[:TOP], ids[:TOP], strict=True)]
    lines += [""] * (TOP - len(lines))
    rest, residual = float(probs[TOP:].sum()), float(target.residual_N[place])
    return [*lines, f"{rest:.4f}  in {max(0, len(ids) - TOP)} more, {residual:.4f} in the residual"]


def window_example(store: WindowStore, pieces: Pieces, row: int | None) -> Iterator[str]:
    """The first tokens of a window, or those from a row of `tokens` on; of a student, how they meet the teacher's."""
    stops = store.token_counts.cumsum(0)
    window = len(store) // 2 if row is None else int(torch.bucketize(row, stops, right=True))
    first = 0 if row is None else row - store.span(window).start
    ids = store.tokens("token_ids", window)
    sizes = f"{len(ids)} tokens, {store.span(window).n_bytes} bytes"
    yield f"  window {window}: prefix {pieces.show(store.prefix_id)}, then {sizes}"
    is_student = store.reader.index.format == STUDENT_WINDOWS
    rows, kinds = (store.tokens(name, window) if is_student else None for name in ("teacher_rows", "next_tokens"))
    for place in range(first, min(first + SHOWN_TOKENS, len(ids))):
        line = f"    {place:>4}  {pieces.show(int(ids[place])):<20}"
        if rows is not None and kinds is not None:
            met = int(rows[place]) >= 0
            line += f"teacher's row {int(rows[place])}, its token " if met else ""
            line += _MEETS[NextToken(int(kinds[place]))]
        yield line.rstrip()


_MEETS = {
    NextToken.UNALIGNED: "no teacher token begins here",
    NextToken.SAME: "is as long",
    NextToken.SHORTER: "is longer",
    NextToken.LONGER: "is shorter",
}


def map_example(reader: ShardReader, teacher: Pieces, student: Pieces, row: int | None) -> Iterator[str]:
    """The student's tokens of some teacher ids, from a row on."""
    ids = torch.cat(list(reader.columns("student_ids")))
    first = len(ids) // 2 if row is None else row
    for number in range(first, min(first + SHOWN_TOKENS, len(ids))):
        to = int(ids[number])
        of = teacher.show(number) if teacher.tokenizer.id_to_token(number) is not None else "unused"
        yield f"    {number:>7}  {of:<20} -> {student.show(to) if to >= 0 else 'nothing'}"
