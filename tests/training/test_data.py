"""Batches read from real stores."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch

from moe_distill.shards.vocabulary_store import MAP_FIELDS, VOCABULARY_MAP
from moe_distill.shards.writer import ShardWriter
from moe_distill.targets.canonical import may_follow
from moe_distill.targets.next_token_counts import count_next_tokens, load_vocabulary_map
from moe_distill.targets.token_shares import MAX_STUDENT_TOKENS
from moe_distill.training.data import TEXT_ONLY, BatchFields, Split, read_batch
from tests.stores import STUDENT_VOCABULARY, Stores

ALL_WINDOWS = [0, 1, 2, 3, 4]


def test_a_chunk_lies_between_neighbouring_common_boundaries(stores: Stores) -> None:
    batch = read_batch(Split(stores.student, stores.targets), ALL_WINDOWS, BatchFields(chunks=True))
    assert batch.chunks is not None
    expected_of, expected_logprobs = [], []
    for rows in stores.teacher_rows:
        of = [-1] * len(rows)
        shared = [place for place, row in enumerate(rows) if row >= 0]
        for start, stop in itertools.pairwise(shared):
            teacher_tokens = range(rows[start], rows[stop])
            if stop - start == len(teacher_tokens) == 1:
                continue
            of[start:stop] = [len(expected_logprobs)] * (stop - start)
            expected_logprobs.append(sum(float(stores.target_logprob[row]) for row in teacher_tokens))
        expected_of += of
    assert len(expected_logprobs) > 5
    assert batch.chunks.chunk_of_N.tolist() == expected_of
    assert batch.chunks.teacher_logprobs_J.tolist() == pytest.approx(expected_logprobs, abs=1e-5)
    assert batch.counts.chunks == len(expected_logprobs)


def test_what_is_not_wanted_is_not_read(stores: Stores) -> None:
    batch = read_batch(Split(stores.student, stores.targets), ALL_WINDOWS, TEXT_ONLY)
    assert batch.chunks is None
    assert batch.runs is None
    assert batch.rows is not None


def test_without_targets_there_is_text_alone(stores: Stores) -> None:
    batch = read_batch(Split(stores.student, None), ALL_WINDOWS, BatchFields(runs=True, chunks=True))
    assert (batch.rows, batch.runs, batch.chunks) == (None, None, None)


def test_continuations_are_counted_over_all_files(stores: Stores) -> None:
    expected: Counter[tuple[int, int]] = Counter()
    for ids, rows in zip(stores.token_ids, stores.teacher_rows, strict=True):
        expected.update((0, student_id) for student_id, row in zip(ids, rows, strict=True) if row >= 0)
    found = count_next_tokens(stores.student)
    pairs = zip(found.teacher_ids.tolist(), found.student_ids.tolist(), strict=True)
    assert dict(zip(pairs, found.counts.tolist(), strict=True)) == expected
    assert max(expected.values()) > 1
    assert len(stores.student.reader.index.files) > 1


def test_neighbours_meet_inside_a_window(stores: Stores, tmp_path: Path) -> None:
    """A merge of every two ids: of all pairs of the text only those of the same window are known to stay apart."""
    pairs = list(itertools.product(range(STUDENT_VOCABULARY), repeat=2))
    columns = torch.tensor(pairs, dtype=torch.int32).T
    nothing = torch.zeros(0, dtype=torch.int32)
    writer = ShardWriter(tmp_path, MAP_FIELDS, "teacher_ids", 1000)
    writer.append(
        {
            "student_ids": stores.student_ids.int(),
            "place_counts": torch.zeros_like(stores.student_ids, dtype=torch.int32),
            "place_prefixes": nothing,
            "place_student_ids": nothing,
            "merge_lefts": columns[0].contiguous(),
            "merge_rights": columns[1].contiguous(),
            "merge_results": STUDENT_VOCABULARY + torch.arange(len(pairs), dtype=torch.int32),
            "merge_are_blank": torch.zeros(len(pairs), dtype=torch.int8),
        },
        cursor=0,
    )
    writer.finish(VOCABULARY_MAP, "map", {"student_ids": STUDENT_VOCABULARY + len(pairs)})
    found = load_vocabulary_map(tmp_path, stores.student)
    assert found.merges is not None
    allowed = may_follow(found.merges, *torch.tensor(pairs).T)
    inside = {pair for ids in stores.token_ids for pair in itertools.pairwise(ids)}
    across = set(itertools.pairwise(itertools.chain(*stores.token_ids))) - inside
    assert {pair for pair, is_allowed in zip(pairs, allowed.tolist(), strict=True) if is_allowed} == inside
    assert len(across) >= 3, "the test can tell windows apart"
    assert found.log_shares.shape == (len(stores.student_ids), MAX_STUDENT_TOKENS)


def test_positions_inside_a_teacher_token_have_the_row_of_the_boundary_before(stores: Stores) -> None:
    inside = read_batch(Split(stores.student, stores.targets), ALL_WINDOWS, BatchFields(inside=True)).inside
    assert inside is not None
    expected, first = [], 0
    for ids, rows in zip(stores.token_ids, stores.teacher_rows, strict=True):
        boundary = None
        for place, (student_id, row) in enumerate(zip(ids, rows, strict=True)):
            if row >= 0:
                boundary = place, row
            elif boundary is not None:
                offset = 3 * (place - boundary[0])
                expected.append((first + place, offset, student_id, float(stores.target_logprob[boundary[1]])))
        first += len(rows)
    columns = (inside.positions_I, inside.text.offsets, inside.text.student_ids, inside.rows.target_logprob)
    assert len(expected) > 5
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == [
        (*integers, pytest.approx(logprob, abs=1e-5)) for *integers, logprob in expected
    ]
    assert set(inside.text.teacher_ids.tolist()) == {0}
