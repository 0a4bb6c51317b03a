"""Bytes and weights of a teacher's correction, computed before it starts."""

import math

from transformers import PreTrainedModel

from moe_distill.shards.checkpoint import KEPT


def model_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights, tied ones once, in the dtype that the model has."""
    return sum(weight.nbytes for weight in model.parameters())


def work_bytes(trained: int) -> int:
    """The most bytes of checkpoints at once, one being written among them: every trained weight and its two moments.

    Args:
        trained: bytes of the adapters.
    """
    return (KEPT + 1) * 3 * trained


def most_adapter_weights(shapes: dict[str, list[int]], rank: int) -> int:
    """The weights of adapters on every matrix of a model folder but embeddings and output: no fewer than there will be.

    Args:
        shapes: of the folder's tensors, by name; experts may lie one by one or in tensors of three dimensions.
    """
    matrices = (
        shape
        for name, shape in shapes.items()
        if len(shape) in (2, 3) and "embed" not in name and "lm_head" not in name
    )
    return sum(math.prod(shape[:-2]) * rank * (shape[-2] + shape[-1]) for shape in matrices)
