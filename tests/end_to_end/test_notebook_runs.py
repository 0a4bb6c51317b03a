"""notebooks/kaggle.ipynb executed: a session that is cut off, then another one on another machine that ends the run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.end_to_end.conftest import Checkout, clean_environment, copy_of_the_project
from tests.params import ROOT


def execute(project: Path, lasting: Path, hours: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Run all cells; what each printed or displayed, by its tag."""
    notebook = nbformat.read(ROOT / "notebooks/kaggle.ipynb", as_version=4)
    if "--measure" not in Checkout(ROOT).run("moe-distill", "plan", "--help", PYTHONPATH=str(ROOT / "src")):
        notebook.cells = [cell for cell in notebook.cells if "measure" not in cell.metadata.get("tags", [])]
    settings = {"PROFILE": "test", "PROJECT": project, "LASTING": lasting, "HOURS": hours, "INSTALL": "no"}
    environment = clean_environment() | {f"MOE_DISTILL_{name}": str(value) for name, value in settings.items()}
    with monkeypatch.context() as patched:
        for name, value in (environment | {"PYTHONPATH": str(ROOT / "src")}).items():
            patched.setenv(name, value)
        NotebookClient(notebook, timeout=1800, kernel_name="python3").execute(cwd=str(project.parent))
    said: dict[str, str] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tag = cell.metadata.tags[0]
            said[tag] = said.get(tag, "") + text_of(cell)
    return said


def text_of(cell: NotebookNode) -> str:
    texts = [each.get("text", "") + each.get("data", {}).get("text/markdown", "") for each in cell.outputs]
    return "\n".join(texts)


@pytest.mark.slow
def test_a_session_goes_on_where_another_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, lasting = tmp_path / "first", tmp_path / "second machine", tmp_path / "lasting"
    first.mkdir()
    copy_of_the_project(first)
    said = execute(first, lasting, hours=40 / 3600, monkeypatch=monkeypatch)
    assert "float32" in said["doctor"]
    assert "stopped after" in said["run"]
    assert "no report yet" in said["report"]
    first.rename(tmp_path / "gone")
    said = execute(second, lasting, hours=1.0, monkeypatch=monkeypatch)
    assert "the project of an earlier session" in said["project"]
    assert "didn't change, skipping" in said["run"]
    assert "stopped after" not in said["run"]
    assert "| teacher |" in said["report"]
    assert not first.exists()
