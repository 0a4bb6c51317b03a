"""What the tiny teacher and the tiny student share: settings, random weights from a seed, a folder with a tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from moe_distill.config.model_keys import TinyStudent, TinyTeacher
from moe_distill.models.tiny_tokenizers import save_tokenizer


def decoder_settings(params: TinyTeacher | TinyStudent, end_id: int) -> dict[str, Any]:
    """The settings that both families have."""
    return {
        "hidden_size": params.hidden_size,
        "num_hidden_layers": params.layers,
        "num_attention_heads": params.heads,
        "num_key_value_heads": params.key_value_heads,
        "max_position_embeddings": params.max_length,
        "tie_word_embeddings": True,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
    }


def random_model(family: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model of one family of transformers, its weights drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = family(config)
    # Not in the model's own config: nn.Embedding would keep that row, which begins every window, from learning.
    model.generation_config.pad_token_id = config.eos_token_id
    return model


def save_model(model: PreTrainedModel, tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    """Write a `save_pretrained` folder; windows have up to `max_length` tokens."""
    logging.disable_progress_bar()  # of writing weights
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, max_length, folder)
