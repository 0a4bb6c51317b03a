"""Names and sections of what MLflow shows."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from moe_distill.config.params import Losses
from moe_distill.tracking.stage_figures import StageFigures, figure_of, read_stage
from moe_distill.training.recorder import curve_columns

TERMS = ("lm", "kd", *Losses.model_fields)
EVALUATED = ["student_init", "student_kd", "lm_only", "student", "teacher"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics/curves").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


def write_curve(name: str, rows: Mapping[str, Iterable[float]]) -> None:
    lines = [rows, *zip(*rows.values(), strict=True)]
    Path("metrics/curves", f"{name}.tsv").write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))


def write_figures(stage: str, figures: Mapping[str, float]) -> None:
    Path("metrics", f"{stage}.json").write_text(json.dumps(figures))


def curve_of(name: str, columns: list[str]) -> None:
    """Every column another value at every step."""
    numbers = {column: [number + 0.5, number + 0.25] for number, column in enumerate(columns)}
    write_curve(name, {"step": [1, 2], **numbers})


def names_of(figures: StageFigures) -> set[str]:
    return {*figures.curves, *figures.figures}


def test_under_150_names_with_64_experts_and_12_sources() -> None:
    columns = curve_columns(TERMS, 64, measures_kd_weight=True)
    for stage in ("train_kd", "train_router", "control"):
        curve_of(stage, columns)
        curve_of(f"{stage}_validation", columns)
        write_figures(stage, {f"validation_{column}": 1.0 for column in columns} | {"steps": 2.0, "kd_weight": 0.9})
    sources = {f"bits_per_byte_source {number}": 1.0 for number in range(12)}
    write_figures("evaluate", {f"{model}_bits_per_byte": 1.0 for model in EVALUATED} | sources | {"retention": 0.9})
    stages = ("train_kd", "train_router", "control", "evaluate")
    names = set().union(*(names_of(read_stage(stage)) for stage in stages))
    assert 60 < len(names) < 150
    assert sum(name.startswith("validation_all/bits_per_byte_source") for name in names) == 12
    assert all(name.count("/") == 1 for name in names), "MLflow makes a section of what stands before /"
    sections = [name.partition("/")[0] for name in names]
    assert max(map(sections.count, sections)) <= 20
    router = read_stage("train_router").curves
    shares = [columns.index(f"expert_share_{expert}") for expert in range(64)]
    assert router["train_experts/max_share"] == {1: max(shares) + 0.5, 2: max(shares) + 0.25}
    assert router["validation_experts/min_share"] == {1: min(shares) + 0.5, 2: min(shares) + 0.25}


def test_few_experts_are_shown_each() -> None:
    curve_of("train_router", curve_columns(TERMS, 4))
    shown = {name for name in read_stage("train_router").curves if name.startswith("train_experts/")}
    shares = {f"train_experts/share_{expert}" for expert in range(4)}
    assert shown == shares | {"train_experts/entropy", "train_experts/gate_divergence"}


def test_three_figures_of_bits_per_byte_are_told_apart() -> None:
    write_curve("train_router", {"step": [10, 20], "bits_per_byte": [3.0, 2.5]})
    write_curve("train_router_validation", {"step": [20], "bits_per_byte": [2.75]})
    write_figures("train_router", {"validation_bits_per_byte": 2.7})
    write_figures("evaluate", {"student_bits_per_byte": 2.8})
    found = read_stage("train_router")
    assert found.curves == {
        "train/batch_bits_per_byte": {10: 3.0, 20: 2.5},
        "validation/bits_per_byte": {20: 2.75},
    }
    assert found.figures == {"final/sample_bits_per_byte": 2.7}
    assert figure_of("train_router") == read_stage("evaluate").figures == {"final/student_bits_per_byte": 2.8}


def test_what_is_constant_or_doubled_is_left_out() -> None:
    constant = {"loss_scale": [1.0, 1.0], "skipped_steps": [0.0, 0.0], "kd_weight": [0.9, 0.9]}
    one_term = {"total": [5.0, 4.0], "lm_raw": [5.0, 4.0], "lm_weighted": [5.0, 4.0]}
    write_curve("control", {"step": [1, 2], **one_term, "gradient_norm": [2.0, 1.0], **constant})
    write_curve("control_validation", {"step": [2], **{name: [4.5] for name in one_term}, "padding_share": [0.2]})
    assert read_stage("control").curves == {
        "train/lm": {1: 5.0, 2: 4.0},
        "train_optimizer/gradient_norm": {1: 2.0, 2: 1.0},
        "validation/lm": {2: 4.5},
    }
    write_curve("control", {"step": [1, 2, 3], "skipped_steps": [0.0, 0.0, 1.0]})
    assert read_stage("control").curves["train_optimizer/skipped_steps"] == {1: 0.0, 2: 0.0, 3: 1.0}


def test_times_are_those_of_the_stage() -> None:
    write_figures("train_kd", {"steps": 5.0, "started_at": 1e9, "ended_at": 1e9 + 60})
    found = read_stage("train_kd")
    assert (found.started, found.ended) == (1e9, 1e9 + 60)
    assert found.figures == {"final/steps": 5.0}
    write_curve("control", {"step": [1], "lm_raw": [5.0]})
    assert (read_stage("control").started, read_stage("control").ended) == (None, None), "it has not ended"
