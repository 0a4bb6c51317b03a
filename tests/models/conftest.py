"""A corpus of help() topics, and models of a few thousand weights."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_distill.config.model_keys import TinyStudent, TinyTeacher, TinyTokenizer
from moe_distill.corpus.documents import SCHEMA
from moe_distill.models.provide import provide_student, provide_teacher

TOKENIZER = TinyTokenizer(vocabulary_size=400, pre_tokenizer="qwen", sample_characters=55_000, sample_seed=1)
TEACHER = TinyTeacher(
    kind="tiny",
    tokenizer=TOKENIZER,
    hidden_size=32,
    layers=2,
    heads=2,
    key_value_heads=1,
    num_experts=4,
    experts_per_token=2,
    expert_size=32,
    max_length=32,
    router_auxiliary_weight=0.01,
    steps=40,
    batch_windows=8,
    learning_rate=1e-2,
)
STUDENT = TinyStudent(
    kind="tiny",
    tokenizer=TinyTokenizer(vocabulary_size=300, pre_tokenizer="smollm", sample_characters=1_000_000, sample_seed=2),
    hidden_size=16,
    layers=3,
    heads=2,
    key_value_heads=1,
    intermediate_size=32,
    max_length=48,
)
# Every kind of text the tokenizers treat differently, and text that spells special tokens.
AWKWARD = "I'll 12345 naïve 日本 \U0001f9ee\r\n\tx = _a.b(c)   # <|endoftext|> <think>hm</think>\n\n\n  end "


def write_documents(path: Path, texts: Iterable[str]) -> Path:
    rows = [(hashlib.sha256(text.encode()).hexdigest(), "test", text) for text in texts]
    columns = [list(column) for column in zip(*rows, strict=True)]
    pq.write_table(pa.table(columns, schema=SCHEMA), path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="package")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.parquet (about 90 KB of text) and validation.parquet (about 5 KB)."""
    folder = tmp_path_factory.mktemp("corpus")
    names = sorted(topics)
    write_documents(folder / "train.parquet", [AWKWARD, *(topics[name] for name in names[1::2])][:20])
    write_documents(folder / "validation.parquet", [AWKWARD, *(topics[name][:500] for name in names[::8])][:10])
    return folder


@pytest.fixture(scope="package")
def teacher(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A tiny teacher's folder and its metrics."""
    folder = tmp_path_factory.mktemp("teacher")
    return folder, provide_teacher(TEACHER, 3, corpus, folder)


@pytest.fixture(scope="package")
def student(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    provide_student(STUDENT, 3, corpus, folder)
    return folder
