"""The tokenizer of a model folder: its tokenizer.json, which alone says the ids of a text, and the files beside it."""

import shutil
from pathlib import Path

from tokenizers import Tokenizer

from moe_distill.errors import DataError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the `tokenizer.json` of a model folder; what it says of truncation and padding is left out.

    Raises:
        DataError: it is missing or unreadable.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist", fix="choose a model that has a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise DataError(f"{path} is not a tokenizer", " ".join(str(error).split())) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer files of one model folder to another."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def count_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest id of a tokenizer, added tokens included: the rows that a model needs."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def require_rows(tokenizer: Tokenizer, rows: int, name: str) -> None:
    """Refuse a tokenizer with ids that the model has no row for.

    Args:
        rows: of the model's embeddings and output matrix.
        name: what the user calls the model.

    Raises:
        DataError: naming both numbers.
    """
    n_ids = count_ids(tokenizer)
    if n_ids > rows:
        raise DataError(
            f"the tokenizer of {name} has {n_ids} ids, its model {rows} rows",
            "the tokenizer is another model's, or tokens were added to it alone",
            "use the model's own tokenizer, or resize the model where you trust it (resize_token_embeddings)",
        )
