"""dvc.yaml against the code: what a stage depends on is what it imports, and nothing it does not need."""

import ast
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from moe_distill.training.recorder import curve_columns

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
GRAPH = grimp.build_graph("moe_distill")
# They parse, refuse, estimate, tell or record; they cannot change a result, and an edit to them runs no stage again.
PLUMBING = {"cli", "commands", "config", "errors", "log", "pipeline", "tracking", "utils"}
OF_RESULTS = {"moe_distill.utils.device", "moe_distill.utils.tensors"}  # precision, seeds


def definition(stage: str) -> dict[str, Any]:
    found: dict[str, Any] = STAGES[stage].get("do", STAGES[stage])
    return found


def can_change_results(module: str) -> bool:
    package = module.split(".")[1:2]
    return module in OF_RESULTS or not (set(package) & PLUMBING or module.endswith("_disk_use") or not package)


def modules_of(stage: str) -> set[str]:
    """Every module that a stage's file imports, directly or through others, and that can change its result."""
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    open_modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    open_modules, found = (
        {each for each in open_modules if each in GRAPH.modules and can_change_results(each)},
        set[str](),
    )
    while open_modules:
        module = open_modules.pop()
        found.add(module)
        imported = GRAPH.find_modules_directly_imported_by(module)
        open_modules |= {each for each in imported if can_change_results(each)} - found
    return {module for module in found if not is_package(module)}


def is_package(module: str) -> bool:
    return (ROOT / "src" / module.replace(".", "/")).is_dir()


def named_by(dependency: str) -> set[str]:
    """The modules of a dependency: of a file itself, of a folder all below it."""
    name = dependency.removeprefix("src/").removesuffix(".py").replace("/", ".")
    return {each for each in GRAPH.modules if each == name or each.startswith(f"{name}.")} - {
        each for each in GRAPH.modules if is_package(each)
    }


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check"])
def test_deps_are_the_imports(stage: str) -> None:
    code = [dependency for dependency in definition(stage)["deps"] if dependency.startswith("src/")]
    assert set[str]().union(*map(named_by, code)) == modules_of(stage)


def test_r23_temperature_reaches_no_stage_before_training() -> None:
    users = {stage for stage in STAGES if "temperature" in definition(stage).get("params", [])}
    assert users == {"train_kd", "train_router", "evaluate"}


def test_every_key_of_a_study_reruns_a_stage() -> None:
    """`profile` is part of the name of the profile's file, by which DVC follows it."""
    keys = set(yaml.safe_load((ROOT / "params.yaml").read_text())) - {"profile"}
    followed = {each for stage in STAGES for each in definition(stage).get("params", []) if isinstance(each, str)}
    assert keys <= followed


def test_the_chunk_term_is_of_both_phases() -> None:
    for stage, keys in (("train_kd", ["chunk_temperature", "losses.chunk"]), ("train_router", ["chunk_temperature"])):
        assert set(keys) <= {each for each in definition(stage)["params"] if isinstance(each, str)}


def test_no_output_persists() -> None:
    assert "persist" not in (ROOT / "dvc.yaml").read_text()


def test_r16_no_training_stage_depends_on_the_teacher() -> None:
    for stage in ("train_kd", "train_router", "control", "evaluate"):
        assert not [
            each for each in definition(stage)["deps"] if each.startswith("models/teacher/") or each == "models/teacher"
        ]


def test_plots_show_columns_that_every_curve_has() -> None:
    """DVC fails over a column that is missing, and a dense teacher has no experts, another one three or eight."""
    always = {"step", *curve_columns(("lm",), num_experts=0)}
    plots = [plot for each in PIPELINE["plots"] for plot in each.values()]
    assert plots
    for plot in plots:
        assert {plot["x"], *plot["y"].values()} <= always
        assert set(plot["y"]) <= {output for stage in STAGES for output in definition(stage).get("outs", [])}


@pytest.mark.parametrize("stage", list(STAGES))
def test_stage_files_are_thin(stage: str) -> None:
    assert len((ROOT / "stages" / f"{stage}.py").read_text().splitlines()) <= 60
