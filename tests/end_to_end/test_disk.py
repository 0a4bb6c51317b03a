"""Disk space: estimated before a stage, refused where it cannot fit, one line where it ends, and resumed after."""

import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_distill.alignment.corpus_windows import estimated_bytes, open_encoder
from moe_distill.errors import ResourceError
from moe_distill.models import model_disk_use as model_estimate
from moe_distill.models import model_folder
from moe_distill.models.pretrained import load_causal_lm
from moe_distill.models.provide import provide_student, provide_teacher
from moe_distill.shards.checkpoint import Checkpoint, save_checkpoint
from moe_distill.shards.window_store import SPLITS, TEACHER_WINDOWS, WindowStore
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.shards_disk_use import shard_bytes
from moe_distill.training import loop, phases
from moe_distill.training.phases import train_kd, train_router
from moe_distill.training.trainer import Trainer, make_trainer, work_bytes
from moe_distill.utils.disk_space import MIB, disk_full, require_space
from moe_distill.utils.files import folder_fingerprint
from tests.chain import Chain, capture, tokenize
from tests.end_to_end.conftest import Checkout
from tests.params import ROOT, make_workspace, shipped_profile

Usage = namedtuple("Usage", "total used free")


def size(*folders: Path) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def within_15_percent(estimate: int, written: int) -> bool:
    return abs(estimate - written) <= 0.15 * written


def test_tiny_models_are_estimated_within_15_percent(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, estimates = chain.params.profile.models, []
    monkeypatch.setattr(model_estimate, "require_space", lambda _folder, n_bytes, *_: estimates.append(n_bytes))
    provide_teacher(models.teacher, 0, chain.folder / "data/corpus", tmp_path / "teacher")
    provide_student(models.student, 0, chain.folder / "data/corpus", tmp_path / "student")
    assert within_15_percent(estimates[0], size(tmp_path / "teacher"))
    assert within_15_percent(estimates[1], size(tmp_path / "student"))


def test_a_model_from_a_folder_is_estimated_exactly(chain: Chain, tmp_path: Path) -> None:
    estimates = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model_folder, "require_space", lambda _folder, n_bytes, *_: estimates.append(n_bytes))
        model_folder.copy_model_folder(chain.folder / "models/teacher", "it", tmp_path / "teacher")
    assert estimates == [size(tmp_path / "teacher")]


def test_windows_are_estimated_within_15_percent(chain: Chain) -> None:
    params = chain.params.profile.windows
    models = chain.folder / "models"
    encoders = open_encoder(models / "teacher", "teacher"), open_encoder(models / "student_init", "student_init")
    folder = chain.folder / "data/windows"
    estimate = sum(estimated_bytes(split, params, chain.folder / "data/corpus", encoders) for split in SPLITS)
    stores = [folder / side / split for side in ("teacher", "student") for split in SPLITS]
    assert within_15_percent(estimate, size(*stores))


def test_shards_and_head_are_estimated_within_15_percent(chain: Chain) -> None:
    architecture = find_architecture(
        load_causal_lm(chain.folder / "models/teacher", torch.float32, torch.device("cpu"))
    )
    stores = [WindowStore(chain.folder / "data/windows/teacher" / split, TEACHER_WINDOWS) for split in SPLITS]
    estimate = sum(shard_bytes(store, chain.params.profile.teacher, architecture) for store in stores)
    assert within_15_percent(estimate, size(chain.targets))
    assert within_15_percent(architecture.head_bytes, size(chain.head))


