"""Targets that do not know whether the teacher's last token has ended, against the definition, one string at a time."""

import itertools
import math
import shutil
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import pytest
import torch

from moe_distill.batches.split import Split, open_split
from moe_distill.errors import DataError
from moe_distill.shards.vocabulary_store import Merges
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore
from moe_distill.targets.canonical import MergeRules, merge_rules
from moe_distill.targets.last_tokens import (
    LEAST_SHARE,
    SURE_SHARE,
    LastTokens,
    continuations,
    with_continuations,
)
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.sparse_target import SparseTarget
from moe_distill.targets.teacher_rows import read_rows
from moe_distill.targets.token_shares import NextTokenCounts, TokenBeginnings, counted_shares, rule_map
from moe_distill.targets.window_targets import TargetSettings, WindowTargets, asks_inside_tokens
from moe_distill.utils.tensors import map_tensors
from tests.chain import Chain
from tests.params import fixed_params
from tests.shards.forge import forge_column, forget_merges
from tests.targets.reference import entries_of, random_logits, rows_without_a_tail
from tests.targets.test_window_targets import are_equal

TOKENS = [*("".join(each) for n in (1, 2, 3, 4) for each in itertools.product("ab", repeat=n)), ""]  # the last: no text
RESTS = [each for each in TOKENS if 0 < len(each) < 4]
N_STUDENT = 6
SETTINGS = TargetSettings(temperature=1.0, order="map_then_temper", tail="sampled")


def rules_against(denied: frozenset[tuple[int, int]]) -> MergeRules:
    """A merge of each pair, and of another id with itself: there is at least one."""
    firsts, seconds = torch.tensor(sorted(denied | {(N_STUDENT, N_STUDENT)})).T
    made = torch.arange(len(firsts)) + N_STUDENT + 1
    return merge_rules(Merges(firsts, seconds, made), N_STUDENT + 1 + len(firsts))


def beginnings(denied: frozenset[tuple[int, int]] = frozenset()) -> TokenBeginnings:
    """Each rest has two student tokens, of every second one nearly all is the first's; "bb" has none."""
    numbers = [TOKENS.index(token[:n]) for token in TOKENS for n in range(1, len(token) + 1)]
    rests = [RESTS.index(token[n:]) if token[n:] else -1 for token in TOKENS for n in range(1, len(token) + 1)]
    rule_ids = torch.tensor([-1 if rest == "bb" else len(rest) % N_STUDENT for rest in RESTS])
    pairs = torch.tensor([[n, (3 * n + k) % N_STUDENT] for n in range(len(RESTS)) for k in range(2)])
    counts = NextTokenCounts(pairs[:, 0], pairs[:, 1], torch.tensor([50, 8, 20, 30] * len(RESTS))[: len(pairs)])
    rest_map = counted_shares(rule_ids, counts)
    n_bytes = torch.tensor([len(each) for each in TOKENS])
    return TokenBeginnings(n_bytes, torch.tensor(numbers), torch.tensor(rests), rest_map, rules_against(denied))


def last_tokens(seed: int, scale: float = 2.0) -> LastTokens:
    """Every token, read to each of its bytes; all of the teacher's distribution is known."""
    ids, n_read = torch.tensor([[n, k] for n, token in enumerate(TOKENS) for k in range(1, len(token) + 1)]).T
    logits = random_logits(len(ids), len(TOKENS), seed, scale)
    rows = replace(rows_without_a_tail(logits), target_logprob=logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])
    previous_ids, next_ids = torch.randint(N_STUDENT, (2, len(ids)), generator=torch.Generator().manual_seed(seed))
    return LastTokens(rows, ids, n_read, previous_ids, next_ids)


