"""Which files a source's paths stand for, what is left out, and names of any bytes."""

import os
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moe_distill.corpus.build import build_corpus
from moe_distill.corpus.local_files import left_out, local_files
from moe_distill.errors import DataError

from .conftest import MakeCorpus, files_source


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in ("a.txt", "deep/b.TXT", "deep/c.md", "README", "d.json", "e.md", "empty.txt/f.jsonl"):
        Path("texts", name).parent.mkdir(parents=True, exist_ok=True)
        Path("texts", name).write_text(f"text of {name}")
    Path("elsewhere").mkdir()
    Path("elsewhere/g.txt").write_text("linked")
    Path("texts/link").symlink_to(tmp_path / "elsewhere")
    Path("texts/broken.txt").symlink_to("nowhere")
    os.mkfifo("texts/pipe.txt")
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_every_file_is_read_or_counted() -> None:
    names = [file.name for file in local_files(["texts"])]
    assert names == ["texts/a.txt", "texts/deep/b.TXT", "texts/empty.txt/f.jsonl"]
    expected = {".md": 2, "no suffix": 1, ".json": 1, "no regular file": 2, "folder that is a link": 1}
    assert left_out(["texts"]) == Counter(expected)
    assert left_out(["texts", "texts/*.md", "texts"]) == left_out(["texts"])
    assert not left_out(["texts/a.txt"])


def test_the_corpus_says_what_it_leaves_out(
    folder: Path, make_corpus: MakeCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(20):
        (folder / f"elsewhere/{number}.txt").write_text(f"text {number}")
    (folder / "elsewhere/x.pdf").touch()
    build_corpus(make_corpus(files_source("elsewhere", name="mine"), validation_fraction=0.5), folder / "corpus")
    assert "corpus: mine: 1 files of other kinds are left out: 1 .pdf" in capsys.readouterr().out


def test_a_name_that_is_not_utf8_is_shown_by_its_bytes(folder: Path) -> None:
    raw = folder / "elsewhere" / os.fsdecode(b"caf\xe9.txt")
    raw.write_text("text")
    names = {file.name: file for file in local_files(["elsewhere"])}
    assert set(names) == {"elsewhere/caf\\xe9.txt", "elsewhere/g.txt"}
    assert names["elsewhere/caf\\xe9.txt"].path.read_text() == "text"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("path", ["", "none", "texts/e.md", "\0", "a" * 5000, "none/*", "texts/deep/c.md", "\ud800"])
def test_a_path_of_no_text_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"matches no|cannot be read"):
        local_files([path])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("call", ["listdir", "access"])
def test_a_folder_that_cannot_be_listed_or_opened_is_refused(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    real = getattr(os, call)

    def refused(path: str, *arguments: int) -> object:
        if not path.endswith("deep"):
            return real(path, *arguments)
        if call == "access":
            return False
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, call, refused)
    with pytest.raises(DataError, match=r"`texts` cannot be read.*(Permission denied|its rights).*deep"):
        local_files(["texts"])


@pytest.mark.usefixtures("folder")
def test_a_file_in_a_folder_that_cannot_be_opened_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a glob finds it, which lists the folder alone."""
    real = os.stat

    def refused(path: str, *arguments: Any, **named: Any) -> object:
        if str(path).endswith("b.TXT"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(DataError, match=r"cannot be read.*Permission denied"):
        local_files(["texts/*/*.TXT"])


def test_listing_holds_little_more_than_the_names(folder: Path) -> None:
    """A Path of each would put its name into Python's table of interned texts: a megabyte when that grows."""
    count = 4000
    (folder / "many").mkdir()
    for number in range(count):
        (folder / f"many/{number:06}.txt").touch()
    tracemalloc.start()
    try:
        assert sum(file.suffix == ".txt" for file in local_files(["many"])) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 180 * count
