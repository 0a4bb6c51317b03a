"""A corpus of local text, as DVC follows it: an edit, a temporary workspace, a clone without the text."""

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Checkout, copy_of_the_project, ran

pytestmark = pytest.mark.slow
DOCS = "    - kind: python_docs\n      weight: 0.2\n"
FILES = """    - kind: files
      name: mine
      paths: [texts]
      field: text
      weight: 1.0
      max_documents: null
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Profile `test` on text that git does not track, with its corpus made."""
    made = copy_of_the_project(tmp_path_factory.mktemp("local"))
    made.edit("profiles/test.yaml", DOCS, FILES)
    made.edit("profiles/test.yaml", "validation_fraction: 0.03", "validation_fraction: 0.5")
    made.run("git", "commit", "-q", "-a", "-m", "local text")
    (made.folder / ".git/info/exclude").write_text("/texts\n")
    (made.folder / "texts").mkdir()
    for number in range(20):
        (made.folder / f"texts/{number}.txt").write_text(f"text {number}")
    assert ran(made.run("dvc", "repro", "corpus")) == {"check", "corpus"}
    return made


def test_an_edit_of_a_text_makes_the_corpus_again_and_nothing_else_does(local: Checkout) -> None:
    assert ran(local.run("dvc", "repro", "corpus")) == {"check"}
    (local.folder / "texts/0.txt").write_text("edited")
    assert ran(local.run("dvc", "repro", "corpus")) == {"check", "corpus"}


def test_a_temporary_workspace_reads_the_texts_of_the_main_checkout(local: Checkout) -> None:
    change = "profiles/test.yaml:corpus.validation_fraction=0.6"
    assert ran(local.run("dvc", "exp", "run", "--temp", "-S", change, "corpus")) == {"check", "corpus"}


def test_a_clone_without_the_texts_keeps_the_corpus_it_pulls(local: Checkout, tmp_path: Path) -> None:
    local.run("dvc", "remote", "add", "-f", "-d", "shared", str(tmp_path / "remote"))
    local.run("dvc", "push", "corpus")
    local.run("git", "clone", "-q", str(local.folder), str(tmp_path / "clone"))
    clone = Checkout(tmp_path / "clone")
    for name in (".dvc/config", "dvc.lock"):
        shutil.copy(local.folder / name, clone.folder / name)
    clone.run("dvc", "pull", "corpus")
    said = clone.run("dvc", "repro", "corpus")
    assert ran(said) == {"check"}
    assert "check: `texts` of the corpus is not here" in said