def slowly(last: LastTokens, at: int, denied: frozenset[tuple[int, int]]) -> tuple[bool, dict[int, float], float]:
    """Whether the position is inside its last token, the probability of each student token, and that of all else."""
    text, map_of_rests = TOKENS[int(last.ids[at])], beginnings().rest_map
    read = text[: int(last.n_read[at])]
    order = last.rows.topk_ids[at].tolist()
    probs = dict(zip(order, last.rows.topk_logprobs[at].double().exp().tolist(), strict=True))
    alike = {token: probs[n] for n, token in enumerate(TOKENS) if token and token.startswith(read)}
    is_inside, found, ended, unlisted = text != read, dict.fromkeys(range(N_STUDENT), 0.0), 0.0, 0.0
    for token, prob in alike.items():
        share, rest = prob / sum(alike.values()), token.removeprefix(read)
        if not rest:
            ended += share
            continue
        if token == text:
            found[int(last.next_ids[at])] += share
            continue
        shares = map_of_rests.log_shares[RESTS.index(rest)].exp().tolist()
        if share <= LEAST_SHARE or rest == "bb" or max(shares) < SURE_SHARE:
            unlisted += share
        else:
            for student_id, part in zip(map_of_rests.student_ids[RESTS.index(rest)].tolist(), shares, strict=True):
                found[student_id] += share * part
    for previous, student_id in denied:
        is_text = student_id == int(last.next_ids[at])
        if previous == int(last.previous_ids[at]) and not is_text and found[student_id] > 1e-3:
            found[student_id] = 0.0
    rest_prob = ended + unlisted if is_inside else ended
    total = rest_prob + sum(found.values())
    return is_inside, {n: prob / total for n, prob in found.items() if prob}, rest_prob / total


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize(
    "denied", [frozenset(), frozenset({(0, 1), (2, 0), (3, 3), (5, 2), (1, 4)})], ids=["all_may_follow", "some"]
)
def test_both_cases_have_what_the_teacher_gives_them(denied: frozenset[tuple[int, int]], scale: float) -> None:
    last = last_tokens(1, scale)
    found = continuations(last, beginnings(denied))
    small = 0
    for at in range(len(last.ids)):
        is_inside, expected, rest = slowly(last, at, denied)
        of_it = found.entries.rows == at
        entries = dict(
            zip(found.entries.ids[of_it].tolist(), found.entries.logprobs[of_it].exp().tolist(), strict=True)
        )
        assert bool(found.is_inside_P[at]) == is_inside
        assert entries == pytest.approx(expected, abs=1e-6)
        assert float(found.rest_P[at]) == pytest.approx(rest, abs=1e-6)
        small += 0.0 < rest < 0.9
    assert small > 10


def of_one(kept: dict[str, float], own: tuple[str, float], n_read: int, drawn: list[str]) -> LastTokens:
    """One position after some bytes of the text's own token, whose student token is 5.

    Args:
        kept: tokens of the top-k and their probabilities.
        own: the token and its log-probability.
        drawn: tokens of the tail's samples.
    """
    rows = replace(
        rows_without_a_tail(torch.zeros(1, 1)),
        topk_ids=torch.tensor([[TOKENS.index(each) for each in kept]]),
        topk_logprobs=torch.tensor([list(kept.values())]).log(),
        tail_ids=torch.tensor([[TOKENS.index(each) for each in drawn]]),
        tail_logprobs=torch.full((1, len(drawn)), 0.3).log(),
        tail_log_density=torch.full((1, len(drawn)), 0.3).log(),
        target_logprob=torch.tensor([own[1]]),
    )
    one = torch.ones(1, dtype=torch.int64)
    return LastTokens(rows, one * TOKENS.index(own[0]), one * n_read, one * 0, one * 5)


def test_shares_are_of_the_kept_tokens_and_the_texts_own() -> None:
    by_rule = replace(beginnings(), rest_map=rule_map(torch.arange(len(RESTS))))
    last = of_one({"a": 0.2, "aa": 0.1, "b": 0.4}, ("ab", math.log(0.3)), 1, drawn=["aaa", "abb", "ab"])
    found = continuations(last, by_rule)
    entries = dict(zip(found.entries.ids.tolist(), found.entries.logprobs.exp().tolist(), strict=True))
    assert entries == pytest.approx({RESTS.index("a"): 0.1 / 0.6, 5: 0.3 / 0.6})
    assert float(found.rest_P[0]) == pytest.approx(0.2 / 0.6)


@pytest.mark.parametrize(("share", "is_told"), [(1.1e-3, True), (0.9e-3, False)])
def test_a_token_of_less_than_a_thousandth_is_not_handed_out(share: float, is_told: bool) -> None:
    by_rule = replace(beginnings(), rest_map=rule_map(torch.arange(len(RESTS))))
    last = of_one({"aa": share, "b": 0.1}, ("ab", math.log(1.0 - share)), 1, drawn=[])
    found = continuations(last, by_rule)
    entries = dict(zip(found.entries.ids.tolist(), found.entries.logprobs.exp().tolist(), strict=True))
    assert entries == pytest.approx({5: 1.0 - share} | ({RESTS.index("a"): share} if is_told else {}), rel=1e-3)
    assert float(found.rest_P[0]) == pytest.approx(0.0 if is_told else share, abs=1e-6)


