"""A limit on the windows takes documents by their hash fraction: evenly over the sources, whatever their order."""

import hashlib
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from moe_distill.alignment import corpus_windows
from moe_distill.alignment import limited_fraction as limit
from moe_distill.alignment.limited_fraction import limited_fraction
from moe_distill.alignment.teacher_windows import teacher_windows
from moe_distill.alignment.tokenize import tokenize_split
from moe_distill.alignment.window_limits import Cut, WindowLimits
from moe_distill.corpus.documents import Document, hash_fraction, read_documents
from moe_distill.corpus.parquet_writer import open_writer
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from tests.chain import Chain, tokenize

from .toy import TEXT, byte_level, encoder

TEACHER = encoder(byte_level(600), "teacher")
LIMITS = WindowLimits(16, 16, 1000)
SOURCES = {"first": 150, "second": 300, "third": 50}  # documents


def write(path: Path, sources: dict[str, int], texts: list[str]) -> list[Document]:
    """Documents of several sources, one source after the other; some have no window."""
    random, documents = Random(0), []
    with open_writer(path) as writer:
        for name, count in sources.items():
            for number in range(count):
                start = random.randrange(100)
                text = f"{name} {number} {random.choice(texts)[start : start + random.randrange(20, 400)]}"
                documents.append(Document(hashlib.sha256(text.encode()).hexdigest(), name, text))
                writer.append(documents[-1])
    return documents


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "train.parquet"
    write(path, SOURCES, [TEXT])
    return path


@pytest.fixture(scope="module")
def windows_of(corpus: Path) -> list[tuple[float, str, int]]:
    """Hash fraction, source and windows of each document, ascending; a window here never ends inside a character."""
    found = []
    for document in (document for group in read_documents(corpus) for document in group):
        tokens = len(TEACHER.tokenizer.encode(document.text, add_special_tokens=False).ids)
        found.append((hash_fraction(document.document_id, "distil"), document.source, math.ceil(tokens / 15)))
    return sorted(found)


@pytest.mark.parametrize("max_windows", [1, 2, 50, 1000, 2000])
@pytest.mark.parametrize("first_share", [1 / 64, 1.0])
def test_the_lowest_hash_fractions_that_have_windows_enough_are_kept(
    corpus: Path,
    windows_of: list[tuple[float, str, int]],
    max_windows: int,
    first_share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limit, "FIRST_SHARE", first_share)
    fraction, cut = limited_fraction(corpus, 1.0, max_windows, TEACHER, LIMITS)
    kept = [(hashed, count) for hashed, _, count in windows_of if hashed < fraction]
    before, (last_hashed, last_count) = sum(count for _, count in kept[:-1]), kept[-1]
    assert before < max_windows <= before + last_count
    assert cut == Cut(last_hashed, max_windows - before)


def test_a_limit_that_is_not_reached_changes_nothing(corpus: Path, windows_of: list[tuple[float, str, int]]) -> None:
    total = sum(count for _, _, count in windows_of)
    assert limited_fraction(corpus, 1.0, total + 1, TEACHER, LIMITS) == (1.0, None)
    assert limited_fraction(corpus, 0.25, total, TEACHER, LIMITS) == (0.25, None)
    fraction, cut = limited_fraction(corpus, 1.0, total, TEACHER, LIMITS)
    assert windows_of[-1][0] < fraction < 1.0
    assert cut == Cut(windows_of[-1][0], windows_of[-1][2])


def test_every_source_keeps_its_share(corpus: Path, windows_of: list[tuple[float, str, int]]) -> None:
    fraction, _ = limited_fraction(corpus, 1.0, sum(count for _, _, count in windows_of) // 2, TEACHER, LIMITS)
    kept = Counter(source for hashed, source, _ in windows_of if hashed < fraction)
    for name, count in SOURCES.items():
        assert abs(kept[name] - count / 2) < 4 * math.sqrt(count) / 2, "four standard deviations of a fair draw"


def test_no_more_than_needed_is_tokenized(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def counted(batch: list[Document], *rest: Any) -> object:
        looked_at.append(len(batch))
        return teacher_windows(batch, *rest)

    monkeypatch.setattr(limit, "teacher_windows", counted)
    fraction, _ = limited_fraction(corpus, 1.0, 300, TEACHER, LIMITS)
    assert sum(looked_at) < 2.5 * fraction * sum(SOURCES.values()) + 20


def test_windows_of_the_stage_are_of_all_sources_and_say_so(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, fractions = chain.copy(tmp_path / "chain"), []

    def recorded(*arguments: Any) -> tuple[float, Cut | None]:
        found = limited_fraction(*arguments)
        fractions.append(found[0])
        return found

    monkeypatch.setattr(corpus_windows, "limited_fraction", recorded)
    for split in ("train", "validation"):
        documents = write(copied.folder / f"data/corpus/{split}.parquet", SOURCES, [TEXT])
    tokenize(copied.folder, copied.params)
    for split, most, fraction in zip(("train", "validation"), (60, 12), fractions, strict=True):
        teacher = WindowStore(copied.folder / "data/windows/teacher" / split, TEACHER_WINDOWS)
        student = WindowStore(copied.folder / "data/windows/student" / split, STUDENT_WINDOWS)
        assert len(teacher) == most
        taken = [each.source for each in documents if hash_fraction(each.document_id, "distil") < fraction]
        numbers = [number for column in student.reader.columns("documents") for number in column.tolist()]
        names, sources = student.sources()
        assert [names[source] for source in sources.tolist()] == [taken[number] for number in numbers]
        assert split == "validation" or len(set(sources.tolist())) > 1


def test_a_higher_limit_only_adds_windows_where_one_source_has_long_documents(tmp_path: Path) -> None:
    with open_writer(tmp_path / "train.parquet") as writer:
        for name, count, length in (("books", 6, 4000), ("pages", 60, 60)):
            for number in range(count):
                text = f"{name} {number} {TEXT * 10}"[:length]
                writer.append(Document(hashlib.sha256(text.encode()).hexdigest(), name, text))
    found = []
    for max_windows in (40, 100, 300, 500):
        documents = [[each] for group in read_documents(tmp_path / "train.parquet") for each in group]
        fraction, cut = limited_fraction(tmp_path / "train.parquet", 1.0, max_windows, TEACHER, LIMITS)
        below = [group for group in documents if hash_fraction(group[0].document_id, "distil") < fraction]
        folder, limits = tmp_path / str(max_windows), replace(LIMITS, cut=cut)
        tokenize_split(below, TEACHER, TEACHER, limits, folder / "t", folder / "s", "t", "s", ("T", "S"))
        names = [group[0].document_id for group in below]
        store = WindowStore(folder / "t", TEACHER_WINDOWS)
        columns = (torch.cat(list(store.reader.columns(name))) for name in ("documents", "byte_starts"))
        numbers, starts = (column.tolist() for column in columns)
        found.append({(names[number], start) for number, start in zip(numbers, starts, strict=True)})
        assert len(store) == max_windows
        assert {name for name, _ in found[-1]} == set(names), "each document below the fraction has windows"
    assert found[0] < found[1] < found[2] < found[3]
