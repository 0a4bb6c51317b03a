"""Open a model folder: safetensors only, no remote code, no network."""

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

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


def load_causal_lm(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load a causal language model in an explicit dtype, in evaluation mode.

    Raises:
        DataError: the folder holds no model that transformers can open without remote code.
    """
    logging.disable_progress_bar()  # of reading weights: seconds, and lines in every log
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no usable model", str(error).splitlines()[0], "run: dvc repro models"
        ) from error
    nn.Module.to(model, device)  # transformers wraps `to` with checks for quantised models
    model.eval()
    return model


def save_causal_lm(model: PreTrainedModel, tokenizer_folder: Path, folder: Path) -> None:
    """Write an ordinary `save_pretrained` folder, with the tokenizer files of another folder beside the weights."""
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, folder / name)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read `tokenizer.json`.

    Raises:
        DataError: missing or unreadable.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist", fix="choose a model that has a tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise DataError(f"{path} is not a tokenizer", str(error)) from error


def prefix_token_id(folder: Path, tokenizer: Tokenizer) -> int:
    """The token that begins every window: the model's BOS, else its EOS.

    Raises:
        DataError: the model folder names neither.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in ("bos_token_id", "eos_token_id"):
        token_id = settings.get(name)
        first = token_id[0] if isinstance(token_id, list) else token_id
        if first is not None and tokenizer.id_to_token(first) is not None:
            return int(first)
    raise DataError(f"{folder}/config.json names neither a bos_token_id nor an eos_token_id", fix="add one")


def text_token_mask(tokenizer: Tokenizer, output_rows: int) -> torch.Tensor:
    """bool [output_rows]: ids that stand for text; special tokens and rows without a token do not."""
    mask = torch.zeros(output_rows, dtype=torch.bool)
    mask[list(tokenizer.get_vocab(with_added_tokens=True).values())] = True
    special = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    mask[special] = False
    return mask
