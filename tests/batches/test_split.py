"""Splits opened from real stores, and what a training text shows of two vocabularies."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch

from moe_distill.batches.split import count_experts, mean_positions_with_states, open_split
from moe_distill.errors import DataError
from moe_distill.shards.vocabulary_store import MAP_FIELDS, VOCABULARY_MAP
from moe_distill.shards.writer import ShardWriter
from moe_distill.targets.canonical import may_follow
from moe_distill.targets.next_token_counts import count_next_tokens, load_vocabulary_map
from moe_distill.targets.token_shares import MAX_STUDENT_TOKENS
from tests.replay.teachers import make_teacher as random_moe
from tests.stores import NO_TOKENIZER, STUDENT_VOCABULARY, Stores
from tests.teacher.conftest import make_teacher
from tests.training.folders import WINDOWS, Folders, make_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("data"), random_moe("olmoe", 1))


def test_a_split_has_windows_and_the_shards_for_them(folders: Folders, tmp_path: Path) -> None:
    split = open_split(folders.root / "windows/train", folders.root / "targets/train")
    assert split.shards is not None
    assert len(split.windows) == WINDOWS["train"]
    experts = random_moe("olmoe", 1).config.num_experts
    assert count_experts(split.shards) == experts > 1
    dense = make_folders(tmp_path, make_teacher("dense"))
    shards = open_split(dense.root / "windows/train", dense.root / "targets/train").shards
    assert shards is not None
    assert count_experts(shards) == 0
    assert open_split(folders.root / "windows/train", None).shards is None


def test_shards_of_other_windows_are_refused(folders: Folders) -> None:
    with pytest.raises(DataError, match="was made from teacher windows"):
        open_split(folders.root / "windows/train", folders.root / "targets/validation")


def test_positions_with_states_of_a_window_are_its_aligned_ones_by_their_share(stores: Stores) -> None:
    aligned = sum(row >= 0 for rows in stores.teacher_rows for row in rows)
    assert mean_positions_with_states(stores.student, 0.25) == pytest.approx(0.25 * aligned / 5)


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
    writer = ShardWriter(tmp_path, MAP_FIELDS, "teacher_ids", 1000)
    writer.append(
        {
            "student_ids": stores.student_ids.int(),
            "merge_lefts": columns[0].contiguous(),
            "merge_rights": columns[1].contiguous(),
            "merge_results": STUDENT_VOCABULARY + torch.arange(len(pairs), dtype=torch.int32),
        }
        | NO_TOKENIZER,
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
