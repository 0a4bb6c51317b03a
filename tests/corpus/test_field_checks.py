"""What the stage `check` sees of a corpus before it is read."""

import json
from pathlib import Path

import pytest

from moe_distill.config.corpus_keys import Files
from moe_distill.corpus.field_checks import check_fields
from moe_distill.errors import DataError

SOURCE = Files(kind="files", paths=["a.jsonl"])


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_under_the_name_of_a_jsonl_file_is_refused(indent: int | None) -> None:
    Path("a.jsonl").write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=indent))
    with pytest.raises(DataError, match=r"^no line of a.jsonl is a JSON object; .* one object a line, as \{\"text\": "):
        check_fields(SOURCE)


def test_objects_in_another_encoding_are_told_so() -> None:
    Path("a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-16")
    with pytest.raises(DataError, match=r"no line of a.jsonl is a JSON object; .* not UTF-8"):
        check_fields(SOURCE)


@pytest.mark.parametrize("content", ["", "\n \n", 'broken\n{"text": "one"}\n', '[1]\n\n{"text": "one", "id": 1}'])
def test_blank_lines_and_single_lines_of_another_kind_are_left_to_be_skipped(content: str) -> None:
    Path("a.jsonl").write_text(content)
    check_fields(SOURCE)


def test_the_keys_of_all_lines_are_told_where_none_is_the_field() -> None:
    Path("a.jsonl").write_text('{"id": 1}\nbroken\n{"body": "one"}\n')
    with pytest.raises(DataError, match=r"no key `text` in a\.jsonl; it has id, body; set `field`"):
        check_fields(SOURCE)
