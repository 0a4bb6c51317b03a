"""The report's pictures show what the curves hold."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from moe_distill.reporting import plots
from moe_distill.reporting.svg import term_svgs

HEADER = "step\texpert_share_0\texpert_share_1\texpert_entropy\tgate_divergence\n"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)
    return figures


def test_r11_experts_are_drawn_with_entropy_and_divergence(tmp_path: Path, drawn: list[Figure]) -> None:
    (tmp_path / "train_router.tsv").write_text(
        f"{HEADER}10\t\t\t\t\n20\t0.75\t0.25\t0.56\t0.02\n30\t0.5\t0.5\t0.69\t0.1\n"
    )
    assert plots.plot_experts(tmp_path, tmp_path / "experts.png")
    assert (tmp_path / "experts.png").stat().st_size > 1000
    above, below = drawn[0].axes
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for axes in (above, below) for line in axes.lines}
    assert {name: values[1:] for name, values in lines.items() if not str(name).startswith("even")} == {
        "expert 0": [0.75, 0.5],
        "expert 1": [0.25, 0.5],
        "entropy of the shares": [0.56, 0.69],
        "KL(student-aware gate, teacher's gate)": [0.02, 0.1],
    }
    assert lines["even use"] == [math.log(2)] * 2
    assert lines["even share"] == [0.5] * 2
    assert all(math.isnan(lines[f"expert {number}"][0]) for number in (0, 1)), "the router was off at step 10"


@pytest.mark.parametrize("rows", [1, 2])
def test_a_single_value_is_seen(tmp_path: Path, drawn: list[Figure], rows: int) -> None:
    """A line of one point shows nothing; a training of 100 steps that are logged every 100 has no more."""
    row = "\t0.75\t0.25\t0.56\t0.02\n"
    (tmp_path / "train_router.tsv").write_text(f"{HEADER}10\t\t\t\t\n{''.join(f'{n}{row}' for n in range(rows))}")
    assert plots.plot_experts(tmp_path, tmp_path / "experts.png")
    curves = [line for axes in drawn[0].axes for line in axes.lines if not str(line.get_label()).startswith("even")]
    assert [line.get_marker() == "." for line in curves] == [rows == 1] * 4


def test_a_single_step_of_a_term_is_seen(tmp_path: Path) -> None:
    for name in ("train_kd", "train_kd_validation", "train_router_validation"):
        (tmp_path / f"{name}.tsv").write_text("step\tlm_raw\n")
    (tmp_path / "train_router.tsv").write_text("step\tlm_raw\n100\t3.0\n")
    ((name, picture),) = term_svgs(tmp_path)
    assert name == "lm"
    assert f"fill: {plots.BLUE}" in picture, "a dot; a line of one point has a stroke alone"


def test_without_a_router_there_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "train_router.tsv").write_text("step\ttotal\n10\t2.0\n")
    assert not plots.plot_experts(tmp_path, tmp_path / "experts.png")
    assert not (tmp_path / "experts.png").exists()


def test_the_teacher_is_a_line_and_a_curve_without_rows_is_none(tmp_path: Path, drawn: list[Figure]) -> None:
    (tmp_path / "control_validation.tsv").write_text("step\tbits_per_byte\n")
    for stage in ("train_kd", "train_router"):
        (tmp_path / f"{stage}_validation.tsv").write_text("step\tbits_per_byte\n10\t2.5\n20\t2.25\n")
    plots.plot_bits_per_byte(tmp_path, 1.5, tmp_path / "curve.png")
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in drawn[0].axes[0].lines}
    assert lines == {
        "phase 1: LM + KD": [2.5, 2.25],
        "phase 2: + states and router": [2.5, 2.25],
        "teacher, same windows": [1.5, 1.5],
    }
