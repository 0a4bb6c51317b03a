"""Parameters of the tests' own: params.yaml is the user's, who edits it."""

import shutil
from pathlib import Path

import yaml

from moe_distill.config.params import ExperimentParams, Params
from moe_distill.config.profile import Profile

ROOT = Path(__file__).parents[1]
PARAMS = ROOT / "tests/params.yaml"


def fixed_params(profile: str = "test") -> Params:
    """Those of tests/params.yaml and of a shipped profile."""
    experiment = ExperimentParams.model_validate(yaml.safe_load(PARAMS.read_text()) | {"profile": profile})
    return Params(experiment=experiment, profile=shipped_profile(profile))


def shipped_profile(name: str) -> Profile:
    return Profile.model_validate(yaml.safe_load((ROOT / f"profiles/{name}.yaml").read_text()))


def make_workspace(folder: Path, profile: Profile) -> None:
    """Put into a folder what a stage needs to run there: dvc.yaml, tests/params.yaml and a profile `test`."""
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copy(PARAMS, folder)
    (folder / "profiles").mkdir()
    (folder / "profiles/test.yaml").write_text(yaml.safe_dump(profile.model_dump(mode="json")))