def test_checkpoints_are_estimated_within_15_percent(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second phase, whose best weights stand in its checkpoints; the peak is during a write."""
    copied, trainers, peaks = chain.copy(tmp_path / "chain"), [], []

    def measured(folder: Path, checkpoint: Checkpoint) -> None:
        monkeypatch.setattr(shutil, "rmtree", seen)
        save_checkpoint(folder, checkpoint)
        monkeypatch.setattr(shutil, "rmtree", rmtree)

    rmtree = shutil.rmtree

    def seen(path: Path, *rest: Any, **keywords: Any) -> None:
        peaks.append(size(copied.folder / ".work"))
        rmtree(path, *rest, **keywords)

    def made(*arguments: Any) -> Trainer:
        trainers.append(make_trainer(*arguments))
        return trainers[-1]

    monkeypatch.setattr(loop, "save_checkpoint", measured)
    monkeypatch.setattr(phases, "make_trainer", made)
    train_router(copied.params, copied.inputs(), replace(copied.outputs(), optimizer=None))
    export = (copied.folder / ".work/export/model.safetensors").stat().st_size
    assert within_15_percent(work_bytes(trainers[0]), max(peaks) + export)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, whose size `mount -o remount,size=...` sets."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_stage_and_dvcs_cache_take_what_was_estimated(own_checkout: Checkout, small_disk: Path) -> None:
    """DVC links what the stage has written; with `reflink` first in its `cache.type` it would write it once more."""
    folder = small_disk / "checkout"
    shutil.copytree(own_checkout.folder, folder, ignore=shutil.ignore_patterns("cache", ".work", "mlflow.db"))
    outputs = [folder / "data/teacher_shards", folder / "models/teacher_head"]
    written = size(*outputs)
    for output in outputs:
        shutil.rmtree(output)
    architecture = find_architecture(load_causal_lm(folder / "models/teacher", torch.float32, torch.device("cpu")))
    stores = [WindowStore(folder / "data/windows/teacher" / split, TEACHER_WINDOWS) for split in SPLITS]
    capture_params = shipped_profile("test").teacher
    estimate = architecture.head_bytes + sum(shard_bytes(store, capture_params, architecture) for store in stores)
    assert within_15_percent(estimate, written)
    limit = shutil.disk_usage(small_disk).used + int(1.15 * estimate) + MIB  # of DVC's and the lock's own files
    subprocess.run(["mount", "-o", f"remount,size={limit}", str(small_disk)], check=True)
    Checkout(folder).run("dvc", "repro", "-f", "-s", "teacher")
    assert size(*outputs) == written


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(1 << 30, (1 << 30) - 1000, 1000))


@pytest.mark.usefixtures("crowded")
@pytest.mark.parametrize("stage", ["teacher model", "student model", "folder", "tokenize", "teacher", "train_kd"])
def test_a_stage_that_cannot_fit_is_refused_before_it_writes(chain: Chain, tmp_path: Path, stage: str) -> None:
    copied = chain.copy(tmp_path / "chain")
    models, corpus = chain.params.profile.models, chain.folder / "data/corpus"
    stages: dict[str, Callable[[], object]] = {
        "teacher model": lambda: provide_teacher(models.teacher, 0, corpus, copied.folder / "new"),
        "student model": lambda: provide_student(models.student, 0, corpus, copied.folder / "new"),
        "folder": lambda: model_folder.copy_model_folder(chain.folder / "models/teacher", "it", copied.folder / "new"),
        "tokenize": lambda: tokenize(copied.folder, copied.params),
        "teacher": lambda: capture(copied.folder, copied.params),
        "train_kd": lambda: train_kd(copied.params, copied.inputs(), copied.outputs()),
    }
    with pytest.raises(ResourceError, match=r"will take .* MiB; .* has 0 MiB free; free some, or "):
        stages[stage]()
    outputs = {"tokenize": "data/windows", "teacher": "shards", "train_kd": ".work"}
    assert not [path for path in (copied.folder / outputs.get(stage, "new")).rglob("*") if path.is_file()]


def test_what_fits_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(1 << 30, 0, 1000))
    require_space(tmp_path, 1000, "it", "x")
    with pytest.raises(ResourceError):
        require_space(tmp_path, 1001, "it", "x")


@pytest.mark.parametrize("code", [27, 28, 122])
def test_a_full_disk_is_known_by_its_code(code: int) -> None:
    for error in (OSError(code, "no"), RuntimeError(f"Error while serializing: I/O error: no (os error {code})")):
        known = disk_full(error)
        assert known is not None
        assert known.exit_code == 4
    assert disk_full(OSError(13, "Permission denied")) is None
    assert disk_full(RuntimeError("(os error 13)")) is None
    assert disk_full(ValueError("28")) is None


@pytest.fixture
def workspace(chain: Chain, tmp_path: Path) -> Path:
    """A folder in which every stage can run as a process of its own."""
    folder = chain.copy(tmp_path / "chain").folder
    make_workspace(folder, chain.params.profile)
    return folder


def run_stage(folder: Path, stage: str, limit: int, *arguments: str) -> tuple[int, str]:
    """Run a stage with a limit on the size of every file it writes; gives exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *arguments],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "DVC_ROOT": str(folder)}
        | {"MLFLOW_TRACKING_URI": str(folder / "mlruns"), "MLFLOW_ALLOW_FILE_STORE": "true"},  # SQLite: a minute
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    return done.returncode, done.stdout


OUTPUTS = {
    "corpus": ("data/corpus", 100_000),
    "tokenize": ("data/windows", 30_000),
    "teacher": ("data/teacher_shards", 100_000),
    "control": ("models/student_lm_only", 100_000),
}


@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_full_disk_is_one_line_and_the_same_command_continues(workspace: Path, stage: str) -> None:
    """A limit on file sizes, as a full disk does, fails a write in its middle."""
    output, limit = workspace / OUTPUTS[stage][0], OUTPUTS[stage][1]
    before = folder_fingerprint(output) if output.is_dir() else None
    code, said = run_stage(workspace, stage, limit)
    assert code == 4, said
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith(f"{stage}: error: the disk is full; ")
    assert line.endswith("free some space; the same command continues")
    assert (folder_fingerprint(output) if output.is_dir() else None) == before  # nothing of it has been published
    half = [path for path in workspace.rglob("*") if path.is_file() and path.stat().st_size == limit]
    assert not half
    code, said = run_stage(workspace, stage, resource.RLIM_INFINITY)
    assert code == 0, said
    if stage in ("tokenize", "teacher"):
        assert folder_fingerprint(output) == before  # the bytes of the unbroken run
    assert size(output) > 0
