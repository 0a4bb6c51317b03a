"""`verify` on outputs without hashes of their own, by dvc.lock, and on finished work. DVC itself: tests/pipeline."""

import hashlib
import json
from pathlib import Path
from random import Random

import pytest
import torch
import yaml

from moe_distill.commands.verify import Verified, verify
from moe_distill.errors import DataError
from moe_distill.pipeline.resumable_work import compute_once
from moe_distill.shards.checkpoint import Checkpoint, check_checkpoint, save_checkpoint
from tests.end_to_end.test_bit_flips import flip

FOLDERS = {
    "data/corpus": ["train.parquet", "validation.parquet"],
    "models/student_kd": ["model.safetensors", "deeper/tokenizer.json"],
    "models/student_kd_optimizer": ["optimizer.safetensors"],
}
SINGLE = ["metrics/curves/train_kd.tsv", "metrics/train_kd.json"]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Outputs, the lists of their files in DVC's cache, and dvc.lock, as after a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr("subprocess.check_output", lambda *_, **__: "cache\n")
    outs = []
    for folder, names in FOLDERS.items():
        for name in names:
            write(Path(folder, name), name.encode() * 100)
        files = [{"md5": md5(Path(folder, name).read_bytes()), "relpath": name} for name in names]
        content = json.dumps(files).encode()
        write(Path("cache/files/md5", md5(content)[:2], f"{md5(content)[2:]}.dir"), content)
        outs.append({"path": folder, "md5": f"{md5(content)}.dir"})
    for name in SINGLE:
        write(Path(name), name.encode())
        outs.append({"path": name, "md5": md5(name.encode())})
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"first": {"outs": outs[:2]}, "second": {"outs": outs[2:]}}}))
    return tmp_path


def found() -> list[Verified]:
    return list(verify(Path(), Path(".work").resolve()))


def faults() -> list[DataError]:
    return [each.fault for each in found() if each.fault is not None]


@pytest.mark.usefixtures("project")
def test_whole_outputs_are_listed() -> None:
    assert [(str(each.path), each.fault, each.unread) for each in found()] == [
        (name, None, "") for name in [*FOLDERS, *SINGLE]
    ]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", [f"{folder}/{name}" for folder, names in FOLDERS.items() for name in names] + SINGLE)
def test_a_flipped_bit_in_any_file_is_named_with_its_repair(name: str) -> None:
    whole = md5(Path(name).read_bytes())
    flip(Path(name), Random(0))
    assert [str(fault) for fault in faults()] == [
        f"{name} is corrupt; md5 {md5(Path(name).read_bytes())}, dvc.lock says {whole}; "
        f"run: moe-distill recover --shard {name}; then: dvc pull, or dvc repro"
    ]


@pytest.mark.usefixtures("project")
def test_a_missing_file_is_named_and_a_missing_output_was_not_pulled() -> None:
    Path("data/corpus/train.parquet").unlink()
    Path("models/student_kd_optimizer/optimizer.safetensors").unlink()
    Path("models/student_kd_optimizer").rmdir()
    assert [fault.what for fault in faults()] == ["data/corpus/train.parquet does not exist"]
    assert Path("models/student_kd_optimizer") not in [each.path for each in found()]


@pytest.mark.usefixtures("project")
def test_a_list_of_files_that_is_missing_is_said_and_one_that_is_corrupt_is_a_fault() -> None:
    lists = {"corpus": b"parquet", "student_kd": b"deeper"}
    paths = {
        name: next(path for path in Path("cache").rglob("*.dir") if word in path.read_bytes())
        for name, word in lists.items()
    }
    paths["corpus"].unlink()
    flip(paths["student_kd"], Random(0))
    said = {str(each.path): each for each in found()}
    assert said["data/corpus"].unread == "DVC's cache lacks the list of its files; run: dvc fetch data/corpus"
    assert said["data/corpus"].fault is None
    assert str(said["models/student_kd"].fault).startswith(f"{paths['student_kd']}, the list of the files of models/st")
    assert said["models/student_kd_optimizer"] == Verified(Path("models/student_kd_optimizer"), None)


def finish(value: str) -> Path:
    """Work that is finished and published, though dvc.lock says otherwise; gives its folder."""

    def compute(folder: Path) -> dict[str, float]:
        write(folder / "student/model.safetensors", value.encode())
        return {"speed": 1.0}

    compute_once("train_kd", "k" * 64, compute, {"student": Path("models/student_kd")})
    return Path(".work/train_kd", "k" * 16)


@pytest.mark.usefixtures("project")
def test_what_a_stage_finished_before_dvc_recorded_it_is_whole() -> None:
    Path("models/student_kd/deeper/tokenizer.json").unlink()
    work = finish("new")
    write(Path("models/student_kd/deeper/tokenizer.json"), b"deeper/tokenizer.json" * 100)
    assert [each.path for each in found() if each.path.name == work.name] == [work.resolve()]
    assert faults() == []
    flip(Path("models/student_kd/model.safetensors"), Random(0))  # and so in .work, by the link
    assert [fault.what for fault in faults()] == [
        f"{work.resolve()} is not what its done.json says",
        "models/student_kd/model.safetensors is corrupt",
    ]


@pytest.mark.usefixtures("project")
def test_a_flipped_bit_in_the_record_of_finished_work_is_found() -> None:
    record = (finish("new") / "done.json").resolve()
    content = record.read_text()
    record.write_text(content.replace('"speed": 1.0', '"speed": 3.0'))
    assert f"{record} is corrupt" in [fault.what for fault in faults()]


def test_a_checkpoint_that_a_training_removes_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".work/train_kd/1"
    for step in (10, 20, 30):
        save_checkpoint(folder, Checkpoint(step, {"weight": torch.ones(2)}, {}))  # keeps two

    def check(path: Path) -> None:
        if (folder / "checkpoint_000020").is_dir():
            save_checkpoint(folder, Checkpoint(40, {"weight": torch.ones(2)}, {}))
        check_checkpoint(path)

    monkeypatch.setattr("moe_distill.commands.verify.check_checkpoint", check)
    found = list(verify(tmp_path, tmp_path / ".work"))
    assert [(each.path.name, each.fault) for each in found] == [("checkpoint_000030", None)]
