"""What a report says at its top, in words: what distillation has brought, and what makes the figures doubtful."""

from dataclasses import dataclass
from typing import Literal

from moe_distill.evaluation.metrics import Metrics

SMALLEST_SHOWN = 0.5e-4  # bits per byte: half of the last digit that is written


@dataclass(frozen=True)
class Verdict:
    """One sentence in bold, and what stands behind it."""

    tone: Literal["good", "bad", "open"]
    headline: str
    detail: str


def verdicts(metrics: Metrics) -> list[Verdict]:
    """The verdict on the gain, then every reason to doubt it or to read a figure otherwise.

    Args:
        metrics: of metrics/evaluate.json.
    """
    return [gain(metrics), *doubts(metrics), _lead(metrics)]


def doubts(metrics: Metrics) -> list[Verdict]:
    """What makes the figures doubtful, or asks to be read otherwise; often nothing."""
    found = (_beside_teacher(metrics), _teacher_beside_baseline(metrics), _retention(metrics), _kd_weight(metrics))
    return [each for each in found if each is not None]


def gain(metrics: Metrics) -> Verdict:
    """What distillation has brought over plain training, as far as the validation text can tell."""
    if "gain_over_lm_only" not in metrics:
        return Verdict(
            "open",
            "What distillation gains over plain training was not measured",
            "The profile says `baseline: none`, so that no student was trained on the text alone. "
            "The student is "
            f"{_ahead(metrics['student_init_bits_per_byte'] - metrics['student_bits_per_byte'], 'the untrained one')}, "
            "which plain training might have reached too.",
        )
    value, low, high = (metrics[f"gain_over_lm_only{end}"] for end in ("", "_low", "_high"))
    same = metrics["student_steps"] == metrics["lm_only_steps"]
    beside = f"the same training without the teacher{'' if same else ', of another number of steps'}"
    spread = (
        f"{low:+.4f} to {high:+.4f} in 95% of resamples of the validation texts: the spread over texts, not over seeds."
    )
    if max(abs(low), abs(high)) < SMALLEST_SHOWN:
        what = f"Beside {beside} it is the same to four digits. The spread is that over texts, not over seeds."
        return Verdict("open", "Distillation makes no difference", what)
    if low > 0 and value >= SMALLEST_SHOWN:
        return Verdict("good", f"Distillation gains {value:.4f} bits per byte", f"Over {beside}; {spread}")
    if high < 0 and value <= -SMALLEST_SHOWN:
        return Verdict("bad", f"Distillation loses {-value:.4f} bits per byte", f"Against {beside}; {spread}")
    direction = "gains" if value >= 0 else "loses"
    what = f"It {direction} {abs(value):.4f} bits per byte against {beside}, no more than chance could do; {spread}"
    return Verdict("open", "Whether distillation gains cannot be told", what)


def _beside_teacher(metrics: Metrics) -> Verdict | None:
    ahead = metrics["teacher_bits_per_byte"] - metrics["student_bits_per_byte"]
    if ahead < 0:
        return None
    return Verdict(
        "open",
        "The teacher is no better than the student",
        f"On this text the student is {_ahead(ahead, 'its teacher')}: nothing was left to learn from it here.",
    )


def _teacher_beside_baseline(metrics: Metrics) -> Verdict | None:
    if "lm_only_bits_per_byte" not in metrics:
        return None
    ahead = metrics["teacher_bits_per_byte"] - metrics["lm_only_bits_per_byte"]
    if ahead < 0:
        return None
    told = f"Trained on the text alone, the same student is {_ahead(ahead, 'the teacher')}: this text does not need it."
    return Verdict("bad", "The teacher is no better than plain training", told)


def _retention(metrics: Metrics) -> Verdict | None:
    if "retention" not in metrics:
        return Verdict(
            "open",
            "Retention is undefined",
            "The teacher is not clearly better than the untrained student, so that there is no gain to keep.",
        )
    kept = metrics["retention"]
    if 0.0 <= kept <= 1.0:
        return None
    if kept > 1.0:
        told = "Above 1 the student has passed its teacher on this text; the text taught it, and not the teacher alone."
        return Verdict("open", f"Retention is {kept:.3f}, above 1", told)
    return Verdict("bad", f"Retention is {kept:.3f}, below 0", "The student is worse than before its training.")


def _kd_weight(metrics: Metrics) -> Verdict | None:
    if metrics.get("kd_weight_at_the_end", 1.0) > 0.0:
        return None
    told = "At the end of the training the teacher was ahead of the student in less than half of the validation text."
    return Verdict("bad", "The teacher's weight fell to 0", told)


def _lead(metrics: Metrics) -> Verdict:
    ahead = metrics["student_init_bits_per_byte"] - metrics["teacher_bits_per_byte"]
    told = f"Before any training the teacher was {_ahead(ahead, 'the student')} on this text."
    return Verdict("good" if ahead > 0 else "bad", "Teacher and student at the start", told)


def _ahead(bits: float, other: str) -> str:
    """How far a model is ahead of another one, in bits per byte."""
    if bits == 0.0:
        return f"level with {other}"
    return f"{abs(bits):.4f} bits per byte {'ahead of' if bits > 0 else 'behind'} {other}"
