"""dvc.yaml against the code: what a stage depends on is what it imports, and nothing it does not need."""

import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from moe_distill.config.profile import Profile
from moe_distill.config.values import Section
from moe_distill.pipeline.dvc_stage import stage_outputs
from moe_distill.training.recorder import curve_columns
from tests.repository.stage_modules import GRAPH, PIPELINE, ROOT, STAGES, definition, file_of, is_package, modules_of


def named_by(dependency: str) -> set[str]:
    """The modules of a dependency: of a file itself, of a folder all below it."""
    name = dependency.removeprefix("src/").removesuffix(".py").replace("/", ".")
    return {each for each in GRAPH.modules if each == name or each.startswith(f"{name}.")} - {
        each for each in GRAPH.modules if is_package(each)
    }


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "check"])
def test_deps_are_the_imports(stage: str) -> None:
    code = [dependency for dependency in definition(stage)["deps"] if dependency.startswith("src/")]
    named, imported = set[str]().union(*map(named_by, code)), modules_of(stage)
    missing, too_much = (sorted(map(file_of, each)) for each in (imported - named, named - imported))
    assert not missing, f"dvc.yaml: add to `deps` of {stage}"
    assert not too_much, f"dvc.yaml: take out of `deps` of {stage}"


def test_r23_temperature_reaches_no_stage_before_training() -> None:
    users = {stage for stage in STAGES if "temperature" in definition(stage).get("params", [])}
    assert users == {"train_kd", "train_router", "evaluate", "student"}


def test_every_key_of_a_study_reruns_a_stage() -> None:
    """`profile` is part of the name of the profile's file, by which DVC follows it."""
    keys = set(yaml.safe_load((ROOT / "params.yaml").read_text())) - {"profile"}
    followed = {each for stage in STAGES for each in definition(stage).get("params", []) if isinstance(each, str)}
    assert keys <= followed


def test_a_key_that_is_followed_in_the_profile_must_stand_there() -> None:
    """DVC fails over a key that is missing; one with a default is followed in data/defaults.json."""
    entries = [each for stage in STAGES for each in definition(stage).get("params", []) if isinstance(each, dict)]
    keys = {key for each in entries for path, keys in each.items() if path.startswith("profiles/") for key in keys}
    assert "teacher" in keys
    for key in sorted(keys):
        section: object = Profile
        for name in key.split("."):
            if name != "${key}":  # teacher or student
                assert isinstance(section, type)
                assert issubclass(section, Section)
                assert section.model_fields[name].is_required(), key
                section = section.model_fields[name].annotation


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git repository")
def test_git_ignores_every_output_by_the_file_at_the_root() -> None:
    """Lines beside the outputs are DVC's, which takes them out before a stage and loses them where a run ends early."""
    outputs = [
        str(path) for paths in stage_outputs().values() for path in paths if path != Path("metrics/summary.json")
    ]
    said = subprocess.run(
        ["git", "check-ignore", "--verbose", "--no-index", *outputs], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    assert [line.split("\t")[1] for line in said] == outputs
    assert {line.split(":")[0] for line in said} == {".gitignore"}


def test_no_output_persists() -> None:
    assert "persist" not in (ROOT / "dvc.yaml").read_text()


def test_r16_no_training_stage_depends_on_the_teacher() -> None:
    for stage in ("train_kd", "train_router", "control", "evaluate", "student"):
        folders = {"/".join(Path(each).parts[:2]) for each in definition(stage)["deps"]}
        assert not folders & {"models", "models/teacher", "models/teacher_corrected"}


def test_plots_show_columns_that_every_curve_has() -> None:
    """DVC fails over a column that is missing, and a dense teacher has no experts, another one three or eight."""
    always = {"step", *curve_columns(("lm",), num_experts=0)}
    plots = [plot for each in PIPELINE["plots"] if isinstance(each, dict) for plot in each.values()]
    assert plots
    outputs = {str(output) for stage in STAGES for output in definition(stage).get("outs", [])}
    for plot in plots:
        assert {plot["x"], *plot["y"].values()} <= always
        assert set(plot["y"]) <= outputs


def test_the_reports_pictures_are_plots() -> None:
    pictures = {each for each in PIPELINE["plots"] if isinstance(each, str)}
    report = (ROOT / "src/moe_distill/reporting/report.py").read_text()
    assert pictures == {f"reports/{name}" for name in re.findall(r"\w+\.png", report)}


def test_tables_of_dvc_show_one_file_of_metrics() -> None:
    """With those of every stage a table of experiments had 262 columns."""
    assert [name for stage in STAGES for each in definition(stage).get("metrics", []) for name in each] == [
        "metrics/summary.json"
    ]


def test_the_page_of_plots_fetches_nothing() -> None:
    config = ConfigParser()
    config.read(ROOT / ".dvc/config")
    page = (ROOT / ".dvc" / config["plots"]["html_template"]).read_text()
    assert "{plot_divs}" in page
    assert "{scripts}" not in page  # DVC's own: three from a content delivery network
    assert not re.findall(r"<(?:script|link|iframe)\s[^>]*(?:src|href)", page)
    assert "vegaEmbed=" in page


@pytest.mark.parametrize("stage", list(STAGES))
def test_stage_files_are_thin(stage: str) -> None:
    assert len((ROOT / "stages" / f"{stage}.py").read_text().splitlines()) <= 60
