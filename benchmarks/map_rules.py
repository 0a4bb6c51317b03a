"""Which rule of the vocabulary map names the student's next token more often?

A teacher token that is no token of the student goes to the first token of the student's own segmentation of its bytes,
or to the longest student token that is a prefix of them. At each aligned position of a text the teacher's next token is
mapped by both rules and compared with the student's next token. A row is overhanging where the student's next token is
longer than the teacher's.

    python benchmarks/map_rules.py TEACHER_TOKENIZER.json STUDENT_TOKENIZER.json TEXT...
"""

import hashlib
import time
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from moe_distill.alignment.encode import Encoder, make_encoder
from moe_distill.alignment.tokenize import tokenize_split
from moe_distill.alignment.vocabulary_map import UNMAPPED, vocabulary_map
from moe_distill.alignment.window_limits import WindowLimits
from moe_distill.corpus.documents import Document
from moe_distill.shards.window_store import STUDENT_WINDOWS, TEACHER_WINDOWS, NextToken, WindowStore

DOCUMENT_CHARACTERS = 20_000
LIMITS = WindowLimits(teacher_max_length=384, student_max_length=384, shard_tokens=1 << 20)


def main(teacher_file: Path, student_file: Path, texts: list[Path]) -> None:
    teacher = make_encoder(Tokenizer.from_file(str(teacher_file)), 0, "teacher")
    student = make_encoder(Tokenizer.from_file(str(student_file)), 0, "student")
    start = time.perf_counter()
    own = vocabulary_map(teacher, student, len(teacher.token_bytes.table))
    seconds = time.perf_counter() - start
    prefix = longest_prefix_map(teacher, student)
    print(f"map in {seconds:.2f} s; the rules differ for {(own != prefix).sum()} of {len(own)} teacher ids")
    print("| text | rows | aligned rows | own segmentation | longest prefix |")
    print("|---|---|---|---|---|")
    for path in texts:
        teacher_next, student_next, overhanging = aligned_next_tokens(path, teacher, student)
        differ = own[teacher_next] != prefix[teacher_next]
        for name, rows in (
            ("all", np.ones_like(differ)),
            ("rules differ", differ),
            ("overhanging", overhanging),
            ("rules differ, not overhanging", differ & ~overhanging),
        ):
            agreement = [(rule[teacher_next] == student_next)[rows].mean() for rule in (own, prefix)]
            share = f"{rows.sum()} ({rows.mean():.4f})"
            print(f"| {path.name} | {name} | {share} | {agreement[0]:.4f} | {agreement[1]:.4f} |", flush=True)


def longest_prefix_map(teacher: Encoder, student: Encoder) -> NDArray[np.int32]:
    """int32 [teacher ids]: the longest student token that is a prefix of each teacher token, itself included; or -1."""
    by_bytes = student.token_bytes.by_bytes()
    found = np.full(len(teacher.token_bytes.table), UNMAPPED, dtype=np.int32)
    for number, token in enumerate(teacher.token_bytes.table):
        prefixes = (token[:length] for length in range(len(token or b""), 0, -1) if token)
        found[number] = next((by_bytes[part] for part in prefixes if part in by_bytes), UNMAPPED)
    return found


def aligned_next_tokens(
    path: Path, teacher: Encoder, student: Encoder
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """The next token of teacher and student at each aligned position, and whether the row is overhanging, [rows]."""
    text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8"))
    parts = [text[start : start + DOCUMENT_CHARACTERS] for start in range(0, len(text), DOCUMENT_CHARACTERS)]
    documents = [Document(hashlib.sha256(part.encode()).hexdigest(), path.name, part) for part in parts]
    with TemporaryDirectory() as folder:
        outputs = Path(folder) / "teacher", Path(folder) / "student"
        tokenize_split([documents], teacher, student, LIMITS, *outputs, "t", "s", ("t", "s"))
        teacher_ids = column(outputs[0], TEACHER_WINDOWS, "token_ids")
        names = "token_ids", "teacher_rows", "next_tokens"
        student_ids, rows, relation = (column(outputs[1], STUDENT_WINDOWS, name) for name in names)
    aligned = rows >= 0
    return teacher_ids[rows[aligned]], student_ids[aligned], relation[aligned] == NextToken.LONGER


def column(folder: Path, store_format: str, name: str) -> NDArray[np.int64]:
    values: NDArray[np.int64] = torch.cat(list(WindowStore(folder, store_format).reader.columns(name))).long().numpy()
    return values


if __name__ == "__main__":
    typer.run(main)
