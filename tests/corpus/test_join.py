"""Rows that are lines become documents of a given length: nothing is lost, and nothing crosses a file."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_distill.config.corpus_keys import Hub
from moe_distill.corpus.build import build_corpus
from moe_distill.corpus.hub_datasets import hub_documents
from moe_distill.corpus.raw import RawDocument, Skip
from moe_distill.corpus.resize import join_rows
from moe_distill.corpus.sources import read_source

from .conftest import MakeCorpus, files_source, read_split, write_jsonl

HUB: dict[str, object] = {
    "kind": "hub",
    "name": "wiki",
    "repository": "owner/wiki",
    "revision": "0123abc",
    "subset": None,
}
HUB |= {"split": "train", "field": "text", "weight": 1.0, "max_documents": 2}


def rows(*texts: str) -> Iterator[RawDocument | Skip]:
    return (RawDocument(text, "f", number) for number, text in enumerate(texts, start=1))


def test_wikitext_reads_as_it_was_written() -> None:
    """Its rows are lines with their ends, and blank ones are empty."""
    lines = ["", " = Title = \n", "", " Text . \n", " More .\n", "", " = Next = \n"]
    assert list(join_rows(rows(*lines), 30)) == [
        RawDocument(" = Title = \n\n Text . \n More .\n", "f", 2),
        RawDocument(" = Next = \n", "f", 7),
    ]


def test_a_row_that_cannot_be_used_costs_that_row_alone() -> None:
    items: list[RawDocument | Skip] = [
        RawDocument("one", "f", 1),
        Skip("invalid UTF-8", "f", 2),
        RawDocument("nul\0", "f", 3),
    ]
    items += [RawDocument("\ud800", "f", 4), RawDocument("five", "f", 5)]
    skips = [Skip("invalid UTF-8", "f", 2), Skip("NUL", "f", 3), Skip("lone surrogate", "f", 4)]
    assert list(join_rows(iter(items), 100)) == [*skips, RawDocument("one\nfive\n", "f", 1)]


def test_nothing_comes_of_blank_rows() -> None:
    assert list(join_rows(rows("", " \n", "\n"), 1)) == []


@given(st.lists(st.text(st.sampled_from("ab \n"), max_size=6), max_size=30), st.integers(1, 20))
def test_every_line_is_in_one_document_in_order(texts: list[str], characters: int) -> None:
    documents = [item for item in join_rows(rows(*texts), characters) if isinstance(item, RawDocument)]
    said = [row for text in texts for row in text.split("\n") if row.strip()]
    assert [line for document in documents for line in document.text.split("\n") if line.strip()] == said
    assert all(len(document.text) >= characters for document in documents[:-1])
    longest = max((len(text) + 1 for text in texts), default=0)
    assert all(len(document.text) < characters + longest for document in documents)


def test_a_document_never_crosses_files_and_txt_stays_whole(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["a1", "a2", "a3"])
    (tmp_path / "b.txt").write_text("b")
    write_jsonl(tmp_path / "c.jsonl", ["c1", "c2"])
    source = make_corpus(files_source(tmp_path, join_rows_to_characters=6)).sources[0]
    assert list(read_source(source)) == [
        RawDocument("a1\na2\n", f"{tmp_path}/a.jsonl", 1),
        RawDocument("a3\n", f"{tmp_path}/a.jsonl", 3),
        RawDocument("b", f"{tmp_path}/b.txt", None),
        RawDocument("c1\nc2\n", f"{tmp_path}/c.jsonl", 1),
    ]


def test_a_document_never_crosses_sources(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    sources = [
        files_source(write_jsonl(tmp_path / f"{name}.jsonl", [f"{name}{n}" for n in range(40)]), name=name)
        | {"join_rows_to_characters": 15}
        for name in ("x", "y")
    ]
    build_corpus(make_corpus(*sources), tmp_path / "corpus")
    documents = [each for split in ("train", "validation") for each in read_split(tmp_path / "corpus", split)]
    assert {document.source for document in documents} == {"x", "y"}
    assert all(line[0] == document.source for document in documents for line in document.text.splitlines())


def test_limit_of_a_hub_source_counts_joined_documents_hub_not_contacted(
    monkeypatch: pytest.MonkeyPatch, make_corpus: MakeCorpus
) -> None:
    stream = iter([{"text": f"row {number}\n"} for number in range(9)])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    source = make_corpus(HUB | {"join_rows_to_characters": 12}).sources[0]
    items = list(read_source(source))
    assert [item.text for item in items if isinstance(item, RawDocument)] == ["row 0\nrow 1\n", "row 2\nrow 3\n"]
    assert len(items) == 2
    assert next(stream) == {"text": "row 4\n"}


def test_without_the_option_each_row_is_a_document_hub_not_contacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"text": "a"}, {"text": "b"}])
    assert len(list(hub_documents(Hub.model_validate(HUB)))) == 2


def test_memory_does_not_grow_with_the_rows() -> None:
    peaks = []
    for count in (20_000, 100_000):
        many = (RawDocument(json.dumps(number) if number % 2 else "", "f", number) for number in range(1, count))
        tracemalloc.start()
        assert sum(1 for _ in join_rows(many, 5000)) > count // 2000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
