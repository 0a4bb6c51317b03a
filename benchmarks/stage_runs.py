"""A small project in a folder of its own, through which `dvc repro` runs, each stage measured."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import measured_stage
import yaml
from bench_texts import code_text

ROOT = Path(__file__).parents[1]
COPIED = ("src", "stages", ".dvc/config", ".dvc/plots.html", ".dvcignore", "dvc.yaml")
DOCUMENT_CHARACTERS = 5_000


@dataclass(frozen=True)
class StageCost:
    """What a stage took."""

    peak_bytes: int
    seconds: float
    tracking_seconds: float
    first_tracking_seconds: float  # of them, until the stage's run is there: MLflow is imported, its store made


def make_workspace(folder: Path, profile: dict[str, Any], documents: Sequence[str] | None) -> None:
    """Put a project with this profile into `folder`, and the tests' params.yaml, which no user edits.

    Args:
        documents: which it distils on; None: on the corpus of the profile.
    """
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    shutil.copy(ROOT / "tests/params.yaml", folder)
    if documents is not None:
        profile["corpus"]["sources"] = [{"kind": "files", "paths": [str(write_texts(folder, documents))]}]
    (folder / "profiles").mkdir()
    (folder / "profiles/test.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    python = folder / "bin/python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{measured_stage.__file__}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    run(folder, "git", "init", "--quiet")


def shuffled_documents(characters: int) -> list[str]:
    """Documents of source code, each another one: those at the beginning are of the same kinds as all."""
    text = code_text(characters)
    starts = range(0, len(text), DOCUMENT_CHARACTERS)
    documents = [f"# {number}\n{text[start : start + DOCUMENT_CHARACTERS]}" for number, start in enumerate(starts)]
    Random(0).shuffle(documents)
    return documents


def write_texts(folder: Path, documents: Sequence[str]) -> Path:
    """A file for each document, in this order; returns their folder."""
    texts = folder / "texts"
    texts.mkdir()
    for number, document in enumerate(documents):
        (texts / f"{number:06}.txt").write_text(document, encoding="utf-8")
    return texts


def small_profile() -> dict[str, Any]:
    """Profile `test` over all of the text; the memory for finished targets is so small that any text fills it."""
    profile: dict[str, Any] = yaml.safe_load((ROOT / "profiles/test.yaml").read_text(encoding="utf-8"))
    profile["windows"] |= {"train_fraction": 1.0, "max_train_windows": None, "max_validation_windows": None}
    profile["corpus"]["validation_fraction"] = 0.2  # a small text has some too
    profile["train"]["target_memory_mb"] = 1
    return profile


def repro(folder: Path, last: str | None = None) -> dict[str, StageCost]:
    """Run the pipeline, up to a stage where one is named; returns the costs of all stages that have run, in order."""
    run(folder, "dvc", "repro", *([] if last is None else [last]))
    files = sorted((folder / measured_stage.FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime)
    return {path.stem: StageCost(**json.loads(path.read_text(encoding="utf-8"))) for path in files}


def run(folder: Path, *command: str) -> None:
    """Run a command in a workspace.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "GIT_"))}
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env=kept | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stdout[-2000:]}")
