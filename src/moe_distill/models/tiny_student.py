"""The student of the profile `tiny`: a small Llama with random weights and a tokenizer of its own."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from moe_distill.config.profile import TinyStudent
from moe_distill.models.model_disk_use import require_model_space
from moe_distill.models.tiny_tokenizers import end_of_text_id, save_tokenizer, train_tokenizer


def make_tiny_student(params: TinyStudent, seed: int, train_documents: Path, output: Path) -> None:
    """Train a tokenizer, make a model with random weights, and save both in `output`; equal inputs give equal bytes.

    Raises:
        DataError: there is too little text for the vocabulary.
        ResourceError: the disk cannot take the model.
    """
    tokenizer = train_tokenizer(params.tokenizer, train_documents)
    end_id = end_of_text_id(tokenizer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=params.hidden_size,
        intermediate_size=params.intermediate_size,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.key_value_heads,
        max_position_embeddings=params.max_length,
        tie_word_embeddings=True,
        bos_token_id=end_id,
        eos_token_id=end_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    require_model_space(model, tokenizer, output)
    # Not in the model's own config: the embedding of that id, which begins every window, would get no gradient.
    model.generation_config.pad_token_id = end_id
    logging.disable_progress_bar()  # for writing weights
    model.save_pretrained(output)
    save_tokenizer(tokenizer, params.max_length, output)
