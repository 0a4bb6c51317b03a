"""Bytes of a tiny model's folder, computed before the model is trained."""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from moe_distill.utils.disk_space import require_space


def require_model_space(model: PreTrainedModel, tokenizer: Tokenizer, output: Path) -> None:
    """Refuse a model that the disk of `output` cannot take.

    Raises:
        ResourceError: see `require_space`.
    """
    output.mkdir(parents=True, exist_ok=True)
    fix = "lower `hidden_size`, `layers` or `vocabulary_size` in the profile's models"
    require_space(output, model_bytes(model, tokenizer), "the model", fix)


def model_bytes(model: PreTrainedModel, tokenizer: Tokenizer) -> int:
    """Bytes of the weights, tied ones once, and of tokenizer.json; two kilobytes of settings are not counted."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights + len(tokenizer.to_str(pretty=True).encode())
