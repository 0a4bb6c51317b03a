"""Names of runs that a person can tell apart: the profile, what differs from the committed parameters, DVC's name."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from moe_distill.config.params import Params, load_params
from moe_distill.errors import MoeDistillError

PARAM_LENGTH = 6000  # the most MLflow accepts, in characters
SHOWN_CHANGES, SHOWN_CHARACTERS = 4, 24
SHORT_KEYS = {"temperature": "T"}


def flat_parameters(params: Params) -> dict[str, str]:
    """Every key of params.yaml and the profile with its value as text; `a.b` is key `b` in section `a`."""
    return dict(_flatten({**params.profile.model_dump(mode="json"), **params.experiment.model_dump(mode="json")}))


def _flatten(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, str(value)[:PARAM_LENGTH]


def run_name(params: Params, base: Mapping[str, str]) -> str:
    """Such as `tiny T=2.0 warm-lynx`.

    Args:
        base: the parameters that the run is compared with; a key that it lacks is not shown.
    """
    flat = flat_parameters(params)
    changed = [key for key, value in flat.items() if key != "profile" and base.get(key, value) != value]
    changed.sort(key=lambda key: "." in key)  # what one studies first
    shown = [f"{_short(key, changed)}={_shortened(flat[key])}" for key in changed[:SHOWN_CHANGES]]
    if len(changed) > SHOWN_CHANGES:
        shown.append(f"and {len(changed) - SHOWN_CHANGES} more")
    dvc_name = os.environ.get("DVC_EXP_NAME")
    return " ".join([params.experiment.profile, *shown, *([dvc_name] if dvc_name else [])])


def _short(key: str, keys: list[str]) -> str:
    """The last part of a key, where no other of `keys` ends with it."""
    last = key.rpartition(".")[2]
    alike = [each for each in keys if each.rpartition(".")[2] == last]
    return SHORT_KEYS.get(key, last if len(alike) == 1 else key)


def _shortened(value: str) -> str:
    return value if len(value) <= SHOWN_CHARACTERS else f"{value[: SHOWN_CHARACTERS - 3]}..."


def committed_parameters(profile: str) -> dict[str, str]:
    """The parameters of the current commit with a profile; empty without git, or where they are of another version."""
    command = ["git", "archive", "HEAD", "params.yaml", "profiles"]
    with TemporaryDirectory() as folder:
        try:
            archive = subprocess.run(command, capture_output=True, check=True).stdout
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(folder, filter="data")
            path = Path(folder, "params.yaml")
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            path.write_text(yaml.safe_dump({**content, "profile": profile}), encoding="utf-8")
            return flat_parameters(load_params(Path(folder)))
        except (OSError, subprocess.CalledProcessError, tarfile.TarError, TypeError, ValueError):
            return {}
        except (yaml.YAMLError, MoeDistillError):
            return {}
