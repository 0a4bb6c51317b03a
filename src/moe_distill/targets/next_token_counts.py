"""Counts over the training windows: pairs of next tokens of both models, and neighbouring student tokens."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from moe_distill.shards.vocabulary_store import read_merges, read_tokenizer, read_vocabulary_map
from moe_distill.shards.window_store import WindowStore
from moe_distill.targets.canonical import merge_rules, with_text
from moe_distill.targets.neighbour_trials import NeighbourTrials
from moe_distill.targets.sparse_rows import pair_keys, pairs_of
from moe_distill.targets.token_shares import NextTokenCounts, VocabularyMap, counted_shares


def load_vocabulary_map(folder: Path, windows: WindowStore) -> VocabularyMap:
    """A vocabulary map with the shares, frequencies and neighbours that a split's windows show."""
    found = counted_shares(read_vocabulary_map(folder), count_next_tokens(windows))
    merges, n_ids = read_merges(folder)
    if not len(merges.results):
        return found
    rules = replace(merge_rules(merges, n_ids), trials=_trials(folder))
    return replace(found, merges=with_text(rules, _neighbours(windows)))


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
    keys, counts = _counted(
        pair_keys(teacher[teacher >= 0].long(), ids[teacher >= 0].long()) for teacher, ids in columns
    )
    return NextTokenCounts(*pairs_of(keys), counts)


def _neighbours(windows: WindowStore) -> Tensor:
    """Pairs of student tokens that meet in a window, each once, ascending."""

    def of_files() -> Iterable[Tensor]:
        for ids, counts in zip(
            windows.reader.columns("token_ids"), windows.reader.columns("token_counts"), strict=True
        ):
            is_last = torch.zeros(len(ids), dtype=torch.bool).index_fill(0, counts.long().cumsum(0) - 1, True)
            yield pair_keys(ids[:-1].long(), ids[1:].long())[~is_last[:-1]]

    return _counted(of_files())[0]


def _counted(keys_of_files: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Each key once, ascending, and how often it stands in all files."""
    of_files = [keys.unique(return_counts=True) for keys in keys_of_files]
    keys, place = torch.cat([keys for keys, _ in of_files]).unique(return_inverse=True)
    counts = torch.zeros(len(keys), dtype=torch.int64).index_add(
        0, place, torch.cat([counts for _, counts in of_files])
    )
    return keys, counts
