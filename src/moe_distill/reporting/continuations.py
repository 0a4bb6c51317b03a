"""What a model writes after a text."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


@torch.inference_mode()
def continued(model: PreTrainedModel, ids: Sequence[int], n_tokens: int, max_length: int) -> list[int]:
    """The likeliest next tokens, one after the other; not by `generate`, which uses the model's sampling settings.

    Args:
        ids: what the model has read, prefix token included.
        n_tokens: tokens to write.
        max_length: tokens of the longest window that it knows; what it writes ends there.
    """
    read = torch.tensor([list(ids)], device=model.device)
    for _ in range(min(n_tokens, max_length - len(ids))):
        logits = model(input_ids=read, use_cache=False).logits
        read = torch.cat([read, logits[:, -1:].argmax(-1)], dim=1)
    written: list[int] = read[0, len(ids) :].tolist()
    return written
