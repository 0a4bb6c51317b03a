"""Texts and tokenizers that benchmarks read: what an installed Python has, and assets where someone has put them.

`MOE_DISTILL_ASSETS` names a folder with `tokenizers/<name>/tokenizer.json` and `corpora/<name>`, as for the tests.
"""

import hashlib
import os
import sysconfig
from itertools import cycle
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory

from bench_row import Size
from tokenizers import Tokenizer

from moe_distill.alignment.encode import Encoder, make_encoder
from moe_distill.config.model_keys import TinyTokenizer
from moe_distill.corpus.documents import Document
from moe_distill.corpus.parquet_writer import open_writer
from moe_distill.models.tiny_tokenizers import train_tokenizer

VARIABLE = "MOE_DISTILL_ASSETS"
TOKENIZERS = ("tokenizers/qwen3/tokenizer.json", "tokenizers/smollm2/tokenizer.json")  # teacher's, student's


def find_asset(relative: str) -> Path | None:
    """The path of an asset; None: there is none here."""
    root = os.environ.get(VARIABLE)
    return Path(root) / relative if root and (Path(root) / relative).exists() else None


def no_assets(*relatives: str) -> str:
    """Why a line has no figure."""
    return f"set {VARIABLE} to a folder that holds {' and '.join(relatives)}"


def help_texts() -> list[str]:
    """The topics of `help()`, each a few kilobytes of English."""
    return [topics[name] for name in sorted(topics)]


def code_text(characters: int) -> str:
    """The beginning of the standard library's modules, one after the other, and again from the first where needed."""
    modules, text = Path(sysconfig.get_path("stdlib")).rglob("*.py"), ""
    for path in cycle(sorted(path for path in modules if "site-packages" not in path.parts)):
        text += path.read_text(encoding="utf-8", errors="ignore")
        if len(text) >= characters:
            return text[:characters]
    raise FileNotFoundError(f"{sysconfig.get_path('stdlib')} has no modules")


def encoders(size: Size) -> tuple[str, tuple[Encoder, Encoder]]:
    """What the tokenizers are, and both."""
    paths = [find_asset(name) for name in TOKENIZERS]
    if paths[0] is None or paths[1] is None or size is Size.SMALLEST:
        return "tokenizers trained here", trained_encoders(size)
    teacher, student = (Tokenizer.from_file(str(path)) for path in paths)
    return "Qwen3, SmolLM2", (make_encoder(teacher, 0, "teacher"), make_encoder(student, 0, "student"))


def trained_encoders(size: Size) -> tuple[Encoder, Encoder]:
    """Small ones of the help texts, which split text as the real ones do."""
    vocabulary = size.pick(400, 2000, 2000)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "documents.parquet"
        with open_writer(path) as writer:
            for number, text in enumerate(help_texts()[: size.pick(20, 80, 80)]):
                writer.append(Document(hashlib.sha256(str(number).encode()).hexdigest(), "topics", text))
        teacher, student = (
            train_tokenizer(
                TinyTokenizer(vocabulary_size=vocabulary, pre_tokenizer=kind, sample_characters=10**6, sample_seed=0),
                path,
            )
            for kind in ("qwen", "smollm")
        )
    return make_encoder(teacher, 0, "teacher"), make_encoder(student, 0, "student")
