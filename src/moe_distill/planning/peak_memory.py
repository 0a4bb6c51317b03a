"""Peak memory of a stage on its device, from sizes: what is held at once, a little more rather than less."""

from dataclasses import dataclass

from moe_distill.planning.model_work import ModelWork

FP32 = 4
TRAINED = 4 * FP32  # bytes of a trained weight: itself, gradient, two moments
CAPTURE_LOGITS = 3  # tensors as large as a chunk's logits, while a GPU makes it sparse; a CPU takes few rows at once
EVALUATION_LOGITS = 3  # the same while a student is measured
EVALUATION_CHUNK = 2048  # positions of such a chunk (evaluation/measure.py)


@dataclass(frozen=True)
class Layers:
    """How a model's layers run."""

    itemsize: int  # bytes of a value under autocast, or of the model's own dtype
    length: int  # tokens of a window
    fuses_attention: bool  # False: the attention's probabilities are held


def saved_activations(work: ModelWork, layers: Layers, positions: float, twice: bool = False) -> float:
    """Bytes that the layers keep for their gradient.

    A layer of the Llama kind keeps, of each position, 16 values as wide as the states and 4 as wide as its feed-forward
    part; its norms keep theirs in fp32. With `twice` (gradient checkpointing) a layer keeps its input alone, and one
    layer at a time is whole.
    """
    of_states = FP32 * 5 + layers.itemsize * 6.5 if layers.itemsize < FP32 else FP32 * 9
    each = of_states * work.hidden_size + 4 * layers.itemsize * work.width
    if not layers.fuses_attention:  # scores, probabilities, and these in fp32; keys and values of every head
        each += work.heads * (layers.length * (2 * layers.itemsize + FP32) + 2 * layers.itemsize * work.head_size)
    if twice:
        return positions * (each + work.layers * FP32 * work.hidden_size)
    return positions * work.layers * each


def training_memory(
    work: ModelWork, layers: Layers, positions: float, chunk: int, twice: bool, heads: int = 0, teacher_head: int = 0
) -> float:
    """Bytes of an optimizer step of the student.

    Args:
        positions: of a micro-batch.
        chunk: positions whose logits are held at once.
        heads: weights of the projections and the router.
        teacher_head: bytes of models/teacher_head.
    """
    copies = work.parameters * layers.itemsize if layers.itemsize < FP32 else 0  # that autocast makes and keeps
    logits = min(chunk, positions) * work.rows * (layers.itemsize + FP32)
    weights = (work.parameters + heads) * TRAINED + copies + work.head * FP32  # the output matrix' gradient comes twice
    return weights + saved_activations(work, layers, positions, twice) + logits + teacher_head


def capture_memory(work: ModelWork, layers: Layers, positions: float, chunk: int, kept_layers: int) -> float:
    """Bytes of a batch of the teacher.

    Args:
        positions: of a batch.
        chunk: positions whose logits are held at once.
        kept_layers: whose states are kept.
    """
    logits = min(chunk, positions) * work.rows * FP32 * CAPTURE_LOGITS
    weights = work.parameters * layers.itemsize + work.head * FP32
    states = positions * work.hidden_size * 2 * FP32 * (kept_layers + 2)  # kept, final, block's input
    return weights + logits + states + _one_layer(work, layers, positions)


def evaluation_memory(work: ModelWork, layers: Layers, positions: float) -> float:
    """Bytes of a batch of a student that is measured, in fp32."""
    logits = min(EVALUATION_CHUNK, positions) * work.rows * FP32 * EVALUATION_LOGITS
    return work.parameters * FP32 + logits + _one_layer(work, layers, positions)


def _one_layer(work: ModelWork, layers: Layers, positions: float) -> float:
    """Bytes of what one layer makes without keeping it for a gradient."""
    each = layers.itemsize * (6 * work.hidden_size + 3 * work.width)
    if not layers.fuses_attention:
        each += work.heads * layers.length * (2 * layers.itemsize + FP32)
    return positions * each
