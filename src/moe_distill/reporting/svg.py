"""Pictures of a report as SVG to be put inside a page, in colours that can be seen on a light and on a dark ground."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from moe_distill.evaluation.metrics import CalibrationBin
from moe_distill.reporting.plots import (
    BLUE,
    GRAY,
    ORANGE,
    Table,
    draw_bits_per_byte,
    draw_experts,
    draw_line,
    read_curve,
)

INK = "#123456"  # stands for the colour of the page's text, and is replaced by `currentColor`
STYLE: Any = {
    "svg.fonttype": "none",  # text as text, in the page's font
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}
SIZE, TALL, SQUARE, SMALL = (5.0, 2.9), (5.0, 4.0), (4.0, 3.4), (3.8, 2.3)
OF_THE_OPTIMIZER = ("learning_rate", "gradient_norm", "loss_scale", "padding_share", "skipped_steps")


def bits_per_byte_svg(curves: Path, teacher: float) -> str:
    """Validation bits per byte of every training over the steps, and the teacher's on the same windows."""
    with _drawn("bits-per-byte", SIZE) as (figure, axes):
        draw_bits_per_byte(axes, curves, teacher, INK)
        return _svg(figure, "validation bits per byte over the optimizer steps")


def term_svgs(curves: Path) -> list[tuple[str, str]]:
    """Name and picture of every term and of every other column of the curves of distillation.

    Training steps are a line; what the validations measured, where they measure it, are points.
    """
    stages = ("train_kd", "train_router")
    steps = [read_curve(curves / f"{stage}.tsv") for stage in stages]
    validations = [read_curve(curves / f"{stage}_validation.tsv") for stage in stages]
    names = list(dict.fromkeys(name for table in (*steps, *validations) for name in table))
    names.sort(key=lambda name: name in OF_THE_OPTIMIZER)  # last, and else in the order of the files
    pictures = []
    for name in names:
        if name == "step" or name.startswith(("expert_", "gate_")) or name.endswith("_weighted"):
            continue
        term = name.removesuffix("_raw")
        trained, weighted = _points(steps, name), _points(steps, f"{term}_weighted")
        validated = ([], []) if name in OF_THE_OPTIMIZER else _points(validations, name)
        if _is_told(name, trained[1]) or _is_told(name, validated[1]):
            told = term.replace("_", " ")
            pictures.append((told, _term_svg(told, trained, validated, weighted)))
    return pictures


def experts_svg(curves: Path) -> str:
    """Shares of the experts, and entropy and divergence of the gate; empty where there is no router."""
    with _drawn("experts", TALL, rows=2) as (figure, axes):
        if not draw_experts(axes, curves, INK):
            return ""
        return _svg(figure, "share of each expert, entropy of the shares and divergence from the teacher's gate")


def calibration_svg(bins: Sequence[CalibrationBin]) -> str:
    """How often the student's first token is right, beside how sure it was."""
    with _drawn("calibration", SQUARE) as (figure, axes):
        axes.plot([0, 1], [0, 1], linestyle="--", color=INK, linewidth=1, label="as sure as it should be")
        sizes = [20 + 600 * each.share for each in bins]
        confidences, accuracies = [each.confidence for each in bins], [each.accuracy for each in bins]
        axes.plot(confidences, accuracies, color=BLUE, linewidth=1)
        axes.scatter(confidences, accuracies, s=sizes, color=BLUE, alpha=0.7, label="student; area: share of positions")
        axes.set(xlabel="probability of its first token", ylabel="how often that came next", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left")
        return _svg(figure, "accuracy of the student's first token by its probability")


Points = tuple[list[float], list[float]]


def _term_svg(name: str, trained: Points, validated: Points, weighted: Points) -> str:
    with _drawn(f"term-{name}", SMALL) as (figure, axes):
        draw_line(axes, *trained, color=BLUE, linewidth=1.2, label="training")
        if _is_told("weighted", weighted[1]):
            draw_line(axes, *weighted, color=GRAY, linewidth=1.0, label="weighted")
        if _is_told(name, validated[1]):
            axes.plot(*validated, color=ORANGE, linestyle="", marker=".", label="validation")
        if len(axes.lines) > 1:
            axes.legend(fontsize=7)
        axes.set(xlabel="optimizer step", xlim=(0, None))
        return _svg(figure, f"{name} over the optimizer steps")


def _points(tables: Sequence[Table], name: str) -> Points:
    """A column of several phases, one after the other."""
    steps = [step for table in tables if name in table for step in table["step"]]
    return steps, [value for table in tables if name in table for value in table[name]]


def _is_told(name: str, values: Sequence[float]) -> bool:
    """Whether a column says anything: not of a term that was never computed, nor a loss that was never scaled."""
    nothing = 1.0 if name == "loss_scale" else 0.0
    return any(value != nothing for value in values if not math.isnan(value))


@contextmanager
def _drawn(salt: str, size: tuple[float, float], rows: int = 1) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes; `salt` keeps the ids of two pictures of a page apart, and alike in every run."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure, axes = plt.subplots(rows, figsize=size, sharex=rows > 1, layout="constrained")
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def _svg(figure: Figure, told: str) -> str:
    """The figure as one element for a page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"\A.*?(?=<svg)|<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    used = set(re.findall(r'#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    (head, width), rest = _head(svg)
    svg = f'<svg role="img" aria-label="{told}" style="--width: {width}pt"{head}{rest}'
    return svg.replace(INK, "currentColor").strip()


def _head(svg: str) -> tuple[tuple[str, str], str]:
    """The attributes of the outermost element without its size, its width in points, and all that follows."""
    head, rest = svg.removeprefix("<svg").split(">", 1)
    width = re.search(r' width="([\d.]+)pt"', head)
    assert width is not None
    return (re.sub(r' (?:width|height)="[\d.]+pt"', "", head) + ">", width[1]), rest
