"""Bytes of the corpus, estimated before it is written, against what is then written."""

import json
from collections import namedtuple
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_distill.corpus.build import build_corpus
from moe_distill.corpus.corpus_disk_use import corpus_bytes
from moe_distill.corpus.documents import Document, document_id
from moe_distill.corpus.parquet_writer import open_writer
from moe_distill.corpus.python_docs import topic_documents
from moe_distill.errors import ResourceError
from tests.corpus.conftest import MakeCorpus, files_source

Usage = namedtuple("Usage", "total used free")
WORDS = sorted({word for document in topic_documents() for word in document.text.split()})


def text(random: Random) -> str:
    """A document of a few kilobytes, unlike all others."""
    return " ".join(random.choices(WORDS, k=random.randrange(10, 800)))


def write_txt(folder: Path, random: Random) -> None:
    for number in range(300):
        (folder / f"{number}.txt").write_text(text(random))


def write_jsonl(folder: Path, random: Random) -> None:
    """With another key, which is not written to the corpus."""
    for number in range(3):
        rows = [{"text": text(random), "label": [random.random() for _ in range(30)]} for _ in range(500)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(folder: Path, random: Random) -> None:
    """With another column."""
    rows = [{"text": text(random), "label": random.random()} for _ in range(1500)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", compression="snappy")


WRITE = {"txt": write_txt, "jsonl": write_jsonl, "parquet": write_parquet}


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.parquet"))


@pytest.mark.parametrize("kinds", [["txt"], ["jsonl"], ["parquet"], ["txt", "jsonl", "parquet"]], ids="+".join)
def test_files_are_estimated_within_15_percent(tmp_path: Path, make_corpus: MakeCorpus, kinds: list[str]) -> None:
    (tmp_path / "texts").mkdir()
    for kind in kinds:
        WRITE[kind](tmp_path / "texts", Random(kind))
    for keys in ({}, {"weight": 0.3}, {"max_documents": 200}):
        params = make_corpus(files_source(tmp_path / "texts", **keys), validation_fraction=0.2)
        build_corpus(params, tmp_path / "corpus")
        assert corpus_bytes(params) == pytest.approx(written(tmp_path / "corpus"), rel=0.15), keys


@pytest.mark.parametrize("n_null", [0, 10**6])
def test_a_parquet_file_whose_long_rows_come_first_is_not_taken_for_a_larger_one(
    tmp_path: Path, make_corpus: MakeCorpus, n_null: int
) -> None:
    """Its first row holds two thirds of its bytes, or all. A file of 1 MB was taken for 2 GB of corpus."""
    random = Random(0)
    long = " ".join(random.choices(WORDS, k=100_000))
    short = [" ".join(random.choices(WORDS, k=10)) for _ in range(0 if n_null else 5000)]
    texts = pa.array([long, *short, *[None] * n_null], pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="snappy")
    params = make_corpus(files_source(tmp_path / "a.parquet"))
    with open_writer(tmp_path / "written.parquet") as writer:
        for each in (long, *short):
            writer.append(Document(document_id(each), "texts", each))
    assert corpus_bytes(params) == pytest.approx((tmp_path / "written.parquet").stat().st_size, rel=0.5)


@pytest.mark.slow  # every module of Python is parsed
def test_documentation_of_python_is_estimated_within_15_percent(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    params = make_corpus({"kind": "python_docs", "weight": 1.0}, validation_fraction=0.1)
    build_corpus(params, tmp_path)
    assert corpus_bytes(params) == pytest.approx(written(tmp_path), rel=0.15)


CARD = """---
dataset_info:
  splits:
  - {{name: train, num_bytes: {num_bytes}, num_examples: 1000}}
---
"""


@pytest.mark.parametrize("keys", [{}, {"max_documents": 900}, {"join_rows_to_characters": 9000}], ids=str)
@pytest.mark.parametrize("size", [100, 2500])
def test_a_dataset_of_the_hub_is_estimated_within_15_percent_hub_not_contacted(
    tmp_path: Path, make_corpus: MakeCorpus, keys: dict[str, int], size: int
) -> None:
    """By its first rows; a local folder is the repository. Where it has fewer than is asked for, its card says so."""
    (tmp_path / "hub").mkdir()
    random = Random(size)
    rows = [text(random) for _ in range(size)]
    (tmp_path / "hub/train.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (tmp_path / "hub/README.md").write_text(CARD.format(num_bytes=sum(len(row.encode()) for row in rows)))
    hub: dict[str, object] = {"kind": "hub", "name": "wiki", "repository": str(tmp_path / "hub")}
    hub |= {"revision": "0123abc", "subset": None}
    hub |= {"split": "train", "field": "text", "weight": 1.0, "max_documents": 10**9} | keys
    params = make_corpus(hub, validation_fraction=0.2)
    build_corpus(params, tmp_path / "corpus")
    assert corpus_bytes(params) == pytest.approx(written(tmp_path / "corpus"), rel=0.15)


def test_a_corpus_that_cannot_fit_is_refused_before_it_is_written(
    tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts").mkdir()
    write_txt(tmp_path / "texts", Random(0))
    monkeypatch.setattr("shutil.disk_usage", lambda _path: Usage(1 << 30, (1 << 30) - 1000, 1000))
    with pytest.raises(
        ResourceError, match=r"the corpus will take .* MiB; .* has 0 MiB free; free some, or lower `max_d"
    ):
        build_corpus(make_corpus(files_source(tmp_path / "texts")), tmp_path / "corpus")
    assert list((tmp_path / "corpus").iterdir()) == []
