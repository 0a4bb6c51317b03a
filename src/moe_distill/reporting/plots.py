"""The pictures of a report, from the curves' TSV files; as PNG on white, which can be read wherever they are shown."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

Table = dict[str, list[float]]
BLUE, ORANGE, GRAY, GREEN = "#3b82f6", "#e8862e", "#8a919c", "#2fa36b"  # seen on white and on black
CYCLE = (BLUE, ORANGE, GREEN, "#d9534f", "#9b77dd", "#17a2b8", "#b58900", "#e26fb3")
MOST_EXPERTS = 12  # that are named in a legend


def read_curve(path: Path) -> Table:
    """The columns of a TSV file by name, none where it has no row; an empty cell is NaN, which a plot leaves out."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = list(rows[0]) if rows else []
    return {name: [float(row[name] or math.nan) for row in rows] for name in names}


def plot_bits_per_byte(curves: Path, teacher: float, output: Path) -> None:
    """Write `draw_bits_per_byte` as a PNG."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    draw_bits_per_byte(axes, curves, teacher, "black")
    _save(figure, output)


def plot_experts(curves: Path, output: Path) -> bool:
    """Write `draw_experts` as a PNG; returns False where there is no router."""
    figure, axes = plt.subplots(2, figsize=(7, 5), sharex=True, layout="constrained")
    is_drawn = draw_experts(axes, curves, "black")
    if is_drawn:
        _save(figure, output)
    else:
        plt.close(figure)
    return is_drawn


def draw_bits_per_byte(axes: Any, curves: Path, teacher: float, ink: str) -> None:
    """Draw validation bits per byte of the distilled and the LM-only student over the steps, the teacher as a line.

    Args:
        teacher: bits per byte on the windows that the curves are of.
        ink: colour of the teacher's line.
    """
    for stage, label, colour in (
        ("control", "LM only", GRAY),
        ("train_kd", "phase 1: LM + KD", ORANGE),
        ("train_router", "phase 2: + states and router", BLUE),
    ):
        table = read_curve(curves / f"{stage}_validation.tsv")
        if table:
            axes.plot(table["step"], table["bits_per_byte"], marker=".", label=label, color=colour)
    axes.axhline(teacher, linestyle="--", color=ink, label="teacher, same windows")
    axes.set(xlabel="optimizer step", ylabel="validation bits per byte")
    axes.legend()


def draw_experts(axes: Any, curves: Path, ink: str) -> bool:
    """Draw how the student-aware router uses the experts over the steps; returns False where there is no router.

    Args:
        axes: two; the upper gets the share of each expert in the mixtures; the lower, in nats, the entropy of the
            shares and the divergence of the student-aware gate from the teacher's.
        ink: colour of the lines that say what even use is.
    """
    table = read_curve(curves / "train_router.tsv")
    shares = [name for name in table if name.startswith("expert_share_")]
    if not shares:
        return False
    above, below = axes
    for number, name in enumerate(shares):
        label = name.replace("expert_share_", "expert ") if len(shares) <= MOST_EXPERTS else None
        draw_line(above, table["step"], table[name], label=label, color=CYCLE[number % len(CYCLE)])
    above.axhline(1 / len(shares), linestyle="--", linewidth=1, color=ink, label="even share")
    above.set(ylabel="share of the mixture", ylim=(0, None))
    above.legend(ncols=3)
    draw_line(below, table["step"], table["expert_entropy"], label="entropy of the shares", color=BLUE)
    below.axhline(math.log(len(shares)), linestyle="--", linewidth=1, color=ink, label="even use")
    divergence = "KL(student-aware gate, teacher's gate)"
    draw_line(below, table["step"], table["gate_divergence"], label=divergence, color=ORANGE)
    below.set(xlabel="optimizer step", ylabel="nats", ylim=(0, None))
    below.legend()
    return True


def draw_line(axes: Any, steps: Sequence[float], values: Sequence[float], **style: Any) -> None:
    """Draw a line; where there is but one value, of which a line shows nothing, as a point."""
    is_single = sum(not math.isnan(value) for value in values) == 1
    axes.plot(steps, values, marker="." if is_single else "", **style)


def _save(figure: Figure, output: Path) -> None:
    figure.savefig(output, dpi=120, metadata={"Software": None})
    plt.close(figure)
