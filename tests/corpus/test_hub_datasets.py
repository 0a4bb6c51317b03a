"""The hub itself is never contacted: `load_dataset` is replaced, or given a local folder as its repository."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from moe_distill.config.corpus_keys import Hub
from moe_distill.corpus.hub_datasets import hub_documents
from moe_distill.corpus.raw import RawDocument, Skip
from moe_distill.errors import DataError

SOURCE = Hub(
    kind="hub",
    name="wiki",
    repository="owner/wiki",
    revision="0123abc",
    subset="raw",
    split="train",
    field="text",
    weight=1.0,
    max_documents=10,
)


def test_pinned_revision_split_and_streaming_are_passed_hub_not_contacted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*args: object, **kwargs: object) -> list[dict[str, Any]]:
        calls.append((args, kwargs))
        return [{"text": "one", "id": 1}, {"text": None, "id": 2}, {"text": "three", "id": 3}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(hub_documents(SOURCE)) == [
        RawDocument("one", "owner/wiki", 1),
        Skip("not text", "owner/wiki", 2),
        RawDocument("three", "owner/wiki", 3),
    ]
    assert calls == [(("owner/wiki", "raw"), {"split": "train", "revision": "0123abc", "streaming": True})]


def test_a_branch_is_followed_once_hub_not_contacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    first, read = "0123456789" * 4, list[str]()
    followed = SOURCE.model_copy(update={"revision": "main", "allow_unpinned": True})

    def load_dataset(*_args: object, revision: str, **_kwargs: object) -> list[dict[str, Any]]:
        read.append(revision)
        return [{"text": "one"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for commit in (first, first[::-1]):  # the second time `main` has moved
        info = SimpleNamespace(sha=commit)
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_args, info=info, **_kwargs: info)
        assert list(hub_documents(followed)) == [RawDocument("one", "owner/wiki", 1)]
    assert read == [first, first]


def test_a_branch_that_cannot_be_looked_up_is_one_line_whatever_the_library_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("an HTTP library's own")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    followed = SOURCE.model_copy(update={"revision": "main", "allow_unpinned": True})
    with pytest.raises(DataError, match="at revision main cannot be streamed; an HTTP library's own"):
        list(hub_documents(followed))


def test_a_connection_that_is_lost_between_two_rows_is_one_line_hub_not_contacted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_dataset(*_args: object, **_keys: object) -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise RuntimeError("timed out")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = hub_documents(SOURCE)
    assert next(rows) == RawDocument("one", "owner/wiki", 1)
    with pytest.raises(DataError, match="owner/wiki at revision 0123abc cannot be streamed; timed out; check"):
        next(rows)


def local_repository(folder: Path) -> Hub:
    for split in ("train", "test"):
        lines = [json.dumps({"text": f"{split} {number}\r\né"}) for number in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return SOURCE.model_copy(update={"repository": str(folder), "subset": None})


def test_local_folder_is_streamed_by_the_real_library_hub_not_contacted(tmp_path: Path) -> None:
    source = local_repository(tmp_path)
    texts = [item.text for item in hub_documents(source) if isinstance(item, RawDocument)]
    assert texts == [f"train {number}\r\né" for number in range(3)]


@pytest.mark.parametrize("change", [{"split": "valdiation"}, {"subset": "misspelt"}])
def test_wrong_split_or_subset_is_an_error_with_a_remedy_hub_not_contacted(
    tmp_path: Path, change: dict[str, str]
) -> None:
    source = local_repository(tmp_path).model_copy(update=change)
    with pytest.raises(DataError, match=r"at revision 0123abc cannot be streamed.*`split`"):
        list(hub_documents(source))


def test_missing_column_names_those_there_are_hub_not_contacted(tmp_path: Path) -> None:
    source = local_repository(tmp_path).model_copy(update={"field": "content"})
    with pytest.raises(DataError, match=r"no column `content`; its columns: text; change `field`"):
        list(hub_documents(source))


def test_lost_connection_is_an_error_with_a_remedy_hub_not_contacted(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose() -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise ConnectionError("Server Disconnected")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: lose())
    documents = hub_documents(SOURCE)
    assert next(documents) == RawDocument("one", "owner/wiki", 1)
    with pytest.raises(DataError, match="Server Disconnected; check the network"):
        next(documents)


def test_other_sources_do_not_pay_for_importing_datasets() -> None:
    code = "import sys, moe_distill.corpus.build; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
