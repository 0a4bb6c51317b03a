"""The stage `control` where the profile asks for no baseline: markers, and no figure that looks like one."""

import json
from pathlib import Path

import pytest

from moe_distill.config.params import Params
from moe_distill.tracking.mlflow_runs import track
from stages.control import main
from tests.chain import Chain


def without_baseline(params: Params) -> Params:
    return params.model_copy(update={"profile": params.profile.model_copy(update={"baseline": "none"})})


def test_without_a_baseline_only_markers_are_written(
    stage_workspace: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stages.control.run_training", lambda *_: pytest.fail("trained"))
    main(without_baseline(stage_workspace.params))
    [marker] = Path("models/student_lm_only").iterdir()
    assert json.loads(marker.read_text()) == {"baseline": "none"}
    assert json.loads(Path("metrics/control.json").read_text()) == {}
    for name in ("control", "control_validation"):
        [header] = Path(f"metrics/curves/{name}.tsv").read_text().splitlines()
        assert header.split("\t")[:3] == ["step", "total", "bits_per_byte"]
    assert "what distillation gains over plain training is not measured" in capsys.readouterr().out


def test_without_a_baseline_mlflow_has_no_run_of_it(
    stage_workspace: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    params = without_baseline(stage_workspace.params)
    main(params)
    Path("metrics/train_kd.json").write_text('{"steps": 4.0}')
    track(params, ["train_kd", "control"])
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("moe-distill")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"test", "train_kd (test)"}
    assert {run.data.params["baseline"] for run in runs if run.data.params} == {"none"}
