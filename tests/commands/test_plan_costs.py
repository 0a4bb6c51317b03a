"""`moe-distill plan`, the table of stages and the verdict."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_distill import cli
from moe_distill.commands.plan import describe, window_stores
from moe_distill.commands.plan_costs import Budget, describe_costs, planned_device
from moe_distill.config.params import Params
from moe_distill.errors import ConfigError
from moe_distill.planning.model_configs import TEACHER, find_folder
from tests.chain import Chain
from tests.params import fixed_params

NO_LIMIT = Budget(None, None)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one; the hub's cache lies on its disk, and is empty too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none/hub"))
    return tmp_path


def told(params: Params, device: str | None, budget: Budget = NO_LIMIT, measure: bool = False) -> list[str]:
    planned = planned_device(device, measure)
    return list(describe_costs(params, window_stores(), planned, measure, budget))


def changed(profile: str, **changes: dict[str, Any]) -> Params:
    """Those of a profile with other keys in some sections."""
    values = fixed_params(profile).model_dump()
    for section, keys in changes.items():
        values["profile"][section] |= keys
    return Params.model_validate(values)


def test_the_plan_of_a_p100_is_there_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "load_params", lambda: fixed_params("p100"))
    monkeypatch.setattr("sys.argv", ["moe-distill", "plan", "--device", "P100", "--hours", "12", "--disk", "20"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    said = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(said) if line.startswith("hours: "))
    assert "estimated from sizes, not measured (--measure does), for P100 at TFLOP/s of 2.79 in fp32" in said[start]
    assert said[start].endswith("windows are taken as full, and as many as the profile allows")
    assert said[start + 1].split() == ["stage", "tokens", "written", "hours", "memory", "disk"]
    stages = [line.split()[0] for line in said[start + 2 : start + 11]]
    assert stages == [
        *("corpus", "models@teacher", "models@student", "tokenize", "teacher", "teacher_lead"),
        *("train_kd", "train_router", "evaluate"),
    ]
    total, disk, memory, hub = said[start + 11 :]
    assert "hours: 2 sessions of 12 hours; each goes on where the last one ended" in total
    assert disk.endswith("GB at the peak of 20 GB: it does NOT fit")
    assert memory.endswith("GB of 16 GB at the peak: it fits")
    assert hub.endswith("takes 2.8 GB of this disk; HF_HOME puts it on another")


def test_the_hubs_cache_on_another_disk_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Path.stat

    def stat(path: Path, **keys: Any) -> os.stat_result:
        result = found(path, **keys)
        if path == Path():
            values = list(result)
            values[2] += 1  # the device
            return os.stat_result(values)
        return result

    monkeypatch.setattr(Path, "stat", stat)
    lines = told(fixed_params("p100"), "P100", Budget(12.0, 20.0))
    assert lines[-3].endswith("of 20 GB: it fits")
    assert lines[-1].endswith("takes 2.8 GB of another disk")


def test_what_is_not_known_is_a_question_mark() -> None:
    lines = told(fixed_params("tiny"), "CPU", Budget(1.0, 1.0))
    row = next(line for line in lines if line.startswith("teacher "))
    assert row.split()[:4] == ["teacher", "?", "?", "?"]
    assert lines[-1] == "in all: not known before: dvc repro tokenize; or both limits, `windows.max_..._windows`"


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_model_that_is_neither_here_nor_described_is_named(role: str) -> None:
    hub = {"kind": "hub", "repository": "a/b", "revision": "0" * 40}
    [line] = told(changed("p100", models={role: hub}), "P100")
    assert line == f"hours: the {role}'s sizes are not known before: dvc repro models; or `models.{role}.config`"


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "nothing"},
        {},
        {"model_type": "t5"},
        {"model_type": "llama", "hidden_size": "wide"},
        {"model_type": "llama", "num_key_value_heads": 0},
    ],
)
def test_a_description_of_no_model_is_refused_in_one_line(config: dict[str, object]) -> None:
    hub = {"kind": "hub", "repository": "a/b", "revision": "0" * 40, "config": config}
    with pytest.raises(ConfigError, match="`config` of a/b describes no model") as caught:
        told(changed("p100", models={"teacher": hub}), "P100")
    assert "\n" not in str(caught.value)


def test_a_student_without_attention_has_its_costs() -> None:
    hub = {"kind": "hub", "repository": "a/b", "revision": "0" * 40, "config": {"model_type": "mamba"}}
    lines = told(changed("p100", models={"student": hub}), "P100")
    assert any(line.startswith("train_router ") and "?" not in line for line in lines)


def test_bf16_on_a_card_that_lacks_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="`precision: bf16` needs compute capability"):
        told(changed("p100", teacher={"precision": "bf16"}), "T4")


def test_a_measurement_is_of_the_device_that_is_here() -> None:
    with pytest.raises(ConfigError, match="`--measure` is of the device that is here"):
        told(fixed_params(), "P100", measure=True)


def test_processes_are_told_and_more_memory_than_there_is() -> None:
    one_each = {"batch_windows": 64, "micro_batch_windows": 32}
    lines = told(changed("t4x2", train=one_each), "T4")
    assert "; 2 processes share capture and training" in lines[0]
    assert any(line.startswith("memory: ") and line.endswith("it does NOT fit") for line in lines)
    lines = told(changed("t4x2", train=one_each | {"gradient_checkpointing": True}), "T4")
    assert any(line.startswith("memory: ") and line.endswith("it fits") for line in lines)


def test_windows_that_are_here_are_counted_and_loops_measured(
    stage_workspace: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_distill.planning.measured.SECONDS", 0.0)
    lines = told(stage_workspace.params, None, Budget(12.0, 20.0), measure=True)
    start = next(line for line in lines if line.startswith("hours: "))
    assert start.startswith("hours: measured here on CPU")
    assert "taken as full" not in start
    assert not [line for line in lines if "?" in line]
    assert any("1 session of 12 hours" in line for line in lines)
    tokens = sum(int(store.token_counts.sum()) for store in window_stores()[0].values())
    row = next(line for line in lines if line.startswith("teacher "))
    assert row.split()[1:3] == [f"{tokens / 1e6:,.1f}", "M"]


def test_what_was_made_with_other_parameters_is_not_counted(stage_workspace: Chain) -> None:
    teacher = stage_workspace.params.profile.models.teacher
    assert window_stores()[0]
    assert find_folder(TEACHER, teacher) == TEACHER
    recorded: dict[str, Any] = {"models@teacher": {"params": {"profiles/another.yaml": {"models.teacher": {}}}}}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": recorded}))
    assert window_stores() == ({}, {})
    assert find_folder(TEACHER, teacher) is None
    assert "windows: not known before: dvc repro tokenize" in list(describe(stage_workspace.params))
