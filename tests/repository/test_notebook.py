"""notebooks/kaggle.ipynb as it is committed: valid, without outputs or a machine's paths, and its commands exist."""

import re
import shutil

import nbformat
import pytest
from typer.main import get_command

from moe_distill.cli import app
from tests.params import ROOT

PATH = ROOT / "notebooks/kaggle.ipynb"
SHELL_WORDS = {"if", "elif", "else", "fi", "then", "set", "echo", "exit", "["}
PLATFORM = ("/kaggle/", "/content/", "/tmp/")
TAGS = ["parameters", "drive", "project", "project", "install", "doctor", "measure", "run", "save", "report"]


@pytest.fixture(scope="module")
def cells() -> list[nbformat.NotebookNode]:
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    return list(notebook.cells)


def code_of(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    return [cell for cell in cells if cell.cell_type == "code"]


def commands_of(source: str) -> list[list[str]]:
    """The words of every command in a shell cell, without what is inside quotes but `$(...)`."""
    inner = re.findall(r"\$\(([^()]+)\)", source)
    plain = re.sub(r"\"[^\"]*\"", '""', source.replace("%%bash", ""))
    pieces = re.split(r"\n|\||;|&&", "\n".join([plain, *inner]))
    words = [piece.split() for piece in pieces if piece.strip()]
    return [each for each in words if each[0] not in SHELL_WORDS and "=" not in each[0]]


def test_no_output_is_committed_and_every_cell_has_its_tag(cells: list[nbformat.NotebookNode]) -> None:
    found = code_of(cells)
    assert all(not cell.outputs and cell.execution_count is None for cell in found)
    assert [cell.metadata.tags[0] for cell in found] == TAGS


def test_no_path_is_of_one_machine(cells: list[nbformat.NotebookNode]) -> None:
    for cell in cells:
        paths = re.findall(r"(?<![\w./:$}\"{-])/[a-z]\w*/[\w./-]*|\"(/[a-z][\w./-]+)\"", cell.source)
        assert all(path.startswith(PLATFORM) for path in paths if path), paths


def test_every_command_exists(cells: list[nbformat.NotebookNode]) -> None:
    names = set(get_command(app).commands)  # type: ignore[attr-defined]
    seen = set()
    for cell in code_of(cells):
        if not cell.source.startswith("%%bash"):
            continue
        assert cell.source.startswith("%%bash\nset -euo pipefail\n")  # else a failed command would go unseen
        for words in commands_of(cell.source):
            assert shutil.which(words[0]), words
            seen.add(words[0])
            if words[0] == "moe-distill":
                assert words[1] in names
    assert seen >= {"git", "tar", "dvc", "moe-distill", "timeout", "flock"}


def test_a_command_that_does_not_exist_is_found() -> None:
    source = '%%bash\nset -e\nif [ -n "$(dvk remote list)" ]; then\n  tarr -xf "a b" | grep x\nfi\ncode=0\n'
    assert [words[0] for words in commands_of(source)] == ["tarr", "grep", "dvk"]
