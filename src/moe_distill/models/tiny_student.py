"""The student of the profile `tiny`: a small Llama with random weights and a tokenizer of its own."""

from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from moe_distill.config.model_keys import TinyStudent
from moe_distill.models.model_disk_use import require_model_space
from moe_distill.models.tiny_models import decoder_settings, random_model, save_model
from moe_distill.models.tiny_tokenizers import end_of_text_id, train_tokenizer


def make_tiny_student(params: TinyStudent, seed: int, train_documents: Path, output: Path) -> None:
    """Train a tokenizer, make a model with random weights, and save both in `output`; equal inputs give equal bytes.

    Raises:
        DataError: there is too little text for the vocabulary.
        ResourceError: the disk cannot take the model.
    """
    tokenizer = train_tokenizer(params.tokenizer, train_documents)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        intermediate_size=params.intermediate_size,
        **decoder_settings(params, end_of_text_id(tokenizer)),
    )
    model = random_model(LlamaForCausalLM, config, seed)
    require_model_space(model, tokenizer, output)
    save_model(model, tokenizer, params.max_length, output)
