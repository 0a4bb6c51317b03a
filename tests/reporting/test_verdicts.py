"""What a report says at its top: nothing that flatters."""

import pytest

from moe_distill.reporting.verdicts import Verdict, gain, verdicts
from tests.reporting.crafted import METRICS, NO_BASELINE


def said(**changes: float) -> dict[str, Verdict]:
    return {each.headline: each for each in verdicts(METRICS | changes)}


@pytest.mark.parametrize(
    ("value", "low", "high", "tone", "headline", "detail"),
    [
        (0.02, 0.01, 0.03, "good", "Distillation gains 0.0200 bits per byte", "Over the same training without"),
        (-0.02, -0.03, -0.01, "bad", "Distillation loses 0.0200 bits per byte", "Against the same training without"),
        (0.02, -0.01, 0.05, "open", "Whether distillation gains cannot be told", "It gains 0.0200 bits per byte"),
        (
            0.00003,
            0.00001,
            0.00006,
            "open",
            "Whether distillation gains cannot be told",
            "It gains 0.0000 bits per byte",
        ),
        (-0.02, -0.05, 0.01, "open", "Whether distillation gains cannot be told", "It loses 0.0200 bits per byte"),
    ],
)
def test_a_gain_is_called_one_only_where_it_is(
    value: float, low: float, high: float, tone: str, headline: str, detail: str
) -> None:
    figures = {"gain_over_lm_only": value, "gain_over_lm_only_low": low, "gain_over_lm_only_high": high}
    found = gain(METRICS | figures)
    assert (found.tone, found.headline) == (tone, headline)
    assert found.detail.startswith(detail)
    assert f"{low:+.4f} to {high:+.4f} in 95% of resamples" in found.detail
    assert "not over seeds" in found.detail
    assert "of another number of steps" not in found.detail
    assert "of another number of steps" in gain(METRICS | figures | {"lm_only_steps": 22.0}).detail


@pytest.mark.parametrize(("low", "high"), [(-4e-9, -2e-9), (2e-9, 3e-9), (-4e-5, 4e-5), (0.0, 0.0)])
def test_what_no_written_digit_shows_is_no_gain_and_no_loss(low: float, high: float) -> None:
    """Where the teacher has earned no weight, the student is the baseline but for rounding."""
    figures = {"gain_over_lm_only": (low + high) / 2, "gain_over_lm_only_low": low, "gain_over_lm_only_high": high}
    found = gain(METRICS | figures)
    assert (found.tone, found.headline) == ("open", "Distillation makes no difference")


def test_without_a_baseline_the_gain_was_not_measured() -> None:
    found = verdicts({name: value for name, value in METRICS.items() if name not in NO_BASELINE})
    assert found[0].headline == "What distillation gains over plain training was not measured"
    assert found[0].tone == "open"
    assert "baseline: none" in found[0].detail
    assert "1.7000 bits per byte ahead of the untrained one" in found[0].detail
    assert not [each for each in found if "plain training" in each.headline and each is not found[0]]


def test_of_an_ordinary_run_the_gain_and_the_start_are_told_and_no_doubt() -> None:
    assert list(said()) == ["Distillation gains 0.1000 bits per byte", "Teacher and student at the start"]
    start = said()["Teacher and student at the start"]
    assert start.tone == "good"
    assert start.detail == "Before any training the teacher was 2.0000 bits per byte ahead of the student on this text."


def test_a_teacher_no_better_than_the_student_is_told() -> None:
    told = said(teacher_bits_per_byte=1.85, retention=1.03)
    assert "0.0500 bits per byte ahead of its teacher" in told["The teacher is no better than the student"].detail
    assert "the student has passed its teacher" in told["Retention is 1.030, above 1"].detail
    assert "The teacher is no better than plain training" not in told
    assert (
        "level with its teacher" in said(teacher_bits_per_byte=1.8)["The teacher is no better than the student"].detail
    )


def test_a_teacher_no_better_than_plain_training_is_told() -> None:
    told = said(teacher_bits_per_byte=1.95)
    assert "0.0500 bits per byte ahead of the teacher" in told["The teacher is no better than plain training"].detail


def test_a_teacher_behind_at_the_start_is_told() -> None:
    metrics = {name: value for name, value in METRICS.items() if name != "retention"} | {"teacher_bits_per_byte": 3.6}
    told = {each.headline: each for each in verdicts(metrics)}
    assert told["Teacher and student at the start"].tone == "bad"
    assert "0.1000 bits per byte behind the student" in told["Teacher and student at the start"].detail
    assert "Retention is undefined" in told


def test_a_student_that_got_worse_and_a_teacher_that_taught_nothing_are_told() -> None:
    assert "worse than before its training" in said(retention=-0.25)["Retention is -0.250, below 0"].detail
    assert "in less than half" in said(kd_weight_at_the_end=0.0)["The teacher's weight fell to 0"].detail
    assert "The teacher's weight fell to 0" not in said(kd_weight_at_the_end=0.5)
