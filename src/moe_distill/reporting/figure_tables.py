"""The tables of what was measured: pure functions of metrics/evaluate.json."""

from collections.abc import Sequence

from moe_distill.config.params import Params
from moe_distill.evaluation.metrics import Metrics
from moe_distill.reporting.tables import Table, told_bytes, told_count


def figures_table(params: Params, metrics: Metrics) -> Table:
    """Bits per byte of every model, the best first not: in the order of the method."""
    corrected = ", corrected on the training text" if params.profile.models.teacher_correction else ""
    models = [(f"teacher{corrected}", "teacher", ""), ("student, distilled", "student", steps_told(metrics, "student"))]
    models.append(("student after phase 1", "student_kd", ""))
    if has_baseline(metrics):
        models.append(("the same student, LM only", "lm_only", steps_told(metrics, "lm_only")))
    models.append(("the same student, untrained", "student_init", "0"))
    rows = tuple((told, f"{metrics[f'{name}_bits_per_byte']:.4f}", steps) for told, name, steps in models)
    note = "Of all validation text; bits per byte can be compared between tokenizers, and less is better."
    if not has_baseline(metrics):
        note += " There is no row of the same student trained on the text alone: the profile says `baseline: none`."
    return Table(("model", "bits per byte", "optimizer steps"), rows, note)


def agreement_table(metrics: Metrics) -> Table:
    """How far the student says what the teacher says, and how sure it is."""
    infinite = "infinite: beyond 1.8e308"
    perplexity = f"{metrics['student_perplexity']:.4f}" if "student_perplexity" in metrics else infinite
    rows = (
        ("top-1 agreement", f"{metrics['top1_agreement']:.4f}", "both put the same token first"),
        ("top-5 overlap", f"{metrics['top5_overlap']:.4f}", "shared tokens of the first five"),
        ("KL(teacher, student), nats", f"{metrics['kl_teacher_student']:.4f}", "the tail in one bucket"),
        ("expected calibration error", f"{metrics['expected_calibration_error']:.4f}", "at all positions"),
        ("NLL per student token, nats", f"{metrics['student_nll_per_token']:.4f}", "of all validation text"),
        ("perplexity per student token", perplexity, "of the student's own tokens"),
    )
    return Table(("figure", "value", "of"), rows, "The first three at aligned positions, beside the mapped teacher.")


def sources_table(metrics: Metrics, names: Sequence[str]) -> Table | None:
    """Bits per byte of the final student on each source; None where the validation text is of one."""
    rows = tuple(
        (name, f"{metrics[f'bits_per_byte_{name}']:.4f}") for name in names if f"bits_per_byte_{name}" in metrics
    )
    return Table(("source", "bits per byte of the student"), rows) if rows else None


def speed_table(metrics: Metrics) -> Table:
    """What both models cost to run."""
    rows = (
        ("parameters", told_count(metrics["teacher_parameters"]), told_count(metrics["student_parameters"])),
        ("bytes of the weights", told_bytes(metrics["teacher_bytes"]), told_bytes(metrics["student_bytes"])),
        (
            "tokens per second",
            told_count(metrics["teacher_tokens_per_second"]),
            told_count(metrics["student_tokens_per_second"]),
        ),
        (
            "of which work",
            "layers, output matrix, probabilities; top-k, tail samples and states for the shards",
            "layers, output matrix, log-likelihood",
        ),
    )
    return Table(("", "teacher", "student"), rows)


def has_baseline(metrics: Metrics) -> bool:
    """Whether the same student was trained on LM alone too."""
    return "lm_only_bits_per_byte" in metrics


def retention_told(metrics: Metrics) -> str:
    """Retention with its meaning."""
    if "retention" not in metrics:
        return "Retention is undefined: the teacher is not clearly better than the untrained student."
    meaning = "the share of the teacher's gain over the untrained student that is kept"
    return f"Retention, {meaning}: {metrics['retention']:.3f}."


def steps_told(metrics: Metrics, name: str) -> str:
    """Optimizer steps of a training."""
    return f"{told_count(metrics[f'{name}_steps'])}{' (stopped early)' if metrics[f'{name}_stopped_early'] else ''}"


def tiles(metrics: Metrics) -> list[tuple[str, str, str]]:
    """The figures that stand large at the top: name, value, what it is."""
    shown = [("student", f"{metrics['student_bits_per_byte']:.4f}", "bits per byte, distilled")]
    if has_baseline(metrics):
        shown.append(("LM only", f"{metrics['lm_only_bits_per_byte']:.4f}", "the same, without a teacher"))
    else:
        shown.append(("LM only", "not measured", "`baseline: none`"))
    shown.append(
        (
            "teacher",
            f"{metrics['teacher_bits_per_byte']:.4f}",
            f"{told_count(metrics['teacher_parameters'])} parameters",
        )
    )
    shown.append(
        (
            "untrained",
            f"{metrics['student_init_bits_per_byte']:.4f}",
            f"{told_count(metrics['student_parameters'])} parameters",
        )
    )
    shown.append(
        ("retention", f"{metrics['retention']:.3f}" if "retention" in metrics else "undefined", "of the teacher's gain")
    )
    return shown
