from pathlib import Path

import datasets
import pytest

from moe_distill.config.corpus_keys import Corpus, Files, Hub, PythonDocs, source_name
from moe_distill.corpus.raw import RawDocument, Skip
from moe_distill.corpus.sources import read_source

from .conftest import MakeCorpus, files_source, write_jsonl

HUB = {
    "kind": "hub",
    "name": "wiki",
    "repository": "owner/wiki",
    "revision": "0123abc",
    "subset": None,
    "split": "train",
    "field": "text",
    "weight": 1.0,
    "max_documents": 2,
}


def test_names(make_corpus: MakeCorpus) -> None:
    corpus: Corpus = make_corpus({"kind": "python_docs", "weight": 1.0}, files_source("a", name="mine"), HUB)
    assert [type(source) for source in corpus.sources] == [PythonDocs, Files, Hub]
    assert [source_name(source) for source in corpus.sources] == ["python_docs", "mine", "wiki"]


def test_every_text_is_examined_whatever_its_source(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["good", "\ud800", "nul\0", " "])
    (tmp_path / "b.txt").write_bytes(b"a\nb\0")
    items = list(read_source(make_corpus(files_source(tmp_path)).sources[0]))
    assert items == [
        RawDocument("good", str(path), 1),
        Skip("lone surrogate", str(path), 2),
        Skip("NUL", str(path), 3),
        Skip("empty", str(path), 4),
        Skip("NUL", str(tmp_path / "b.txt"), 2),
    ]


def test_r29_document_limit_counts_usable_documents(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["", "one", "", "two", "three", ""])
    source = make_corpus(files_source(path, max_documents=2)).sources[0]
    assert [item.line for item in read_source(source)] == [1, 2, 3, 4]


def test_r29_hub_stream_is_read_no_further_than_its_limit(
    monkeypatch: pytest.MonkeyPatch, make_corpus: MakeCorpus
) -> None:
    rows = iter([{"text": f"row {number}"} for number in range(5)])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert len(list(read_source(make_corpus(HUB).sources[0]))) == 2
    assert next(rows) == {"text": "row 2"}
