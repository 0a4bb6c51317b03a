"""What do windows, alignment and writing cost on top of the two tokenizers alone?

Each round encodes the same documents with both tokenizers (`encode_batch_fast`, all cores, one call each), then runs
the whole `tokenize` step on them: encoding, checks, alignment, window files; the vocabulary map, which does not grow
with the text, aside. The last line of each text holds the medians and their ratio.

    python benchmarks/tokenize_cost.py TEACHER_TOKENIZER.json STUDENT_TOKENIZER.json TEXT...
"""

import hashlib
import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import typer
from tokenizers import Tokenizer

from moe_distill.alignment.encode import Encoder, make_encoder
from moe_distill.alignment.tokenize import tokenize_split
from moe_distill.alignment.window_limits import WindowLimits
from moe_distill.corpus.documents import Document

DOCUMENT_CHARACTERS = 20_000
LIMITS = WindowLimits(teacher_max_length=384, student_max_length=384, shard_tokens=1 << 20, max_windows=None)


def main(teacher_file: Path, student_file: Path, texts: list[Path], rounds: int = 7) -> None:
    teacher = make_encoder(Tokenizer.from_file(str(teacher_file)), 0, "teacher")
    student = make_encoder(Tokenizer.from_file(str(student_file)), 0, "student")
    print(f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    print("text round tokenizers_seconds step_seconds ratio")
    for path in texts:
        documents = read(path)
        alone, step = [], []
        for number in range(rounds):
            alone.append(seconds(both_tokenizers, documents, teacher, student))
            step.append(seconds(whole_step, documents, teacher, student))
            print(path.name, number, f"{alone[-1]:.3f} {step[-1]:.3f} {step[-1] / alone[-1]:.3f}", flush=True)
        print(path.name, "median", f"{median(alone):.3f} {median(step):.3f} {median(step) / median(alone):.3f}")


def read(path: Path) -> list[Document]:
    text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8"))
    parts = [text[start : start + DOCUMENT_CHARACTERS] for start in range(0, len(text), DOCUMENT_CHARACTERS)]
    return [Document(hashlib.sha256(part.encode()).hexdigest(), path.name, part) for part in parts]


def both_tokenizers(documents: list[Document], teacher: Encoder, student: Encoder) -> None:
    texts = [document.text for document in documents]
    for encoder in (teacher, student):
        encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def whole_step(documents: list[Document], teacher: Encoder, student: Encoder) -> None:
    with TemporaryDirectory() as folder:
        outputs = Path(folder) / "teacher", Path(folder) / "student"
        tokenize_split([documents], teacher, student, LIMITS, *outputs, "t", "s", ("t", "s"))


def seconds(
    work: Callable[[list[Document], Encoder, Encoder], None],
    documents: list[Document],
    teacher: Encoder,
    student: Encoder,
) -> float:
    start = time.perf_counter()
    work(documents, teacher, student)
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
