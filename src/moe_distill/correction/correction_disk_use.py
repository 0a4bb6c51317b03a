"""What a teacher's correction takes of disk and memory, computed before it starts."""

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


def least_memory(weights: int, adapter_weights: int, item_bytes: int, positions: int, output_rows: int) -> int:
    """Bytes that a step holds at once but for the layers' activations, which gradient checkpointing makes few.

    That is the frozen weights; the adapters, their gradients and moments, in fp32; and the logits of a micro-batch with
    their gradient, in the model's dtype and in fp32, beside their log-softmax.

    Args:
        weights: of the teacher.
        adapter_weights: trained ones.
        item_bytes: of a weight in the model's dtype.
        positions: of a micro-batch.
    """
    return weights * item_bytes + adapter_weights * 16 + positions * output_rows * (2 * item_bytes + 12)
