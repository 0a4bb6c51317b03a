"""What `make` would install: the locked requirements, or another torch first."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKED = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch=="))

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def installs(*settings: str) -> list[str]:
    """The `pip install` commands of a dry run in an empty environment, from `install` on."""
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", "ui", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if " -m pip " in line]
    quiet = "--quiet --disable-pip-version-check "
    return [line.replace(quiet, "").replace(".venv/bin/python -m pip ", "") for line in lines]


OTHERS = "grep -v '^torch==' requirements.txt | install -r /dev/stdin"
ITSELF = "install --no-deps --editable ."


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], ["install -r requirements.txt", ITSELF]),
        (["TORCH_INDEX=where"], [f"install --index-url where '{LOCKED}'", OTHERS, ITSELF]),
        (["TORCH=torch==2.6.0"], ["install 'torch==2.6.0'", OTHERS, ITSELF]),
        (["TORCH=torch==2.6.0", "TORCH_INDEX=where"], ["install --index-url where 'torch==2.6.0'", OTHERS, ITSELF]),
    ],
)
def test_torch_is_the_locked_one_or_the_one_that_is_asked_for(settings: list[str], expected: list[str]) -> None:
    assert installs(*settings) == expected


def test_no_command_breaks_where_the_folders_name_has_blanks(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", "run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert str(folder) not in done.stdout, "what runs is named from the folder itself on"


def phony_targets() -> list[str]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    return next(line for line in lines if line.startswith(".PHONY:")).split()[1:]


def test_every_phony_target_exists() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    assert [name for name in phony_targets() if not any(line.startswith(f"{name}:") for line in lines)] == []


def test_make_alone_says_every_target_in_a_line_and_does_nothing_else(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    done = subprocess.run(["make", "--no-print-directory"], cwd=tmp_path, capture_output=True, text=True, check=True)
    *targets, _settings = done.stdout.splitlines()
    assert sorted(line.split()[1] for line in targets) == sorted(phony_targets())
    assert all(line.startswith("make ") and len(line.split()) > 3 and len(line) <= 120 for line in targets)
    assert done.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "requirements.txt"]
