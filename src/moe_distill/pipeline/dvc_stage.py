"""A stage in dvc.yaml: the code and the parameters for which DVC runs it again."""

from functools import reduce
from pathlib import Path

import yaml
from pydantic import BaseModel

from moe_distill.config.params import Params
from moe_distill.pipeline.default_values import OUTPUT as DEFAULTS
from moe_distill.utils.files import Json, fingerprint, sha256_file


class _DvcStage(BaseModel):
    """The keys of a stage that are read here."""

    deps: list[str]
    params: list[str | dict[str, list[str]]] = []  # keys of params.yaml, or of the one file that is named


def stage_code(stage: str) -> str:
    """Fingerprint of the Python files among a stage's `deps`."""
    code = [Path(each) for each in _dvc_stage(stage).deps if each.startswith(("src/", "stages/"))]
    files = sorted(file for path in code for file in ([path] if path.is_file() else path.rglob("*.py")))
    return fingerprint({file.as_posix(): sha256_file(file) for file in files})


def stage_parameters(stage: str, params: Params) -> dict[str, Json]:
    """The values of a stage's `params` by key, of params.yaml and of the profile's file."""
    experiment, profile = params.experiment.model_dump(mode="json"), params.profile.model_dump(mode="json")
    values: dict[str, Json] = {}
    for entry in _dvc_stage(stage).params:
        if isinstance(entry, dict) and DEFAULTS.as_posix() in entry:  # they stand in `params` already
            continue
        keys, source = ([entry], experiment) if isinstance(entry, str) else (next(iter(entry.values())), profile)
        values |= {key: reduce(lambda section, name: section[name], key.split("."), source) for key in keys}
    return values


def stage_outputs() -> dict[str, list[Path]]:
    """What each stage of dvc.yaml writes, in its order; a `foreach` stage has an entry for each key, as name@key."""
    outputs: dict[str, list[Path]] = {}
    for name, stage in yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        items = {f"{name}@{key}": item for key, item in stage.get("foreach", {}).items()} or {name: {}}
        for label, item in items.items():
            entries = stage.get("do", stage).get("outs", [])
            paths = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
            key = label.partition("@")[2]
            outputs[label] = [
                Path(path.replace("${key}", key).replace("${item.folder}", item.get("folder", ""))) for path in paths
            ]
    return outputs


def _dvc_stage(stage: str) -> _DvcStage:
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return _DvcStage.model_validate(stages[stage])
