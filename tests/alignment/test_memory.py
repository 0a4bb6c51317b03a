"""Memory of the `tokenize` step stays flat as the corpus grows."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_distill.alignment.tokenize import tokenize_split
from moe_distill.alignment.window_limits import WindowLimits
from moe_distill.corpus.documents import Document

from .toy import TEXT, byte_level, document, encoder


def documents(count: int) -> Iterator[list[Document]]:
    """Documents that are made when they are asked for, all different."""
    for number in range(count):
        yield [document(f"{number} {TEXT[number % 50 :]}")]


def test_peak_memory_of_a_corpus_eight_times_larger_hardly_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_distill.alignment.tokenize.BATCH_BYTES", 1 << 14)
    teacher, student = encoder(byte_level(600), "teacher"), encoder(byte_level(320, digits=True), "student")
    limits = WindowLimits(64, 48, 12_000)
    peaks: list[int] = []
    tokens: list[int] = []
    for count in (50, 50, 400):  # the first warms caches up
        outputs = tmp_path / f"{len(peaks)} teacher", tmp_path / f"{len(peaks)} student"
        tracemalloc.start()
        split_counts = tokenize_split(documents(count), teacher, student, limits, *outputs, "t", "s", ("t", "s"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        tokens.append(split_counts.student_tokens)
    assert tokens[2] > 7.9 * tokens[1]
    assert peaks[2] < 1.6 * peaks[1]  # not 1: safetensors keeps about 10 kB a file, whatever the file's size
