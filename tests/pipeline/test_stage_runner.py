"""How a stage ends whose GPU has too little memory."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from moe_distill.config.model_keys import TeacherCorrection
from moe_distill.config.params import Params
from moe_distill.pipeline import stage_runner as stage
from moe_distill.pipeline.memory_keys import MEMORY_KEYS, memory_fix
from tests.params import fixed_params

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "hold_workspace", lambda _stage: nullcontext())
    monkeypatch.setattr(stage, "load_params", lambda: None)
    monkeypatch.setattr("moe_distill.pipeline.memory_keys.load_params", fixed_params)
    monkeypatch.setattr("signal.signal", lambda *_: None)


def failing(error: Exception) -> Callable[[Params], None]:
    def main(_params: Params) -> None:
        raise error

    return main


@pytest.mark.parametrize("name", MEMORY_KEYS)
def test_gpu_memory_that_does_not_suffice_is_one_line_with_keys_of_the_profile(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        stage.run(name, failing(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB.")))
    assert left.value.code == 4
    said = capsys.readouterr().err
    assert said.startswith(f"{name}: error: {name} needs more memory than the GPU has; CUDA out of memory. Tried to")
    assert said.count("\n") == 1
    assert re.findall(r"`([\w.]+)", said) == list(MEMORY_KEYS[name])
    profile = yaml.safe_load((ROOT / "profiles/test.yaml").read_text())
    for key in MEMORY_KEYS[name]:
        if key.startswith("models.teacher_correction."):  # off in this profile
            assert key.split(".")[-1] in TeacherCorrection.model_fields
            continue
        value = profile
        for part in key.split("."):
            value = value[part]
        assert f"`{key}` (now {value})" in said if type(value) is int else f"set `{key}: true`" in said


def test_checkpointing_that_is_on_is_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    values = fixed_params().model_dump()
    values["profile"]["train"]["gradient_checkpointing"] = True
    monkeypatch.setattr("moe_distill.pipeline.memory_keys.load_params", lambda: Params.model_validate(values))
    assert memory_fix("train_kd") == "lower `train.micro_batch_windows` (now 4) or `train.chunk_tokens` (now 512)"


def test_every_stage_that_asks_for_a_device_has_its_keys() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    on_device = {name for name, each in stages.items() if "src/moe_distill/utils/device.py" in each.get("deps", [])}
    assert on_device | {"models@teacher"} == set(MEMORY_KEYS)


class Killed(Dataset[int]):
    """Its worker is ended as by the system, for want of memory."""

    def __getitem__(self, number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number


def test_a_worker_that_the_system_has_ended_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_params: Params) -> None:
        list(DataLoader(Killed(), sampler=[0], num_workers=1))

    with pytest.raises(SystemExit) as left:
        stage.run("train_kd", main)
    assert left.value.code == 4
    said = capsys.readouterr().err
    assert re.fullmatch(r"train_kd: error: a process that makes batches ready was ended; DataLoader .*memory\n", said)


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        stage.run("teacher", failing(RuntimeError("shapes")))


@pytest.mark.parametrize("words", [["--debug"], ["techer"], []])
def test_models_makes_no_model_that_was_not_asked_for(tmp_path: Path, words: list[str]) -> None:
    command, path = [sys.executable, "-m", "stages.models", *words], f"{ROOT}:{ROOT / 'src'}"
    environment = os.environ | {"PYTHONPATH": path}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "usage: python -m stages.models teacher|student [--debug]\n")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_a_stage_is_still_importing_has_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    began = subprocess.Popen(
        [sys.executable, "-m", "stages.teacher"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert began.stdout is not None
    assert began.stdout.readline() == "importing\n"
    began.send_signal(signal.SIGINT)
    assert began.communicate(timeout=20) == ("", "")
    assert began.returncode == -signal.SIGINT
