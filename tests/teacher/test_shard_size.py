"""What the real pair's shards take on disk, from the fields and from windows of real text."""

from collections.abc import Iterator
from itertools import chain

import pytest

from moe_distill.config.corpus_keys import Hub
from moe_distill.config.profile import MINIMUM_ROUTER_POSITIONS, Profile
from moe_distill.corpus.raw import RawDocument
from moe_distill.corpus.resize import join_rows
from moe_distill.shards.format import row_bytes
from moe_distill.teacher.capture import capture_fields
from tests.assets import real_text, real_tokenizer
from tests.params import ROOT, shipped_profile

TEACHER_SIZE, EXPERTS = 1024, 3  # Huihui-MoE-1B
ALIGNED = (
    0.95  # share of the student's positions, at least; 0.964 for the real pair (tests/alignment/test_real_pair.py)
)


@pytest.fixture(params=["p100", "t4x2"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def profile(name: str) -> Profile:
    return shipped_profile(name)


def shard_bytes(profile: Profile, positions: float, runs: float) -> float:
    capture = profile.teacher
    each = row_bytes(capture_fields(capture, TEACHER_SIZE, EXPERTS))
    return positions * each["positions"] + runs * capture.hidden_run * each["hidden"]


def n_windows(profile: Profile) -> int:
    assert profile.windows.max_train_windows is not None
    assert profile.windows.max_validation_windows is not None
    return profile.windows.max_train_windows + profile.windows.max_validation_windows


def window_lengths(profile: Profile) -> Iterator[int]:
    """Tokens of the windows of real text of the profile's kind: each line a row, joined as the profile says."""
    source = profile.corpus.sources[0]
    assert isinstance(source, Hub)
    assert source.join_rows_to_characters is not None
    rows = (
        RawDocument(line, "wikitext", number)
        for number, line in enumerate(real_text("wikitext2_test_raw.txt").splitlines(keepends=True), start=1)
    )
    tokenizer, most = real_tokenizer("qwen3"), profile.windows.teacher_max_length - 1
    for document in join_rows(rows, source.join_rows_to_characters):
        assert isinstance(document, RawDocument)
        whole, rest = divmod(len(tokenizer.encode(document.text, add_special_tokens=False)), most)
        yield from chain([most] * whole, [rest] * bool(rest))


def test_shards_of_the_real_pair_stay_within_15_gb_even_if_every_window_is_full(profile: Profile) -> None:
    count = n_windows(profile)
    positions = count * (profile.windows.teacher_max_length - 1)
    assert shard_bytes(profile, positions, count * profile.teacher.hidden_fraction) < 15e9


def test_what_the_profile_of_the_real_pair_says_holds_for_real_text(name: str, profile: Profile) -> None:
    capture, comments = profile.teacher, (ROOT / f"profiles/{name}.yaml").read_text()
    lengths = list(window_lengths(profile))
    mean = sum(lengths) / len(lengths)
    long_enough = sum(length >= capture.hidden_run for length in lengths) / len(lengths)
    positions, runs = n_windows(profile) * mean, n_windows(profile) * long_enough * capture.hidden_fraction
    assert f"{n_windows(profile):,} x {mean:.0f} = {positions / 1e6:.1f} million positions" in comments
    assert f"{shard_bytes(profile, positions, runs) / 1e9:.1f} GB in all" in comments
    assert f"{long_enough:.1%} of the windows with at least {capture.hidden_run}" in comments
    # and a step of the router sees enough positions
    seen = profile.train.batch_windows * long_enough * capture.hidden_fraction * capture.hidden_run
    assert seen * ALIGNED > 1.05 * MINIMUM_ROUTER_POSITIONS
