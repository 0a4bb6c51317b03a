"""Model folders of which only config.json says anything."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models


def write_bare_model(folder: Path, config: Mapping[str, object]) -> None:
    """A configuration beside one weight and a tokenizer of two ids, the first of which begins a text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, "bos_token_id": 0}))
    tokenizer = Tokenizer(models.BPE(vocab={"<s>": 0, "a": 1}, merges=[]))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
