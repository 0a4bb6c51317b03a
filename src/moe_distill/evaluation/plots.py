"""The plots of the report, from the curves' TSV files."""

import csv
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Table = dict[str, list[float]]


def read_curve(path: Path) -> Table:
    """The columns of a TSV file by name; an empty cell is NaN, which a plot leaves out."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = list(rows[0]) if rows else []
    return {name: [float(row[name] or math.nan) for row in rows] for name in names}


def plot_bits_per_byte(curves: Path, teacher: float, output: Path) -> None:
    """Plot validation bits per byte of the distilled and the LM-only student over the steps, the teacher as a line."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for stage, label, colour in (
        ("control", "LM only", "tab:gray"),
        ("train_kd", "phase 1: LM + KD", "tab:orange"),
        ("train_router", "phase 2: + states and router", "tab:blue"),
    ):
        table = read_curve(curves / f"{stage}_validation.tsv")
        axes.plot(table["step"], table["bits_per_byte"], marker=".", label=label, color=colour)
    axes.axhline(teacher, linestyle="--", color="black", label="teacher")
    axes.set(xlabel="optimizer step", ylabel="validation bits per byte")
    axes.legend()
    figure.savefig(output, dpi=120, metadata={"Software": None})
    plt.close(figure)


def plot_experts(curves: Path, output: Path) -> bool:
    """Plot how the student-aware router uses the experts over the steps; returns False where there is no router.

    The upper plot has the share of each expert in the mixtures; the lower one, in nats, the entropy of the shares and
    the divergence of the student-aware gate from the teacher's.
    """
    table = read_curve(curves / "train_router.tsv")
    shares = [name for name in table if name.startswith("expert_share_")]
    if not shares:
        return False
    figure, (above, below) = plt.subplots(2, figsize=(7, 5), sharex=True, layout="constrained")
    for name in shares:
        above.plot(table["step"], table[name], label=name.replace("expert_share_", "expert "))
    above.set(ylabel="share of the mixture", ylim=(0, 1))
    above.legend()
    below.plot(table["step"], table["expert_entropy"], label="entropy of the shares")
    below.axhline(math.log(len(shares)), linestyle="--", color="black", label="even use")
    below.plot(table["step"], table["gate_divergence"], label="KL(student-aware gate, teacher's gate)")
    below.set(xlabel="optimizer step", ylabel="nats", ylim=(0, None))
    below.legend()
    figure.savefig(output, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return True
