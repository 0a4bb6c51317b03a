"""The target of a window is the same however it is asked for, and what is kept stays below its bound."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moe_distill.shards.vocabulary_store import Merges
from moe_distill.targets.canonical import NO_TOKEN, merge_rules
from moe_distill.targets.sparse_target import NextTokens, SparseTarget, sparse_target
from moe_distill.targets.teacher_rows import read_rows
from moe_distill.targets.token_shares import VocabularyMap, rule_map
from moe_distill.targets.window_targets import TargetSettings, WindowTargets
from tests.stores import PREFIX, STUDENT_VOCABULARY, TOKENS, Stores
from tests.targets.reference import entries_of

SETTINGS = TargetSettings(temperature=2.0, order="map_then_temper", tail="sampled")
WINDOWS = range(len(TOKENS))


def targets_of(stores: Stores, settings: TargetSettings = SETTINGS, memory_bytes: int = 0) -> WindowTargets:
    return WindowTargets(stores.student, stores.targets, rule_map(stores.student_ids), settings, memory_bytes)


def of_rows(stores: Stores, window: int, settings: TargetSettings, vocabulary_map: VocabularyMap) -> SparseTarget:
    """Made of a window's rows by hand."""
    numbers = torch.tensor(stores.teacher_rows[window])
    aligned = numbers >= 0
    ids = torch.tensor(stores.token_ids[window])
    next_teacher_ids = stores.student.tokens("next_teacher_ids", window).long()
    text = NextTokens(next_teacher_ids[aligned], ids[aligned]) if settings.follows_text else None
    previous = torch.tensor([NO_TOKEN, *ids[:-1].tolist()])[aligned]
    rows = read_rows(stores.targets, numbers[aligned])
    made_by = settings.temperature, settings.order, settings.tail
    return sparse_target(rows, aligned, vocabulary_map, *made_by, text, previous)


def are_equal(first: SparseTarget, second: SparseTarget) -> bool:
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, order="temper_then_map", temperature=1.0),
        replace(SETTINGS, tail="residual"),
        replace(SETTINGS, follows_text=False),
    ],
)
def test_a_target_is_that_of_the_windows_rows(stores: Stores, settings: TargetSettings) -> None:
    targets = targets_of(stores, settings)
    for window in WINDOWS:
        expected = of_rows(stores, window, settings, rule_map(stores.student_ids))
        assert are_equal(targets.of(window), expected)
        assert len(expected) == TOKENS[window]
    assert not targets.of(3).has_target_N.any(), "a window without an aligned position"


def bytes_of(stores: Stores) -> list[int]:
    targets = targets_of(stores)
    return [targets.of(window).nbytes for window in WINDOWS]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0, 10.0])
def test_a_target_is_bit_equal_alone_after_others_kept_or_made_again(stores: Stores, share: float) -> None:
    alone = {window: targets_of(stores).of(window) for window in WINDOWS}
    targets = targets_of(stores, memory_bytes=int(share * sum(bytes_of(stores))))
    for window in (4, 0, 0, 3, 2, 1, 4, 2, 0, 1, 3):
        assert are_equal(targets.of(window), alone[window])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0, 10.0])
def test_what_is_kept_stays_below_the_bound_and_is_made_once(
    stores: Stores, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept: each window that still fits when it is first made."""
    made: list[int] = []
    make = WindowTargets._made

    def counted(self: WindowTargets, window: int) -> SparseTarget:
        made.append(window)
        return make(self, window)

    monkeypatch.setattr(WindowTargets, "_made", counted)
    sizes = bytes_of(stores)
    bound = free = int(share * sum(sizes))
    fitting = set()
    for window in WINDOWS:
        if sizes[window] <= free:
            fitting.add(window)
            free -= sizes[window]
    targets = targets_of(stores, memory_bytes=bound)
    made.clear()
    first, second, third = ([targets.of(window) for window in WINDOWS] for _ in range(3))
    assert made == [*WINDOWS, *[window for window in WINDOWS if window not in fitting] * 2]
    assert {window for window in WINDOWS if first[window] is second[window] is third[window]} == fitting
    assert sum(first[window].nbytes for window in fitting) <= bound
    assert (len(fitting) > 0) is (share > 0)
    assert (len(fitting) == len(WINDOWS)) is (share >= 1)


def test_without_the_text_the_map_alone_decides(stores: Stores) -> None:
    """With it the label is an entry of every position; `next_teacher_ids` is 0 throughout."""
    following, mapped = (targets_of(stores, replace(SETTINGS, follows_text=each)) for each in (True, False))
    missing = 0
    for window in WINDOWS:
        for position, label in enumerate(stores.token_ids[window]):
            if stores.teacher_rows[window][position] >= 0:
                assert label in entries_of(following.of(window), position)
                missing += label not in entries_of(mapped.of(window), position)
    assert missing > 0


def test_the_token_before_is_the_windows_own_and_never_the_prefix(stores: Stores) -> None:
    """A merge of what stands before and the likeliest next token takes that one out, there and nowhere else.

    A prefix token may be one of text: the tokenizer, which is given the text alone, joins nothing to it all the same.
    """
    settings = replace(SETTINGS, follows_text=False, tail="residual")
    unasked, seen = targets_of(stores, settings), set[tuple[bool, bool]]()
    for window in WINDOWS:
        ids = stores.token_ids[window]
        for position in unasked.of(window).has_target_N.nonzero().squeeze(1).tolist():
            previous = ids[position - 1] if position else PREFIX
            entries = entries_of(unasked.of(window), position)
            likeliest = max(entries, key=lambda each: entries[each])
            merge = torch.tensor([previous]), torch.tensor([likeliest]), torch.tensor([STUDENT_VOCABULARY])
            rules = merge_rules(Merges(*merge), STUDENT_VOCABULARY + 1)
            knowing = replace(rule_map(stores.student_ids), merges=rules)
            found = WindowTargets(stores.student, stores.targets, knowing, settings).of(window)
            assert are_equal(found, of_rows(stores, window, settings, knowing))
            seen.add((position > 0, likeliest in entries_of(found, position)))
    assert seen >= {(False, True), (True, False)}
    assert (False, False) not in seen
