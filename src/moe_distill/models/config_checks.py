"""What config.json alone tells of a model, before anything is computed: its sizes, and whether keys fit them.

Sizes are read through the configuration classes of transformers, which know each family's names for them.
"""

from dataclasses import dataclass
from pathlib import Path

from moe_distill.errors import ConfigError, DataError, together

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # one of them, by family


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a causal language model."""

    model_type: str
    vocabulary: int
    hidden_size: int
    layers: int
    positions: int | None  # None: it has no limit
    experts: int  # of its last layer; 0 = that is dense


def read_sizes(folder: Path) -> ModelSizes:
    """The sizes in `folder/config.json`.

    Raises:
        DataError: it is none of a causal language model that transformers has.
    """
    from transformers import AutoConfig  # imported here: it takes seconds, which tiny models do not need
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging

    path, fix = folder / "config.json", "use a causal language model that is part of transformers"
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        sizes = ModelSizes(
            model_type=str(config.model_type),
            vocabulary=int(config.vocab_size),
            hidden_size=int(config.hidden_size),
            layers=int(config.num_hidden_layers),
            positions=find_positions(config),
            experts=_experts(config),
        )
    except Exception as error:  # whatever stands in the file, and whatever its class says of that
        raise DataError(f"{path} cannot be used", " ".join(str(error).split())[:300], fix) from error
    if sizes.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise DataError(f"{path}: a {sizes.model_type} model is no causal language model of transformers", fix=fix)
    return sizes


def find_positions(config: object) -> int | None:
    """Positions that a configuration allows; None: it sets no limit."""
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _experts(config: object) -> int:
    last = int(getattr(config, "num_hidden_layers", 0)) - 1
    dense_first = getattr(config, "first_k_dense_replace", None) or 0
    dense = getattr(config, "mlp_only_layers", None) or []
    step = getattr(config, "decoder_sparse_step", None) or 1
    if last in dense or last < dense_first or (last + 1) % step:
        return 0
    found = (getattr(config, name, None) for name in EXPERTS)
    return next((number for number in found if isinstance(number, int) and number > 1), 0)


def check_windows(positions: int | None, model_type: str, role: str, window: int) -> None:
    """Refuse windows longer than the model's positions.

    Args:
        role: teacher or student.
        window: tokens of its windows, prefix token included.

    Raises:
        ConfigError: naming both lengths.
    """
    if positions is not None and window > positions:
        raise ConfigError(
            f"`windows.{role}_max_length` is {window}, the {role} has {positions} positions",
            f"max_position_embeddings of its config.json, a {model_type} model",
            f"lower `windows.{role}_max_length` to {positions} at most",
        )


def check_capture(sizes: ModelSizes, k: int, hidden_layers: list[int]) -> None:
    """Refuse to capture more logits or layers than the teacher has.

    Raises:
        ConfigError: naming each key and the teacher's number.
    """
    found = list[ConfigError]()
    if k >= sizes.vocabulary:
        what = f"`teacher.k` is {k}, the teacher has {sizes.vocabulary} logits"
        found.append(ConfigError(what, "there must be a tail", "lower `teacher.k`"))
    if hidden_layers[-1] > sizes.layers:
        what = f"`teacher.hidden_layers` names layer {hidden_layers[-1]}, the teacher has {sizes.layers}"
        found.append(ConfigError(what, fix="change `teacher.hidden_layers`"))
    if found:
        raise together(found)
