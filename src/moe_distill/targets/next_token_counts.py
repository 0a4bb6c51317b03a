"""Counts over the training windows: pairs of next tokens of both models, what the student reads where it stands inside
a teacher token, and neighbouring student tokens.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from moe_distill.shards.vocabulary_store import (
    Beginnings,
    read_beginnings,
    read_merges,
    read_tokenizer,
    read_vocabulary_map,
)
from moe_distill.shards.window_store import WindowStore
from moe_distill.targets.canonical import MergeRules, merge_rules, with_text
from moe_distill.targets.neighbour_trials import NeighbourTrials
from moe_distill.targets.sparse_rows import pair_keys, pairs_of
from moe_distill.targets.token_shares import NextTokenCounts, TokenBeginnings, VocabularyMap, counted_shares, rule_map


def load_vocabulary_map(folder: Path, windows: WindowStore, inside_tokens: bool = False) -> VocabularyMap:
    """A vocabulary map with the shares, frequencies and neighbours that a split's windows show.

    Args:
        inside_tokens: with the beginnings of the teacher's tokens, if the merges of the student's tokenizer are known:
            nothing else tells where one of its tokens would have gone on.
    """
    rule_ids = read_vocabulary_map(folder)
    found = counted_shares(rule_ids, count_next_tokens(windows))
    merges, n_ids = read_merges(folder)
    if not len(merges.results):
        return found
    rules = with_text(merge_rules(merges, n_ids), _neighbours(windows))
    beginnings = _beginnings(read_beginnings(folder), len(rule_ids), windows, rules) if inside_tokens else None
    return replace(found, merges=replace(rules, trials=_trials(folder)), beginnings=beginnings)


def _trials(folder: Path) -> NeighbourTrials | None:
    found = read_tokenizer(folder)
    if found is None:
        return None
    tokenizer = Tokenizer.from_str(found[0])
    tokenizer.encode_special_tokens = True  # which no tokenizer.json says: windows read special tokens as text
    return NeighbourTrials(tokenizer, found[1])


def count_next_tokens(windows: WindowStore) -> NextTokenCounts:
    """Pairs of next tokens at all aligned positions of a split, file by file."""
    columns = zip(windows.reader.columns("next_teacher_ids"), windows.reader.columns("token_ids"), strict=True)
    keys, counts = counted(
        pair_keys(teacher[teacher >= 0].long(), ids[teacher >= 0].long()) for teacher, ids in columns
    )
    return NextTokenCounts(*pairs_of(keys), counts)


def _beginnings(stored: Beginnings, n_rows: int, windows: WindowStore, merges: MergeRules) -> TokenBeginnings | None:
    """The beginnings of the teacher's tokens, with the shares that a split's windows show; None: none are known.

    What is left of a token is counted where the text has the same bytes left of any token, and as a token of its own.

    Args:
        n_rows: R, rows of the teacher's output matrix.
        merges: without trials: a tokenizer that writes two blanks side by side before some letters says nothing of an
            indentation that is longer by one.
    """
    if not len(stored.rest_student_ids):
        return None
    n_bytes = F.pad(stored.teacher_bytes, (0, n_rows - len(stored.teacher_bytes)))
    by_rule = TokenBeginnings(n_bytes, stored.numbers, stored.rests, rule_map(stored.rest_student_ids), merges)
    token_rests = F.pad(stored.token_rests, (0, n_rows - len(stored.token_rests)), value=-1)
    names = ("last_teacher_ids", "last_teacher_bytes", "next_teacher_ids", "token_ids")
    columns = zip(*(windows.reader.columns(name) for name in names), strict=True)

    def of_files() -> Iterable[Tensor]:
        for last_ids, n_read, next_teacher_ids, student_ids in columns:
            has_last, is_aligned = last_ids >= 0, next_teacher_ids >= 0
            inside = by_rule.rests[by_rule.places(last_ids[has_last].long(), n_read[has_last].long())]
            rests = torch.cat([inside, token_rests[next_teacher_ids[is_aligned].long()]])
            next_ids = torch.cat([student_ids[has_last], student_ids[is_aligned]]).long()
            yield pair_keys(rests[rests >= 0], next_ids[rests >= 0])

    keys, counts = counted(of_files())
    return replace(by_rule, rest_map=counted_shares(stored.rest_student_ids, NextTokenCounts(*pairs_of(keys), counts)))


def _neighbours(windows: WindowStore) -> Tensor:
    """Pairs of student tokens that meet in a window, each once, ascending."""

    def of_files() -> Iterable[Tensor]:
        for ids, counts in zip(
            windows.reader.columns("token_ids"), windows.reader.columns("token_counts"), strict=True
        ):
            is_last = torch.zeros(len(ids), dtype=torch.bool).index_fill(0, counts.long().cumsum(0) - 1, True)
            yield pair_keys(ids[:-1].long(), ids[1:].long())[~is_last[:-1]]

    return counted(of_files())[0]


def counted(keys_of_files: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Each key once, ascending, and how often it stands in all files; some files are held at once, not all."""
    found = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))]
    for keys in keys_of_files:
        found.append(keys.unique(return_counts=True))
        if sum(len(keys) for keys, _ in found[1:]) > len(found[0][0]):
            found = [_merged(found)]
    return _merged(found)


def _merged(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    keys, place = torch.cat([keys for keys, _ in found]).unique(return_inverse=True)
    counts = torch.zeros(len(keys), dtype=torch.int64)
    return keys, counts.index_add(0, place, torch.cat([counts for _, counts in found]))
