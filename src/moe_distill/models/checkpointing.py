"""Gradient checkpointing: a layer keeps its input alone, and is computed a second time for its gradient."""

import warnings

from transformers import PreTrainedModel

from moe_distill.errors import ConfigError


def checkpoint_layers(model: PreTrainedModel, key: str) -> None:
    """Let a model that is trained compute its layers twice. Losses and gradients stay the same, dropout included.

    Args:
        key: of the profile, by which this is asked for.

    Raises:
        ConfigError: transformers cannot do so with this family.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its name is another one in later versions of transformers
        try:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            what = f"layers of a {model.config.model_type} model cannot be computed twice"
            raise ConfigError(what, str(error), f"set `{key}: false`") from error
