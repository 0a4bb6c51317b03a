"""Unusable text through the real corpus and tokenize stages, each a process of its own as DVC starts it."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_distill.config.profile import Profile
from moe_distill.corpus.documents import read_documents
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, WindowStore
from tests.chain import Chain, topic_texts
from tests.params import ROOT, make_workspace

MEMORY = 2 * 2**30
# What the kernel tells of an ended child (ru_maxrss) is never less than what its parent held, here pytest with all its
# tests; so a stage writes down its own peak.
RUN_STAGE = """
import atexit, pathlib, runpy, sys
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: pathlib.Path("peak").write_text(status.read_text() if status.exists() else ""))
sys.path.insert(0, "")
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""
LONG = 20 * 10**6


@dataclass(frozen=True)
class Done:
    code: int
    said: str
    peak_bytes: int | None  # resident; None: this system does not tell


class Place(TypedDict):
    file: str
    line: int


class Skipped(TypedDict):
    count: int
    examples: list[Place]


@dataclass(frozen=True)
class Workspace:
    """params.yaml, a profile whose corpus is `texts/`, and the models of a small pair."""

    folder: Path

    def put(self, name: str, content: bytes) -> None:
        (self.folder / "texts").mkdir(exist_ok=True)
        (self.folder / "texts" / name).write_bytes(content)

    def put_lines(self, name: str, values: Sequence[object]) -> None:
        self.put(name, "".join(json.dumps(value) + "\n" for value in values).encode())

    def run(self, stage: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-c", RUN_STAGE, f"stages.{stage}"],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "DVC_ROOT": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        status = (self.folder / "peak").read_text().splitlines()
        peaks = [1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:")]
        return Done(done.returncode, done.stdout, peaks[0] if peaks else None)

    def succeed(self, stage: str) -> Done:
        done = self.run(stage)
        assert done.code == 0, done.said
        assert done.peak_bytes is None or done.peak_bytes <= MEMORY
        return done

    def refuse(self, stage: str, code: int = 3) -> str:
        """The one line that a stage says when it refuses its input."""
        done = self.run(stage)
        assert done.code == code, done.said
        assert "Traceback" not in done.said
        errors = [line for line in done.said.splitlines() if line.startswith(f"{stage}: error: ")]
        assert len(errors) == 1
        assert done.said.splitlines()[-1] == errors[0]
        return errors[0]

    def skipped(self) -> dict[str, Skipped]:
        """Of the source `texts`, by reason."""
        skipped: dict[str, dict[str, Skipped]] = json.loads((self.folder / "data/corpus/skipped.json").read_text())
        return skipped.get("texts", {})

    def texts(self) -> list[str]:
        files = [self.folder / f"data/corpus/{split}.parquet" for split in ("train", "validation")]
        return [document.text for file in files for batch in read_documents(file) for document in batch]

    def window_bytes(self) -> tuple[int, int]:
        """Bytes in the windows of both splits, teacher's and student's."""
        folder = self.folder / "data/windows"
        teacher, student = (
            sum(int(WindowStore(folder / side / split, kind).byte_counts.sum()) for split in ("train", "validation"))
            for side, kind in (("teacher", TEACHER_WINDOWS), ("student", STUDENT_WINDOWS))
        )
        return teacher, student


@pytest.fixture
def workspace(tmp_path: Path, chain: Chain) -> Workspace:
    folder = tmp_path / "workspace"
    shutil.copytree(chain.folder / "models", folder / "models")
    source = {
        "kind": "files",
        "name": "texts",
        "paths": ["texts"],
        "field": "text",
        "weight": 1.0,
        "max_documents": None,
    }
    profile = chain.params.profile.model_dump(mode="json")
    profile["corpus"] = {"sources": [source], "validation_fraction": 0.2}
    profile["windows"] |= {"max_train_windows": None, "max_validation_windows": None, "shard_tokens": 100_000}
    make_workspace(folder, Profile.model_validate(profile))
    return Workspace(folder)


GOOD = [{"text": text} for text in topic_texts(20)]


def test_unusable_documents_are_counted_by_file_and_line_and_the_rest_is_processed(workspace: Workspace) -> None:
    workspace.put_lines("good.jsonl", GOOD)
    workspace.put("latin.txt", b"first\nsecond\ncaf\xe9")
    workspace.put("nul.txt", b"one\ntwo\0")
    workspace.put("empty.txt", b"")
    workspace.put("white.txt", b" \n\t \xe3\x80\x80\r\n")
    workspace.put("crlf.txt", b"a line\r\nanother\r\n" * 20)
    workspace.put(
        "bad.jsonl",
        b'{"text": "a good line"}\n'
        b"not json\n"
        b'{"text": "cut\n'
        b'{"other": "no such field"}\n'
        b'{"text": 5}\n'
        b'{"text": "a \\ud800 surrogate"}\n'
        b'{"text": "bytes \xff"}\n'
        b"\n"
        b'["text"]\n'
        b'{"text": "the last line"}',
    )
    corpus = workspace.succeed("corpus")
    lines = {
        reason: [(each["file"], each["line"]) for each in found["examples"]]
        for reason, found in workspace.skipped().items()
    }
    assert lines == {
        "invalid UTF-8": [("texts/bad.jsonl", 7), ("texts/latin.txt", 3)],
        "NUL": [("texts/nul.txt", 2)],
        "empty": [("texts/bad.jsonl", 8), ("texts/empty.txt", 1), ("texts/white.txt", 1)],
        "not a JSON object": [("texts/bad.jsonl", 2), ("texts/bad.jsonl", 3), ("texts/bad.jsonl", 9)],
        "missing field": [("texts/bad.jsonl", 4)],
        "not text": [("texts/bad.jsonl", 5)],
        "lone surrogate": [("texts/bad.jsonl", 6)],
    }
    assert "skipped texts/bad.jsonl:2: not a JSON object" in corpus.said
    assert "12 skipped" in corpus.said
    assert json.loads((workspace.folder / "metrics/corpus.json").read_text())["skipped_documents"] == 12
    kept = ["a line\r\nanother\r\n" * 20, "a good line", "the last line", *(each["text"] for each in GOOD)]
    assert Counter(workspace.texts()) == Counter(kept)
    workspace.succeed("tokenize")
    assert set(workspace.window_bytes()) == {sum(len(text.encode()) for text in kept)}


def long_text() -> str:
    return "".join(Random(0).choices("etaoinshrdlu", k=LONG))


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl"])
def test_a_document_of_20_mb_without_a_space_is_divided(workspace: Workspace, name: str) -> None:
    text = long_text()
    workspace.put_lines("good.jsonl", GOOD)
    workspace.put(name, text.encode() if name.endswith("txt") else json.dumps({"text": text}).encode())
    assert "1 divided" in workspace.succeed("corpus").said
    pieces = [piece for piece in workspace.texts() if " " not in piece]
    assert sum(map(len, pieces)) == LONG
    assert max(map(len, pieces)) <= 2**20


@pytest.mark.slow  # 20 MB through two tokenizers
def test_a_document_of_20_mb_without_a_space_is_tokenized(workspace: Workspace) -> None:
    workspace.put_lines("good.jsonl", GOOD)
    workspace.put("long.txt", long_text().encode())
    workspace.succeed("corpus")
    workspace.succeed("tokenize")
    assert set(workspace.window_bytes()) == {LONG + sum(len(each["text"].encode()) for each in GOOD)}


def test_a_million_empty_lines(workspace: Workspace) -> None:
    workspace.put_lines("good.jsonl", GOOD)
    workspace.put("empty.jsonl", b"\n" * 10**6)
    workspace.put("gap.txt", b"before" + b"\n" * 10**6 + b"after")
    done = workspace.succeed("corpus")
    assert len(done.said.splitlines()) < 10
    assert workspace.skipped()["empty"]["count"] == 10**6
    workspace.succeed("tokenize")
    assert set(workspace.window_bytes()) == {10**6 + 11 + sum(len(each["text"].encode()) for each in GOOD)}


def test_a_wrong_column_and_damaged_files_are_refused_by_name(workspace: Workspace) -> None:
    workspace.put_lines("good.jsonl", GOOD)
    parquet = workspace.folder / "texts/p.parquet"
    pq.write_table(pa.table({"content": ["a", "b"]}), parquet)
    said = workspace.refuse("corpus")
    assert "texts/p.parquet has no column `text`" in said
    assert "content" in said
    pq.write_table(pa.table({"text": [each["text"] for each in GOOD]}), parquet)
    workspace.succeed("corpus")
    os.truncate(parquet, parquet.stat().st_size // 2)
    before = sorted(workspace.folder.rglob("data/**/*"))
    assert "texts/p.parquet cannot be read: it is damaged" in workspace.refuse("corpus")
    assert sorted(workspace.folder.rglob("data/**/*")) == before  # nothing half-written


def test_an_empty_corpus_is_refused(workspace: Workspace) -> None:
    workspace.put("empty.txt", b"")
    assert "the training split is empty" in workspace.refuse("corpus")
    (workspace.folder / "texts/empty.txt").unlink()
    assert "`texts` matches no .txt" in workspace.refuse("corpus")


def test_a_corpus_too_small_for_a_step_is_refused_before_the_teacher_runs(workspace: Workspace) -> None:
    workspace.put_lines("few.jsonl", [{"text": f"document {number}"} for number in range(9)])
    workspace.succeed("corpus")
    said = workspace.refuse("tokenize")
    assert not (workspace.folder / "data/windows").exists()
    assert "the training split has " in said
    assert "one batch has 8" in said
    assert "`train.batch_windows`" in said


def test_a_damaged_corpus_is_refused_by_tokenize(workspace: Workspace) -> None:
    workspace.put_lines("good.jsonl", GOOD)
    workspace.succeed("corpus")
    path = workspace.folder / "data/corpus/train.parquet"
    os.truncate(path, path.stat().st_size // 2)
    said = workspace.refuse("tokenize")
    assert "data/corpus/train.parquet is not a readable parquet file" in said
    assert "run: moe-distill recover --shard data/corpus/train.parquet; then: dvc pull, or dvc repro" in said
    assert not (workspace.folder / "data/windows").exists()
