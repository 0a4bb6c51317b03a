"""Which windows a file of the capture holds: whole batches, until it is full."""

import random

from moe_distill.teacher.file_plan import batches_of, plan_files


def test_a_file_ends_with_the_batch_that_fills_it() -> None:
    assert plan_files([3, 4, 5, 1, 1, 1, 9], batch_windows=2, shard_positions=8) == [range(0, 4), range(4, 7)]
    assert plan_files([3, 4, 5, 1, 1, 1, 9], batch_windows=1, shard_positions=7) == [
        range(0, 2),
        range(2, 5),
        range(5, 7),
    ]
    assert plan_files([8], batch_windows=4, shard_positions=100) == [range(0, 1)]
    assert plan_files([], batch_windows=4, shard_positions=100) == []


def test_files_hold_every_window_once_in_order_and_all_but_the_last_are_full() -> None:
    generator = random.Random(0)
    for _ in range(300):
        counts = [generator.randrange(1, 30) for _ in range(generator.randrange(1, 60))]
        batch, full = generator.randrange(1, 9), generator.randrange(1, 120)
        files = plan_files(counts, batch, full)
        assert [window for file in files for window in file] == list(range(len(counts)))
        for file in files:
            assert file.start % batch == 0  # else a window would share its batch with others
            without_last_batch = counts[file.start : list(batches_of(file, batch))[-1].start]
            assert sum(without_last_batch) < full
            assert file is files[-1] or sum(counts[file.start : file.stop]) >= full


def test_batches_are_the_same_wherever_their_file_begins() -> None:
    whole = list(batches_of(range(0, 23), 4))
    assert whole[-1] == range(20, 23)
    assert [*batches_of(range(0, 12), 4), *batches_of(range(12, 23), 4)] == whole
