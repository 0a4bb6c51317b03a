"""Counts over the files of a split, against a dictionary, and the memory that they take."""

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from moe_distill.targets import next_token_counts
from moe_distill.targets.next_token_counts import count_next_tokens, counted


@pytest.mark.parametrize("most", [3, 50, 100_000])  # different keys
def test_keys_of_files_are_counted(most: int) -> None:
    generator = torch.Generator().manual_seed(most)
    files = [torch.randint(most, (size,), generator=generator) for size in (0, 200, 1, 3000, 0, 70)]
    keys, counts = counted(files)
    expected = Counter(key for file in files for key in file.tolist())
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == expected
    assert keys.tolist() == sorted(expected)


def test_pairs_are_counted_where_there_is_a_teacher_token_the_first_id_too() -> None:
    columns = {"next_teacher_ids": [[0, -1, 0], [5, 0]], "token_ids": [[7, 8, 7], [0, 9]]}
    reader = SimpleNamespace(columns=lambda name: [torch.tensor(column) for column in columns[name]])
    found = count_next_tokens(SimpleNamespace(reader=reader))  # type: ignore[arg-type]
    pairs = zip(found.teacher_ids.tolist(), found.student_ids.tolist(), found.counts.tolist(), strict=True)
    assert set(pairs) == {(0, 7, 2), (0, 9, 1), (5, 0, 1)}


def test_of_no_file_nothing_is_counted() -> None:
    assert [each.tolist() for each in counted([])] == [[], []]


def test_what_is_held_at_once_is_bounded_by_the_different_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, merged = list[int](), next_token_counts._merged

    def watched(found: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(sum(len(keys) for keys, _ in found))
        return merged(found)

    def files() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            yield torch.randint(1000, (900,), generator=generator)

    monkeypatch.setattr(next_token_counts, "_merged", watched)
    counted(files())
    assert max(sizes) < 3 * 1000, "all files together have 200 times as many"
