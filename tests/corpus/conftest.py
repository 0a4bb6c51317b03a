"""Sources made of small files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from moe_distill.config.corpus_keys import Corpus
from moe_distill.corpus.documents import Document, read_documents

MakeCorpus = Callable[..., Corpus]


@pytest.fixture
def make_corpus() -> MakeCorpus:
    """Corpus parameters from sources given as keys of a profile."""

    def make(*sources: dict[str, object], validation_fraction: float = 0.5) -> Corpus:
        return Corpus.model_validate({"sources": sources, "validation_fraction": validation_fraction})

    return make


def files_source(*paths: Path | str, name: str = "texts", **keys: object) -> dict[str, object]:
    defaults: dict[str, object] = {"kind": "files", "field": "text", "weight": 1.0, "max_documents": None}
    return defaults | {"name": name, "paths": [str(path) for path in paths]} | keys


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def read_split(output: Path, split: str) -> list[Document]:
    return [document for batch in read_documents(output / f"{split}.parquet") for document in batch]


def read_texts(output: Path) -> set[str]:
    """The texts of both splits."""
    return {document.text for split in ("train", "validation") for document in read_split(output, split)}
