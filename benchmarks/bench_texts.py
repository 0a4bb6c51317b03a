"""Texts and tokenizers that benchmarks read: what an installed Python has, and assets where someone has put them.

`MOE_DISTILL_ASSETS` names a folder with `tokenizers/<name>/tokenizer.json` and `corpora/<name>`, as for the tests.
"""

import os
import sysconfig
from itertools import cycle
from pathlib import Path
from pydoc_data.topics import topics

VARIABLE = "MOE_DISTILL_ASSETS"


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
    paths, text = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")), ""
    for path in cycle(paths):
        text += path.read_text(encoding="utf-8", errors="ignore")
        if len(text) >= characters:
            return text[:characters]
    raise FileNotFoundError(f"{sysconfig.get_path('stdlib')} has no modules")
