"""The code and parameters of a stage in dvc.yaml, which the names of work folders are made of."""

from pathlib import Path

import pytest

from moe_distill.pipeline.dvc_stage import stage_code, stage_parameters
from tests.params import fixed_params

TRAININGS = ("train_kd", "train_router", "control")


def test_code_of_a_stage_is_what_dvc_runs_it_again_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src/kept/__pycache__").mkdir(parents=True)
    (tmp_path / "stages").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {a: {deps: [stages/a.py, src/kept, data]}}", encoding="utf-8")
    for name in ("stages/a.py", "stages/b.py", "src/kept/c.py", "data"):
        (tmp_path / name).write_text("1", encoding="utf-8")
    before = stage_code("a")
    for name in ("stages/b.py", "data", "src/kept/__pycache__/c.pyc"):
        (tmp_path / name).write_text("2", encoding="utf-8")
    assert stage_code("a") == before
    (tmp_path / "src/kept/c.py").write_text("2", encoding="utf-8")
    assert stage_code("a") != before


@pytest.mark.parametrize("stage", TRAININGS)
def test_parameters_of_a_stage_are_those_of_dvc_yaml(stage: str) -> None:
    values = stage_parameters(stage, fixed_params())
    assert values["seed"] == 0
    assert values["train"] == fixed_params().profile.train.model_dump(mode="json")


def test_trainings_share_what_does_not_concern_them() -> None:
    """Experiments side by side wait for one another's work where only other stages' parameters differ."""
    params = fixed_params()
    for change, concerned in (
        ({"temperature": 3.0}, {"train_kd", "train_router"}),
        ({"balance": "adaptive"}, {"train_router"}),
        ({"seed": 1}, set(TRAININGS)),
    ):
        experiment = params.experiment.model_copy(update=change)
        other = params.model_copy(update={"experiment": experiment})
        differing = {each for each in TRAININGS if stage_parameters(each, other) != stage_parameters(each, params)}
        assert differing == concerned