@pytest.mark.parametrize(("n_agreeing", "is_told"), [(80, True), (78, False)])
def test_what_is_left_is_told_where_four_fifths_agree(n_agreeing: int, is_told: bool) -> None:
    """Of a hundred observations; the rule is one more of those that agree."""
    counts = torch.tensor([n_agreeing, 99 - n_agreeing])
    pairs = NextTokenCounts(torch.tensor([0, 0]), torch.tensor([0, 4]), counts)
    told = replace(beginnings(), rest_map=counted_shares(torch.zeros(len(RESTS), dtype=torch.int64), pairs))
    found = continuations(of_one({"aa": 0.4}, ("ab", math.log(0.6)), 1, drawn=[]), told)
    assert sorted(found.entries.ids.tolist()) == ([0, 4, 5] if is_told else [5])
    assert float(found.rest_P[0]) == pytest.approx(0.0 if is_told else 0.4, abs=1e-6)


def test_a_token_that_nothing_is_left_of_has_ended() -> None:
    """Its probability underflows beside a longer one, which is denied."""
    denied = frozenset({(0, RESTS.index("a"))})
    by_rule = replace(beginnings(denied), rest_map=rule_map(torch.arange(len(RESTS))))
    last = of_one({"aa": 0.9}, ("a", -200.0), 1, drawn=["b"])
    found = continuations(last, by_rule)
    assert found.rest_P.tolist() == [1.0]
    assert len(found.entries.ids) == 0


def at_common_boundary() -> SparseTarget:
    """Position 0 is inside a token, 1 at a common boundary, 2 at one with no last token, 3 inside without one."""
    return SparseTarget(
        temperature=1.0,
        has_target_N=torch.tensor([False, True, True, False]),
        has_bucket_N=torch.zeros(4, dtype=torch.bool),
        residual_N=torch.tensor([0.0, 0.4, 0.1, 0.0]),
        listed_mass_N=torch.tensor([0.0, 0.9, 0.95, 0.0]),
        entry_positions_Z=torch.tensor([1, 1, 2]).int(),
        entry_ids_Z=torch.tensor([2, 4, 0]).int(),
        entry_probs_Z=torch.tensor([0.5, 0.1, 0.9]),
        sample_positions_Y=torch.tensor([1, 2]).int(),
        sample_ids_Y=torch.tensor([0, 1]).int(),
        sample_probs_Y=torch.tensor([0.3, 0.05]),
    )


@pytest.mark.parametrize("has_bucket", [False, True], ids=["sampled", "residual"])
def test_at_a_common_boundary_the_next_row_has_the_share_of_the_ended_token(has_bucket: bool) -> None:
    last = map_tensors(last_tokens(3), itemgetter(slice(2, 6)))  # "aa" read to its first and its second byte, ...
    found = continuations(map_tensors(last, itemgetter(slice(0, 2))), beginnings())
    assert found.is_inside_P.tolist() == [True, False]
    buckets_N = at_common_boundary().has_target_N & has_bucket
    target = with_continuations(replace(at_common_boundary(), has_bucket_N=buckets_N), torch.tensor([0, 1]), found)
    (_, inside, bucket), (_, goes_on, ended) = (slowly(last, at, frozenset()) for at in (0, 1))
    assert entries_of(target, 0) == pytest.approx(inside, abs=1e-6)
    expected = {2: 0.5 * ended, 4: 0.1 * ended}
    for student_id, prob in goes_on.items():
        expected[student_id] = expected.get(student_id, 0.0) + prob
    assert entries_of(target, 1) == pytest.approx(expected, abs=1e-6)
    assert entries_of(target, 2) == pytest.approx({0: 0.9})
    assert target.residual_N.tolist() == pytest.approx([bucket, 0.4 * ended, 0.1, 0.0], abs=1e-6)
    assert target.listed_mass_N.tolist() == pytest.approx([1 - bucket, 1 - 0.1 * ended, 0.95, 0.0], abs=1e-6)
    assert target.has_target_N.tolist() == [True, True, True, False]
    assert target.has_bucket_N.tolist() == [True, has_bucket, has_bucket, False]
    assert target.sample_probs_Y.tolist() == pytest.approx([0.3 * ended, 0.05], abs=1e-6)
    assert target.entry_positions_Z.dtype is target.entry_ids_Z.dtype is torch.int32


