"""What `moe-distill doctor` finds in seconds (R25)."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moe_distill.commands import doctor
from moe_distill.commands.plan import bytes_to_come
from moe_distill.config.params import Params
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.training.objective import Student
from moe_distill.training.trainer import make_trainer, work_bytes
from moe_distill.utils.device import Runtime
from tests.bare_models import write_bare_model
from tests.params import PARAMS, ROOT, fixed_params
from tests.replay.teachers import make_teacher
from tests.training.folders import make_folders, make_params


def findings(params: Params) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.examine(params)}


def test_r25_doctor_says_parameters_device_precision_and_disk() -> None:
    found = findings(fixed_params())
    assert "profile test" in found["parameters"].text
    assert "GiB free" in found["disk"].text
    assert found["device"].ok


def test_r25_doctor_says_what_check_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"vocab_size": 90, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 100}
    write_bare_model(Path("mine"), {"model_type": "gpt2", **settings})
    params = fixed_params().model_dump()
    params["profile"]["models"]["teacher"] = {"kind": "folder", "path": "mine"}
    found = findings(Params.model_validate(params))["parameters"]
    assert not found.ok
    assert "the teacher has 100 positions" in found.text
    params["profile"]["windows"]["teacher_max_length"] = 100
    assert findings(Params.model_validate(params))["parameters"].ok


def test_doctor_says_that_the_gain_will_not_be_measured() -> None:
    params = fixed_params().model_dump()
    assert "baseline" not in findings(Params.model_validate(params))
    params["profile"]["baseline"] = "none"
    found = findings(Params.model_validate(params))["baseline"]
    assert found.ok
    assert "what distillation gains over plain training will not be measured" in found.text


def test_r25_doctor_names_every_fault_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where params.yaml has a wrong key, in no repository, in a folder that cannot be written to."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PARAMS, tmp_path)
    shutil.copytree(ROOT / "profiles", "profiles")
    Path("params.yaml").write_text(PARAMS.read_text().replace("temperature:", "temprature:", 1))
    monkeypatch.setattr("os.access", lambda _path, mode: mode != os.W_OK)
    faults = {each.subject: each for each in doctor.examine_project() if not each.ok}
    assert "did you mean `temperature`?" in faults["parameters"].text
    assert faults["parameters"].exit_code == 2
    assert "is in no git repository" in faults["git"].text
    assert "cannot be written to" in faults["folder"].text
    assert faults["folder"].exit_code == 4
    monkeypatch.setenv("PATH", "")
    assert "there is no program git" in {each.subject: each for each in doctor.examine_project()}["git"].text


def test_r25_doctor_says_that_a_path_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = fixed_params().model_dump()
    params["profile"]["models"]["teacher"] = {"kind": "folder", "path": "nowhere"}
    found = findings(Params.model_validate(params))["parameters"]
    assert (found.ok, found.exit_code) == (False, 3)
    assert "nowhere is no folder" in found.text


def test_r25_doctor_calls_no_finished_work_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name, file in (("teacher/0", "done.json"), ("vocabulary_map/1", "index.json"), ("train_kd/2", "curve.tsv")):
        folder = Path(".work", name)
        folder.mkdir(parents=True)
        (folder / file).touch()
        folder.with_suffix(".lock").touch()
    found = [each.text for each in doctor.examine(fixed_params()) if each.subject == "work"]
    assert len(found) == 1
    assert found[0].startswith(".work/train_kd/2: unfinished")


def test_r25_doctor_finds_a_gpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla P100")
    monkeypatch.setattr("moe_distill.utils.device.probe", lambda _device: "no kernel image is available")
    found = findings(fixed_params())["device"]
    assert not found.ok
    assert "Tesla P100" in found.text
    assert "cu126" in found.text


def test_r25_doctor_resolves_the_teachers_precision_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    monkeypatch.setattr("moe_distill.utils.device.probe", lambda _device: None)
    params = fixed_params().model_dump()
    params["profile"]["teacher"]["precision"] = "bf16"
    found = findings(Params.model_validate(params))
    assert found["device"].ok
    assert not found["teacher"].ok
    assert "emulate" in found["teacher"].text


def test_r25_doctor_asks_for_the_disk_that_shards_and_checkpoints_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = make_folders(tmp_path / "made", make_teacher("olmoe", 1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/windows").mkdir()
    (tmp_path / "data/windows/student").symlink_to(folders.root / "windows")
    (tmp_path / "data/windows/teacher").symlink_to(folders.root / "teacher_windows")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/student_init").symlink_to(folders.root / "student")
    monkeypatch.chdir(tmp_path)
    params = make_params().model_dump()
    params["profile"]["models"]["teacher"] |= {"hidden_size": 32, "num_experts": 4}
    shards = sum(path.stat().st_size for path in (folders.root / "targets").rglob("*.safetensors"))
    student = load_causal_lm(folders.root / "student", torch.float32, torch.device("cpu"))
    trainer = make_trainer(
        Student(student, None, None),
        make_params().profile.train,
        Runtime(torch.device("cpu"), torch.float32),
        0,
    )
    expected = bytes_to_come(Params.model_validate(params))
    assert expected["shards"] == pytest.approx(shards, rel=0.05)  # the files have headers
    assert expected["checkpoints"] == work_bytes(trainer)

    def disk_ok(free: float) -> bool:
        monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=free))
        return findings(Params.model_validate(params))["disk"].ok

    assert disk_ok(doctor.SPARE_BYTES + sum(expected.values()) + 1)
    assert not disk_ok(doctor.SPARE_BYTES + sum(expected.values()) - 1)
    assert not disk_ok(doctor.SPARE_BYTES + 1)


def test_r25_doctor_finds_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SPARE_BYTES", 1 << 60)
    assert not findings(fixed_params())["disk"].ok


def test_r25_doctor_tells_of_broken_data_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folders(tmp_path / "made", make_teacher("olmoe", 1))
    (tmp_path / "data/windows").mkdir(parents=True)
    (tmp_path / "made/teacher_windows").rename(tmp_path / "data/windows/teacher")
    (tmp_path / "data/windows/teacher/train/index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    found = findings(fixed_params())
    assert not found["data"].ok
    assert "data/windows/teacher/train/index.json" in found["data"].text
    assert found["device"].ok


def test_r25_doctor_tells_of_a_broken_dvc_lock_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text("<<<<<<< HEAD\n")
    Path("metrics").mkdir()
    doctor.LEAD.write_text("{}")
    told = list(doctor.examine(fixed_params()))
    (fault,) = [each for each in told if "dvc.lock is not what DVC writes" in each.text]
    assert (fault.subject, fault.ok, fault.exit_code) == ("data", False, 3)
