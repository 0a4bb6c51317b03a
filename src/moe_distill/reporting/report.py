"""Write the report, as a page and as Markdown."""

from pathlib import Path

from moe_distill.config.corpus_keys import source_name
from moe_distill.config.params import Params
from moe_distill.evaluation.metrics import Metrics
from moe_distill.reporting import figure_tables, run_tables
from moe_distill.reporting.markdown import make_environment
from moe_distill.reporting.plots import plot_bits_per_byte, plot_experts, read_curve
from moe_distill.reporting.report_inputs import ReportInputs
from moe_distill.reporting.svg import bits_per_byte_svg, calibration_svg, experts_svg, term_svgs
from moe_distill.reporting.verdicts import verdicts


def write_report(inputs: ReportInputs, folder: Path) -> None:
    """Write `report.html`, which needs no other file, and `report.md` with its pictures."""
    teacher = inputs.measured.metrics["teacher_watched_bits_per_byte"]
    plot_bits_per_byte(inputs.curves, teacher, folder / "bits_per_byte.png")
    values = {
        **report_view(inputs),
        "has_router": plot_experts(inputs.curves, folder / "experts.png"),
        "curve": bits_per_byte_svg(inputs.curves, teacher),
        "terms": term_svgs(inputs.curves),
        "experts": experts_svg(inputs.curves),
        "calibration": calibration_svg(inputs.measured.calibration),
    }
    for name, is_page in (("report.html", True), ("report.md", False)):
        text = make_environment(is_page).get_template(f"{name}.jinja").render(values)
        (folder / name).write_text(text, encoding="utf-8")


def report_view(inputs: ReportInputs) -> dict[str, object]:
    """What the templates show, pictures aside."""
    params, metrics = inputs.params, inputs.measured.metrics
    kd_weight = kd_weight_told(params, inputs.curves)
    return {
        "metrics": metrics,
        "params": params,
        "commit": inputs.facts.commit,
        "kd_weight": kd_weight,
        "verdicts": verdicts(metrics),
        "has_baseline": figure_tables.has_baseline(metrics),
        "retention": figure_tables.retention_told(metrics),
        "watched": _watched_told(metrics),
        "models": run_tables.models_table(params, inputs.teacher, inputs.student, metrics),
        "figures": figure_tables.figures_table(params, metrics),
        "agreement": figure_tables.agreement_table(metrics),
        "corpus": run_tables.corpus_table(params, inputs.corpus),
        "alignment": run_tables.alignment_table(inputs.tokenize),
        "sources": figure_tables.sources_table(metrics, [source_name(each) for each in params.profile.corpus.sources]),
        "cost": run_tables.cost_table(inputs.facts.stages),
        "speed": figure_tables.speed_table(metrics),
        "run": run_tables.run_table(inputs.facts),
        "parameters": run_tables.parameters_table(params, kd_weight),
        "tiles": figure_tables.tiles(metrics),
        "commands": inputs.facts.commands,
        "positions": inputs.positions,
        "samples": inputs.samples,
    }


def kd_weight_told(params: Params, curves: Path) -> str:
    """The KD weight that was set; where it was auto, with what the teacher had earned at the end."""
    if params.experiment.kd_weight != "auto":
        return str(params.experiment.kd_weight)
    validations = read_curve(curves / "train_router_validation.tsv")
    return f"auto ({validations['kd_weight'][-1]:.3f} at the end)"


def _watched_told(metrics: Metrics) -> str:
    """Of which windows the curves are."""
    watched, total = metrics["watched_windows"], metrics["validation_windows"]
    if watched == total:
        return f"Of all {total:,.0f} validation windows; so is the teacher's line."
    return (
        f"Of the {watched:,.0f} validation windows (of {total:,.0f}) that the training watches; so is the teacher's "
        "line. The figures elsewhere are of all."
    )
