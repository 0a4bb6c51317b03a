"""Real tokenizers and texts for tests: found beside the repository, or skipped with the reason.

`MOE_DISTILL_ASSETS` names the folder; without it, `../shared/assets` next to the repository is looked at. The folder
holds `tokenizers/<name>/tokenizer.json`, `corpora/<name>` and `models/<name>/`.
"""

import os
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer

VARIABLE = "MOE_DISTILL_ASSETS"
BESIDE = Path(__file__).resolve().parents[1].parent / "shared" / "assets"


def asset(relative: str) -> Path:
    """The path of a file or folder below the assets folder; skips the test where it does not exist."""
    root = Path(os.environ[VARIABLE]) if VARIABLE in os.environ else BESIDE
    path = root / relative
    if not path.exists():
        pytest.skip(f"{path} does not exist; set {VARIABLE} to the folder that holds {relative}")
    return path


def real_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of `tokenizers/<name>`: "qwen3", "smollm2". Shared between tests: never changed."""
    return _tokenizer(asset(f"tokenizers/{name}/tokenizer.json"))


def real_model_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of `models/<name>`: "stories260k". Shared between tests: never changed."""
    return _tokenizer(asset(f"models/{name}/tokenizer.json"))


def real_model(name: str) -> Path:
    """The folder of `models/<name>`: "stories260k"."""
    return asset(f"models/{name}")


def real_text(name: str) -> str:
    """The text of `corpora/<name>`: "wikitext2_test_raw.txt", "tinyshakespeare.txt"."""
    return asset(f"corpora/{name}").read_text(encoding="utf-8")


@cache
def _tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))