@pytest.fixture(scope="module")
def split(chain: Chain) -> Split:
    return open_split(chain.windows / "train", chain.targets / "train")


def test_a_windows_target_has_them_where_the_windows_say(chain: Chain, split: Split) -> None:
    windows, shards = split.windows, split.shards
    vocabulary_map = load_vocabulary_map(chain.windows / "vocabulary_map", windows, inside_tokens=True)
    assert shards is not None
    assert vocabulary_map.beginnings is not None
    assert vocabulary_map.beginnings.merges.trials is None
    unknowing = load_vocabulary_map(chain.windows / "vocabulary_map", windows)
    assert unknowing.beginnings is None
    n_inside = 0
    for window in range(3):
        found = WindowTargets(windows, shards, vocabulary_map, SETTINGS).of(window)
        without = WindowTargets(windows, shards, unknowing, SETTINGS).of(window)
        rows_N, ids_N, n_read_N, next_ids_N = (
            windows.tokens(name, window).long()
            for name in ("last_teacher_rows", "last_teacher_ids", "last_teacher_bytes", "token_ids")
        )
        previous_ids_N = torch.cat([torch.tensor([windows.prefix_id]), next_ids_N[:-1]])
        positions = (rows_N >= 0).nonzero().squeeze(1)
        one_by_one = [read_rows(shards, rows_N[each, None]) for each in positions]
        rows = map_tensors(one_by_one[0], lambda _: torch.zeros(0))
        rows = type(rows)(*(torch.cat([getattr(each, name) for each in one_by_one]) for name in vars(rows)))
        columns = (ids_N, n_read_N, previous_ids_N, next_ids_N)
        last = LastTokens(rows, *(each[positions] for each in columns))
        continued = continuations(last, vocabulary_map.beginnings)
        assert are_equal(found, with_continuations(without, positions, continued))
        assert bool(found.has_target_N[1:].all()), "a position inside a teacher token has a target too"
        n_inside += int((found.has_target_N & ~without.has_target_N).sum())
    assert n_inside > 10


def test_there_are_none_where_the_students_merges_are_not_known(chain: Chain, split: Split, tmp_path: Path) -> None:
    shutil.copytree(chain.windows / "vocabulary_map", tmp_path / "map")
    forget_merges(tmp_path / "map")
    found = load_vocabulary_map(tmp_path / "map", split.windows, inside_tokens=True)
    assert found.merges is None
    assert found.beginnings is None


@pytest.mark.parametrize(
    ("positions", "temperature", "expected"), [("auto", 1.0, True), ("auto", 2.0, False), ("aligned", 1.0, False)]
)
def test_they_are_asked_for_at_a_temperature_of_1(positions: str, temperature: float, expected: bool) -> None:
    changes = {"kd_positions": positions, "temperature": temperature}
    assert asks_inside_tokens(fixed_params().experiment.model_copy(update=changes)) is expected


@pytest.mark.parametrize(("value", "says"), [(99, "has last_teacher_bytes 99"), (0, "has last_teacher_bytes 0")])
def test_more_bytes_than_the_last_token_has_are_refused(chain: Chain, tmp_path: Path, value: int, says: str) -> None:
    copy = chain.copy(tmp_path / "copy")
    rows = WindowStore(copy.windows / "train", STUDENT_WINDOWS).tokens("last_teacher_rows", 0)
    row = int((rows >= 0).nonzero()[0])
    forge_column(copy.windows / "train", 0, "last_teacher_bytes", lambda column: column[row].fill_(value))
    split = open_split(copy.windows / "train", copy.targets / "train")
    assert split.shards is not None
    vocabulary_map = load_vocabulary_map(chain.windows / "vocabulary_map", split.windows, inside_tokens=True)
    with pytest.raises(DataError, match=f"row {row} of tokens {says}"):
        WindowTargets(split.windows, split.shards, vocabulary_map, SETTINGS)
