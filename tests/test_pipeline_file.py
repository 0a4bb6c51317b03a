"""dvc.yaml against the code: what a stage depends on is what it imports, and nothing it does not need."""

import ast
from pathlib import Path

import grimp
import pytest
import yaml

from moe_distill.training.logging import curve_columns

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
# They parse, refuse, tell or record; they cannot change a result.
WITHOUT_EFFECT = {
    "moe_distill",
    "moe_distill.config",
    "moe_distill.definition",
    "moe_distill.disk",
    "moe_distill.errors",
    "moe_distill.interruption",
    "moe_distill.profile",
    "moe_distill.progress",
    "moe_distill.seal",
    "moe_distill.stage",
}
WITHOUT_EFFECT |= {"moe_distill.tracking", "moe_distill.work", "moe_distill.workspace"}


def definition(stage: str) -> dict:
    return STAGES[stage].get("do", STAGES[stage])


def imported_modules(stage: str) -> set[str]:
    """Every module of the package that a stage's file imports, directly or not."""
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    direct = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    graph = grimp.build_graph("moe_distill")
    closure: set[str] = set()
    for module in direct & graph.modules - WITHOUT_EFFECT:
        closure |= {module} | graph.find_upstream_modules(module)
    return closure - WITHOUT_EFFECT


def covers(dependency: str, module: str) -> bool:
    name = dependency.removeprefix("src/").removesuffix(".py").replace("/", ".")
    return module == name or module.startswith(f"{name}.") or name.startswith(f"{module}.")


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check"])
def test_deps_are_the_imports(stage: str) -> None:
    code = [dependency for dependency in definition(stage)["deps"] if dependency.startswith("src/")]
    modules = imported_modules(stage)
    assert [module for module in sorted(modules) if not any(covers(each, module) for each in code)] == []
    assert [each for each in code if not any(covers(each, module) for module in modules)] == []


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
