"""What do windows, alignment and writing cost on top of the two tokenizers alone?

Each round encodes the same documents with both tokenizers (`encode_batch_fast`, all cores, one call each), then runs
the whole `tokenize` step on them: encoding, checks, alignment, window files; the vocabulary map, which does not grow
with the text, aside. The real pair's tokenizers where the assets have them, else small ones that are trained here.
"""

import hashlib
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_row import Row, Size, at_most, missing
from bench_texts import code_text, encoders, find_asset, no_assets
from interleaved import interleave

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.tokenize import tokenize_split
from moe_distill.alignment.window_limits import WindowLimits
from moe_distill.corpus.documents import Document

DOCUMENT_CHARACTERS = 20_000
LIMITS = WindowLimits(teacher_max_length=384, student_max_length=384, shard_tokens=1 << 20)
CORPORA = {"WikiText-2": "wikitext2_test_raw.txt", "tinyshakespeare": "tinyshakespeare.txt"}
TARGET = at_most(1.2)


def rows(size: Size) -> Iterator[Row]:
    """A ratio for each text."""
    pair, (teacher, student) = encoders(size)
    characters = size.pick(40_000, 1_000_000, 5_000_000)
    texts: dict[str, str] = {"code of the standard library": code_text(characters)}
    for name, file in CORPORA.items():
        path = find_asset(f"corpora/{file}")
        if path is None:
            yield missing(what(name, pair), no_assets(f"corpora/{file}"), TARGET)
        elif size is not Size.SMALLEST:
            texts[name] = path.read_text(encoding="utf-8")[:characters]
    for name, text in texts.items():
        documents = divided(text, name)
        works = {"both tokenizers": both_tokenizers, "whole step": whole_step}
        times = interleave(
            {kind: partial(work, documents, teacher, student) for kind, work in works.items()}, size.pick(1, 5, 15)
        )
        megabytes = sum(len(document.text.encode()) for document in documents) / 1e6
        yield Row(
            what(name, pair),
            ours=f"{megabytes / times.median('whole step', 'cpu'):.2f} MB/CPU s",
            reference=f"{megabytes / times.median('both tokenizers', 'cpu'):.2f} MB/CPU s",
            ratio=times.ratio("whole step", "both tokenizers", "cpu"),
            target=TARGET,
        )


def what(text: str, pair: str) -> str:
    return f"tokenize and align over both tokenizers alone, CPU time, {text} ({pair})"


def divided(text: str, name: str) -> list[Document]:
    text = unicodedata.normalize("NFC", text)
    parts = [text[start : start + DOCUMENT_CHARACTERS] for start in range(0, len(text), DOCUMENT_CHARACTERS)]
    return [Document(hashlib.sha256(part.encode()).hexdigest(), name, part) for part in parts]


def both_tokenizers(documents: list[Document], teacher: Encoder, student: Encoder) -> None:
    texts = [document.text for document in documents]
    for encoder in (teacher, student):
        encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def whole_step(documents: list[Document], teacher: Encoder, student: Encoder) -> None:
    with TemporaryDirectory() as folder:
        outputs = Path(folder) / "teacher", Path(folder) / "student"
        tokenize_split([documents], teacher, student, LIMITS, *outputs, "t", "s", ("t", "s"))
