"""Names of runs say what differs from the committed parameters."""

import shutil
import subprocess
from pathlib import Path

import pytest

from moe_distill.config.params import load_params
from moe_distill.tracking.run_names import committed_parameters, run_name
from tests.params import ROOT


@pytest.fixture(autouse=True)
def _committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository with the project's own parameters."""
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    commit = "git init -q && git add . && git -c user.name=a -c user.email=a commit -q -m first"
    subprocess.run(commit, shell=True, check=True)


def edit(file: str, old: str, new: str) -> None:
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new))


def name() -> str:
    params = load_params()
    return run_name(params, committed_parameters(params.experiment.profile))


def test_what_differs_and_the_name_that_dvc_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name() == "tiny"
    edit("params.yaml", "temperature: 1.0", "temperature: 2.0")
    assert name() == "tiny T=2.0"
    monkeypatch.setenv("DVC_EXP_NAME", "warm-lynx")
    edit("profiles/tiny.yaml", "max_steps: 800", "max_steps: 900")
    assert name() == "tiny T=2.0 max_steps=900 warm-lynx"


def test_another_profile_is_compared_with_its_own_committed_file() -> None:
    edit("params.yaml", "profile: tiny", "profile: p100")
    assert name() == "p100"


def test_keys_that_end_alike_are_named_whole_and_many_are_counted() -> None:
    edit("profiles/tiny.yaml", "batch_windows: 32", "batch_windows: 8")
    assert name() == "tiny teacher.batch_windows=8 evaluate.batch_windows=8"
    for key in ("seed: 0 # order", "noise: 0.1", "patience: 20", "min_delta: 0.001"):
        edit("params.yaml", key, key.replace(": ", ": 1", 1))
    assert name().startswith("tiny seed=10 ")
    assert name().endswith(" and 2 more")


def test_without_a_commit_or_of_another_version_there_is_only_the_profile() -> None:
    edit("params.yaml", "temperature: 1.0", "temperature: 2.0")
    subprocess.run("git rm -q --cached params.yaml && git -c user.name=a -c user.email=a commit -qm second", shell=True)
    assert name() == "tiny"
    whole = Path("params.yaml").read_text()
    Path("params.yaml").write_text("profile: [tiny\n")
    subprocess.run("git add params.yaml && git -c user.name=a -c user.email=a commit -qm third", shell=True)
    Path("params.yaml").write_text(whole)
    assert name() == "tiny", "what was committed is no YAML"
    shutil.rmtree(".git")
    assert name() == "tiny"
