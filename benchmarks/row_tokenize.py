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
from bench_texts import code_text, find_asset, help_texts, no_assets
from interleaved import interleave
from tokenizers import Tokenizer

from moe_distill.alignment.encode import Encoder, make_encoder
from moe_distill.alignment.tokenize import tokenize_split
from moe_distill.alignment.window_limits import WindowLimits
from moe_distill.config.model_keys import TinyTokenizer
from moe_distill.corpus.documents import Document
from moe_distill.corpus.parquet_writer import open_writer
from moe_distill.models.tiny_tokenizers import train_tokenizer

DOCUMENT_CHARACTERS = 20_000
LIMITS = WindowLimits(teacher_max_length=384, student_max_length=384, shard_tokens=1 << 20, max_windows=None)
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
            ours=f"{megabytes / times.median('whole step', 'wall'):.2f} MB/s",
            reference=f"{megabytes / times.median('both tokenizers', 'wall'):.2f} MB/s",
            ratio=times.ratio("whole step", "both tokenizers", "cpu"),
            target=TARGET,
        )


def what(text: str, pair: str) -> str:
    return f"tokenize and align over both tokenizers alone, CPU time, {text} ({pair})"


def encoders(size: Size) -> tuple[str, tuple[Encoder, Encoder]]:
    """What the tokenizers are, and both."""
    paths = [find_asset(f"tokenizers/{name}/tokenizer.json") for name in ("qwen3", "smollm2")]
    if paths[0] is None or paths[1] is None or size is Size.SMALLEST:
        return "tokenizers trained here", trained_encoders(size)
    teacher, student = (Tokenizer.from_file(str(path)) for path in paths)
    return "Qwen3, SmolLM2", (make_encoder(teacher, 0, "teacher"), make_encoder(student, 0, "student"))


def trained_encoders(size: Size) -> tuple[Encoder, Encoder]:
    vocabulary = size.pick(400, 2000, 2000)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "documents.parquet"
        with open_writer(path) as writer:
            for number, text in enumerate(help_texts()[: size.pick(20, 80, 80)]):
                writer.append(Document(hashlib.sha256(str(number).encode()).hexdigest(), "topics", text))
        teacher, student = (
            train_tokenizer(
                TinyTokenizer(vocabulary_size=vocabulary, pre_tokenizer=kind, sample_fraction=1.0, sample_seed=0), path
            )
            for kind in ("qwen", "smollm")
        )
    return make_encoder(teacher, 0, "teacher"), make_encoder(student, 0, "student")


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
