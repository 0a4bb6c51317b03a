import sys
import sysconfig
from pathlib import Path

import pytest

from moe_distill.corpus.python_docs import LEFT_OUT, MIN_CHARACTERS, python_documents
from moe_distill.corpus.raw import RawDocument, Skip
from moe_distill.errors import DataError

STDLIB = Path(sysconfig.get_path("stdlib"))
LONG = " ".join(["Words that explain the matter at hand."] * 8)
SOURCE = f'''"""{LONG}"""
import a_module_that_does_not_exist

raise RuntimeError("imported, not parsed")


class Large(Base, metaclass=Meta):
    """{LONG}

    Next paragraph.
        Indented further.
    """

    async def method(self, a: int = 3, *rest: str, key=None, **others):
        """What a method does."""

        def inner():
            """What an inner function does."""


class Small:
    """Short."""


if condition:
    try:
        pass
    except OSError:

        def guarded(x, /, y=(1, 2)):
            """Defined in a branch."""


match condition:
    case 1:

        def matched():
            """Defined in a case."""


def silent():
    return 1
'''


def library(folder: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder


def module_documents(folder: Path) -> list[RawDocument | Skip]:
    return [item for item in python_documents(folder) if not item.file.startswith("pydoc_data")]


def test_module_is_parsed_into_signatures_and_docstrings(tmp_path: Path) -> None:
    module, large = module_documents(library(tmp_path, {"a.py": SOURCE}))
    assert module == RawDocument(
        f"{LONG}\n\nclass Small:\nShort.\n\ndef guarded(x, /, y=(1, 2)):\nDefined in a branch.\n\n"
        "def matched():\nDefined in a case.",
        "a.py",
        1,
    )
    assert large == RawDocument(
        f"class Large(Base):\n{LONG}\n\nNext paragraph.\n    Indented further.\n\n"
        "async def method(self, a: int=3, *rest: str, key=None, **others):\nWhat a method does.\n\n"
        "def inner():\nWhat an inner function does.",
        "a.py",
        7,
    )


def test_files_are_sorted_and_short_and_foreign_ones_left_out(tmp_path: Path) -> None:
    long = f'"""{LONG}"""'
    foreign = {f"pack/{folder}/c.py": long for folder in LEFT_OUT}
    files = {"z.py": long, "pack/b.py": long, "a.py": long, "short.py": '"""Short."""', "empty.py": "", **foreign}
    assert [item.file for item in module_documents(library(tmp_path, files))] == ["a.py", "pack/b.py", "z.py"]


def test_minimum_length_is_inclusive(tmp_path: Path) -> None:
    files = {"a.py": f'"{"a" * MIN_CHARACTERS}"', "b.py": f'"{"b" * (MIN_CHARACTERS - 1)}"'}
    assert [item.file for item in module_documents(library(tmp_path, files))] == ["a.py"]


def test_file_that_is_not_python_is_skipped_with_its_line(tmp_path: Path) -> None:
    files = {"a.py": f'"""{LONG}"""', "bad.py": "x = 1\nprint 'old'\n", "nul.py": "\0"}
    items = module_documents(library(tmp_path, files))
    assert [item.file for item in items] == ["a.py", "bad.py", "nul.py"]
    assert items[1:] == [Skip("not Python", "bad.py", 2), Skip("not Python", "nul.py", 1)]


def test_no_topic_is_contained_in_another_and_most_are_kept() -> None:
    from pydoc_data.topics import topics

    documents = [item for item in python_documents(STDLIB) if item.file.startswith("pydoc_data")]
    texts = [item.text for item in documents if isinstance(item, RawDocument)]
    bodies = [text.split("\n", 2)[-1].strip() for text in texts]
    assert all(sum(body in text for text in texts) == 1 for body in bodies)
    assert len(topics) * 0.7 < len(texts) < len(topics)
    for name, text in topics.items():  # what is left out is still there, as a part
        assert any(text.split("\n", 2)[-1].strip() in kept for kept in texts), name
    assert [item.file for item in documents] == sorted(item.file for item in documents)


def test_no_documentation_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"holds no documented modules.*corpus\.sources"):
        list(python_documents(tmp_path))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"pydoc_data\.topics is missing.*corpus\.sources"):
        list(python_documents(STDLIB))


def test_nothing_is_imported() -> None:
    before = set(sys.modules)
    list(python_documents(STDLIB))
    assert {name for name in set(sys.modules) - before if not name.startswith("pydoc_data")} == set()
