"""Counts over the files of a split, against a dictionary, and the memory that they take."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from moe_distill.targets import next_token_counts
from moe_distill.targets.next_token_counts import counted


@pytest.mark.parametrize("most", [3, 50, 100_000])  # different keys
def test_keys_of_files_are_counted(most: int) -> None:
    generator = torch.Generator().manual_seed(most)
    files = [torch.randint(most, (size,), generator=generator) for size in (0, 200, 1, 3000, 0, 70)]
    keys, counts = counted(files)
    expected = Counter(key for file in files for key in file.tolist())
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == expected
    assert keys.tolist() == sorted(expected)


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
