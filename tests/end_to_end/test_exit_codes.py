"""Every error with a known cause ends a real process with its code, in one line; `--debug` shows the traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chain import Chain
from tests.params import ROOT, make_workspace
from tests.shards.forge import forge_metadata

# Runs a stage whose work is replaced by an error: what the code of `stages` makes of it.
RAISING = """
import sys
from moe_distill import errors
from moe_distill.pipeline.stage_runner import run

def main(_params):
    raise {error}

sys.argv = ["stage", *sys.argv[1:]]
run("example", main)
"""
CODES = {
    "errors.ConfigError('what', 'why', 'fix')": 2,
    "errors.DataError('what', 'why', 'fix')": 3,
    "errors.ResourceError('what', 'why', 'fix')": 4,
    "errors.DivergenceError('what', 'why', 'fix')": 5,
}


@pytest.fixture
def workspace(chain: Chain, tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    for name in ("data", "models"):
        shutil.copytree(chain.folder / name, folder / name)
    make_workspace(folder, chain.params.profile)
    return folder


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of Python in a workspace."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "DVC_ROOT": str(folder)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("error", CODES)
def test_each_kind_of_error_has_its_code_and_one_line(workspace: Path, error: str) -> None:
    code, _, said = run(workspace, "-c", RAISING.format(error=error))
    assert (code, said) == (CODES[error], "example: error: what; why; fix\n")
    code, _, said = run(workspace, "-c", RAISING.format(error=error), "--debug")
    assert code == CODES[error]
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.endswith("example: error: what; why; fix\n")


def test_a_defect_keeps_its_traceback(workspace: Path) -> None:
    code, _, said = run(workspace, "-c", RAISING.format(error="ZeroDivisionError('a defect')"))
    assert code == 1
    assert "Traceback" in said


def test_a_wrong_key_exits_with_2(workspace: Path) -> None:
    path = workspace / "params.yaml"
    path.write_text(path.read_text().replace("kd_weight:", "kd_wieght:"))
    code, _, said = run(workspace, "-m", "stages.check")
    assert code == 2
    assert len(said.splitlines()) == 1
    assert "`kd_wieght` is not a known key" in said
    code, _, said = run(workspace, "-m", "stages.check", "--debug")
    assert code == 2
    assert "Traceback" in said


def test_shards_of_other_windows_exit_with_3(workspace: Path) -> None:
    forge_metadata(workspace / "data/teacher_shards/train", windows_fingerprint="other")
    code, _, said = run(workspace, "-m", "stages.train_kd")
    assert code == 3
    errors = [line for line in said.splitlines() if "error" in line]
    assert len(errors) == 1
    assert "was made from teacher windows other" in errors[0]
    assert "Traceback" not in said


def test_a_broken_shard_ends_verify_with_3_and_names_every_fault(workspace: Path) -> None:
    shards = sorted((workspace / "data/teacher_shards/train").glob("*.safetensors"))[:2]
    for shard in shards:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    code, shown, _ = run(workspace, "-c", "from moe_distill.cli import main; main()", "verify")
    assert code == 3
    faults = [line for line in shown.splitlines() if line.startswith("FAIL")]
    assert len(faults) == 2
    for shard, line in zip(shards, faults, strict=True):
        assert f"{shard.relative_to(workspace)} is corrupt; sha256 " in line
    assert "ok    models/teacher_head" in shown
