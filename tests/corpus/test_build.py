import json
import tracemalloc
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from moe_distill.config.corpus_keys import Source
from moe_distill.corpus import build
from moe_distill.corpus.build import METRICS, build_corpus
from moe_distill.corpus.documents import document_id, is_kept, is_validation
from moe_distill.corpus.raw import RawDocument
from moe_distill.errors import DataError
from moe_distill.utils.files import Json, canonical_json

from .conftest import MakeCorpus, files_source, read_split, read_texts, write_jsonl

PYTHON_DOCS: dict[str, object] = {"kind": "python_docs", "weight": 1.0}
TEXTS = [f"document {number}" for number in range(200)]


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_python_docs_suffice_to_train_and_to_validate(
    tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(PYTHON_DOCS, validation_fraction=0.1)
    metrics = build_corpus(corpus, tmp_path / "first")
    assert metrics["validation_bytes"] >= 100_000
    assert metrics["validation_documents"] >= 60
    assert 1_500_000 < metrics["train_bytes"] < 4_000_000
    assert metrics["train_documents"] >= 600
    assert metrics["skipped_documents"] == 0
    monkeypatch.chdir(tmp_path)
    assert build_corpus(corpus, Path("second")) == metrics
    assert outputs(tmp_path / "first") == outputs(tmp_path / "second")


def test_r29_several_sources_are_mixed_and_counted_each(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    """Against the slow obvious version; the sources overlap."""
    given = {"first": TEXTS[:120], "second": TEXTS[100:]}
    weights = {"first": 0.5, "second": 1.0}
    sources = [
        files_source(write_jsonl(tmp_path / f"{name}.jsonl", [*texts, ""]), name=name, weight=weights[name])
        for name, texts in given.items()
    ]
    metrics = build_corpus(make_corpus(*sources, validation_fraction=0.3), tmp_path / "corpus")

    expected: dict[str, list[tuple[str, str, str]]] = {"train": [], "validation": []}
    duplicates = {"first": 0, "second": 0}
    for name, texts in given.items():
        for text in texts:
            key = document_id(text)
            row = (key, name, text)
            split = "validation" if is_validation(key, 0.3) else "train"
            if split == "train" and not is_kept(key, weights[name]):
                continue
            if any(text == other for _, _, other in expected["train"] + expected["validation"]):
                duplicates[name] += 1
            else:
                expected[split].append(row)

    for split, rows in expected.items():
        found = read_split(tmp_path / "corpus", split)
        assert [(document.document_id, document.source, document.text) for document in found] == rows
    for name in given:
        for split, rows in expected.items():
            mine = [text for _, source, text in rows if source == name]
            assert metrics[f"{name}_{split}_documents"] == len(mine) > 0
            assert metrics[f"{name}_{split}_bytes"] == sum(len(text.encode()) for text in mine)
        assert metrics[f"{name}_skipped_documents"] == 1
        assert metrics[f"{name}_duplicate_documents"] == duplicates[name]
    assert duplicates["second"] > 0
    for metric in METRICS:
        assert metrics[metric] == metrics[f"first_{metric}"] + metrics[f"second_{metric}"]
    assert len(metrics) == 3 * len(METRICS)


def test_r29_text_left_out_by_one_weight_comes_in_by_another(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    sources = files_source(path, name="none", weight=0.0), files_source(path, name="all", weight=1.0)
    metrics = build_corpus(make_corpus(*sources), tmp_path / "corpus")
    assert metrics["none_train_documents"] == 0
    assert metrics["none_validation_documents"] == metrics["all_duplicate_documents"] > 0
    assert read_texts(tmp_path / "corpus") == set(TEXTS)


def test_weight_leaves_validation_as_it_is(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    for weight in (0.3, 1.0):
        build_corpus(make_corpus(files_source(path, weight=weight)), tmp_path / str(weight))
    low, high = tmp_path / "0.3", tmp_path / "1.0"
    assert read_split(low, "validation") == read_split(high, "validation")
    kept = {document.text for document in read_split(low, "train")}
    assert kept == {document.text for document in read_split(high, "train") if is_kept(document.document_id, 0.3)}
    assert 0 < len(kept) < len(read_split(high, "train"))


def test_split_depends_on_the_document_alone(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    write_jsonl(tmp_path / "forward.jsonl", TEXTS)
    write_jsonl(tmp_path / "backward.jsonl", [*reversed(TEXTS), "one more"])
    held_out = []
    for order in ("forward", "backward"):
        build_corpus(make_corpus(files_source(tmp_path / f"{order}.jsonl")), tmp_path / order)
        held_out.append({document.text for document in read_split(tmp_path / order, "validation")} - {"one more"})
    assert held_out[0] == held_out[1]


def test_text_is_in_normal_form_c_before_it_is_hashed(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    decomposed = "e\u0301 \u212b \uac00\u11a8 \ufb01\r\n"  # NFKC would also take the last, a ligature, apart
    path = write_jsonl(tmp_path / "a.jsonl", [*TEXTS, decomposed, unicodedata.normalize("NFC", decomposed)])
    metrics = build_corpus(make_corpus(files_source(path)), tmp_path / "corpus")
    documents = [document for split in ("train", "validation") for document in read_split(tmp_path / "corpus", split)]
    assert documents
    assert all(document.document_id == document_id(document.text) for document in documents)
    assert "\u00e9 \u00c5 \uac01 \ufb01\r\n" in read_texts(tmp_path / "corpus")
    assert decomposed not in read_texts(tmp_path / "corpus")
    assert metrics["duplicate_documents"] == 1
    total = metrics["train_bytes"] + metrics["validation_bytes"]
    assert total == sum(len(document.text.encode()) for document in documents)


def test_duplicates_are_dropped_within_and_across_sources(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*TEXTS, *TEXTS[:10]])
    (tmp_path / "b.txt").write_text(TEXTS[0])
    sources = files_source(tmp_path / "a.jsonl", name="a"), files_source(tmp_path / "b.txt", name="b")
    metrics = build_corpus(make_corpus(*sources), tmp_path / "corpus")
    assert metrics["a_duplicate_documents"] == 10
    assert metrics["b_duplicate_documents"] == 1
    assert metrics["train_documents"] + metrics["validation_documents"] == len(TEXTS)


def test_bad_documents_are_counted_reported_and_skipped(
    tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("texts")
    folder.mkdir()
    (folder / "empty.txt").write_bytes(b"")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "nul.txt").write_bytes(b"a\r\nb\0c")
    write_jsonl(folder / "s.jsonl", ["\ud800", *TEXTS, "\u3000"])
    metrics = build_corpus(make_corpus(files_source("texts")), Path("corpus"))
    assert read_texts(Path("corpus")) == set(TEXTS)
    assert metrics["skipped_documents"] == metrics["texts_skipped_documents"] == 5
    written = (tmp_path / "corpus" / "skipped.json").read_text(encoding="utf-8")
    skipped: dict[str, Json] = {
        "texts": {
            "NUL": {"count": 1, "examples": [{"file": "texts/nul.txt", "line": 2}]},
            "empty": {
                "count": 2,
                "examples": [{"file": "texts/empty.txt", "line": 1}, {"file": "texts/s.jsonl", "line": 202}],
            },
            "invalid UTF-8": {"count": 1, "examples": [{"file": "texts/latin.txt", "line": 1}]},
            "lone surrogate": {"count": 1, "examples": [{"file": "texts/s.jsonl", "line": 1}]},
        }
    }
    assert json.loads(written) == skipped
    assert written == canonical_json(skipped)
    assert str(tmp_path) not in written
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "corpus: texts: skipped texts/empty.txt:1: empty"
    assert len(lines) == 4  # three examples and the source's figures
    assert "5 skipped" in lines[-1]


def test_rerun_gives_the_same_bytes_and_no_other_files(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(files_source(write_jsonl(tmp_path / "a.jsonl", ["", *TEXTS])))
    first = build_corpus(corpus, tmp_path / "corpus")
    before = outputs(tmp_path / "corpus")
    assert build_corpus(corpus, tmp_path / "corpus") == first
    assert outputs(tmp_path / "corpus") == before
    assert set(before) == {"train.parquet", "validation.parquet", "skipped.json"}


def test_two_sources_of_one_name_are_refused(make_corpus: MakeCorpus) -> None:
    for sources, name in (
        ((files_source("a", name="mine"), files_source("b", name="mine")), "mine"),
        ((files_source("a", name="python_docs"), PYTHON_DOCS), "python_docs"),
    ):
        with pytest.raises(ValueError, match=rf"2 sources are named `{name}`.*`name`"):
            make_corpus(*sources)


@pytest.mark.parametrize(("fraction", "split"), [(1e-9, "validation"), (1 - 1e-9, "training")])
def test_empty_split_names_the_key_and_publishes_no_corpus(
    tmp_path: Path, make_corpus: MakeCorpus, fraction: float, split: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*TEXTS, ""])
    match = rf"the {split} split is empty.*skipped_documents 1.*corpus\.validation_fraction"
    with pytest.raises(DataError, match=match):
        build_corpus(make_corpus(files_source(path), validation_fraction=fraction), tmp_path / "corpus")
    assert set(outputs(tmp_path / "corpus")) == {"skipped.json"}


def test_weight_0_everywhere_is_an_empty_training_split(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(DataError, match=r"the training split is empty.*`weight`"):
        build_corpus(make_corpus(files_source(path, weight=0.0)), tmp_path / "corpus")


def test_unusable_source_leaves_an_earlier_corpus_alone(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    build_corpus(make_corpus(files_source(path)), tmp_path / "corpus")
    before = outputs(tmp_path / "corpus")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut")
    sources = files_source(path, name="good"), files_source(tmp_path / "b.parquet", name="bad")
    with pytest.raises(DataError, match=r"b\.parquet"):
        build_corpus(make_corpus(*sources, validation_fraction=0.1), tmp_path / "corpus")
    assert outputs(tmp_path / "corpus") == before


def test_memory_is_flat_in_the_size_of_the_corpus(
    tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_estimated = write_jsonl(tmp_path / "a.jsonl", TEXTS)

    def peak_bytes(documents: int) -> int:
        arrow = 0

        def generate(_: Source) -> Iterator[RawDocument]:
            nonlocal arrow
            for number in range(documents):
                arrow = max(arrow, pa.total_allocated_bytes())
                yield RawDocument(f"{number:08} " * 6000, "generated", number + 1)

        monkeypatch.setattr(build, "read_source", generate)
        monkeypatch.setattr(build, "corpus_bytes", lambda _: 0)  # there are no files
        tracemalloc.start()
        build_corpus(make_corpus(files_source(only_estimated)), tmp_path / "corpus")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak + arrow

    assert peak_bytes(documents=2400) < peak_bytes(documents=600) + 4_000_000  # 130 MB of text against 32 MB
