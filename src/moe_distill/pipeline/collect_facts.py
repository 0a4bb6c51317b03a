"""Collect what a report tells of a run beside its figures: commit, command, machine, versions, times and bytes."""

import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from moe_distill.config.params import Params
from moe_distill.pipeline.dvc_stage import stage_outputs
from moe_distill.pipeline.stage_times import recorded_time
from moe_distill.reporting.run_facts import RunFacts, StageFacts
from moe_distill.utils.machine import describe_machine

PACKAGES = ("moe-distill", "torch", "transformers", "tokenizers", "safetensors", "datasets", "dvc", "mlflow")
CODE = ("src", "stages", "dvc.yaml", "requirements.txt")
VARIED = "params.yaml"


def collect_facts(params: Params) -> RunFacts:
    """Facts of the run whose outputs lie in the current folder."""
    profile = f"profiles/{params.experiment.profile}.yaml"
    commit, corpus = _git("rev-parse", "HEAD"), recorded_time("corpus")
    changed = _git("status", "--porcelain", "--", *CODE).splitlines() if commit else []
    return RunFacts(
        commit=commit,
        changed=tuple(line[3:] if line[2:3] == " " else line.split(maxsplit=1)[-1] for line in changed),
        experiment=os.environ.get("DVC_EXP_NAME", ""),
        collected=corpus.began.date().isoformat() if corpus else "",
        machine=describe_machine(),
        versions={"Python": platform.python_version(), **dict(_versions())},
        stages=tuple(_facts(stage, outputs) for stage, outputs in stage_outputs().items()),
        commands=tuple(_commands(commit, profile)),
    )


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue


def _facts(stage: str, outputs: list[Path]) -> StageFacts:
    files = [file for out in outputs for file in ([out] if out.is_file() else out.rglob("*")) if file.is_file()]
    time = recorded_time(stage)
    return StageFacts(stage, time.seconds if time else None, sum(file.stat().st_size for file in files))


def _commands(commit: str, profile: str) -> Iterator[str]:
    """The commands that make this run again from its commit: what differs from its parameters is set."""
    changes = [
        f"-S {shlex.quote(f'{prefix}{change}')}"
        for path, prefix in ((VARIED, ""), (profile, f"{profile}:"))
        for change in _differences(path)
    ]
    if commit:
        yield f"git checkout {commit}"
        yield from (
            f"# put {path} back as it was here: that commit has none that can be read"
            for path in (VARIED, profile)
            if not _committed(path)
        )
    yield "make install"
    yield f"dvc exp run {' '.join(changes)}" if changes else "dvc repro"


def _differences(path: str) -> Iterator[str]:
    """What `dvc exp run -S` makes the present parameter file of its committed version with."""
    before = _committed(path)
    if not before:
        return
    now = _values(Path(path).read_text(encoding="utf-8"))
    yield from (f"~{key}" for key in before if key not in now)
    for key, value in now.items():
        if key not in before or before[key] != value:
            yield f"{'' if key in before else '+'}{key}={_in_hydra(value)}"


def _committed(path: str) -> dict[str, object]:
    """The values of a parameter file in the present commit; none where it has no such file."""
    return _values(_git("show", f"HEAD:./{path}"))


def _values(text: str) -> dict[str, object]:
    """The values of a parameter file by dotted key; none of what is not YAML, as a commit may hold."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return dict(_flat(content)) if isinstance(content, Mapping) else {}


def _in_hydra(value: object) -> str:
    """A value as `-S` reads it, which is Hydra's grammar and not JSON: keys stand without quotes."""
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_in_hydra(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_in_hydra, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z][\w./-]*", value):
        quoted = value.replace("'", "\\'")  # a backslash elsewhere stands for itself
        return f"'{quoted}'"
    return value if isinstance(value, str) else json.dumps(value)


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _git(*arguments: str) -> str:
    """What git says; nothing where it cannot."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", check=True)
    except (OSError, ValueError, subprocess.CalledProcessError):  # ValueError: it is not UTF-8
        return ""
    return done.stdout.strip("\n")
