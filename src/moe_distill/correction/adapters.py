"""Low-rank adapters (LoRA, Hu et al. 2021) on a teacher's matrices, by the library `peft`; the rest is frozen."""

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from moe_distill.config.model_keys import TeacherCorrection
from moe_distill.correction.moe_modules import find_moe_modules, is_below
from moe_distill.errors import ConfigError, DataError

PROBED = 8  # tokens
ALPHA_PER_RANK = 2  # the product of an adapter's two matrices is added twofold


def attach_adapters(model: PreTrainedModel, params: TeacherCorrection, seed: int) -> PeftModel:
    """Freeze a model and put adapters on its matrices, in place; the model computes what it did before.

    Every linear layer gets one, but for embeddings and output matrix; experts and routers where the parameters say so.
    Adapters are fp32, whatever the model's dtype is.

    Args:
        seed: of the adapters' first matrices; the second ones begin at zero.

    Raises:
        DataError: there is nothing to put an adapter on.
        ConfigError: the model does not run with them.
    """
    modules, parameters = _targets(model, params)
    if not modules and not parameters:
        raise DataError(
            f"a {model.config.model_type} model has no linear layer that adapters could be put on",
            fix="set `models.teacher_correction: null`",
        )
    config = LoraConfig(
        r=params.rank,
        lora_alpha=ALPHA_PER_RANK * params.rank,
        target_modules=modules,
        target_parameters=parameters or None,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what peft finds out by itself, and of what it asks transformers
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
            with torch.inference_mode():
                adapted(input_ids=torch.zeros(1, PROBED, dtype=torch.int64, device=model.device), use_cache=False)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:  # a module that is more than its matrix
            raise ConfigError(
                f"a {model.config.model_type} teacher cannot be tuned with these adapters",
                " ".join(str(error).split())[:200],
                "set `train_router` and `train_experts` of `models.teacher_correction` to false, or it to null",
            ) from error
    assert isinstance(adapted, PeftModel)
    return adapted


def _targets(model: PreTrainedModel, params: TeacherCorrection) -> tuple[list[str], list[str]]:
    """Names of the linear layers, and of other parameters, that get an adapter."""
    moe, output = find_moe_modules(model), model.get_output_embeddings()
    modules, parameters = [], list(moe.fused) if params.train_experts else []
    for name, module in model.named_modules():
        is_linear = type(module) in (nn.Linear, Conv1D) and module is not output  # a subclass may return more
        if name in moe.routers:
            if params.train_router:
                modules += [name] if is_linear else []
                parameters += [] if is_linear else [f"{name}.{key}" for key in _matrices(module)]
        elif is_linear and (params.train_experts or not any(is_below(name, each) for each in moe.experts)):
            modules.append(name)
    return modules, parameters


def _matrices(module: nn.Module) -> list[str]:
    return [key for key, each in module.named_parameters(recurse=False) if each.ndim == 2]


def adapter_parameters(adapted: PeftModel) -> dict[str, nn.Parameter]:
    """All that is trained, by name."""
    return {name: each for name, each in adapted.named_parameters() if each.requires_grad}


def merge_adapters(adapted: PeftModel) -> PreTrainedModel:
    """Add the adapters to the weights they stand on, in the model's dtype; an ordinary model remains."""
    merged: object = adapted.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    merged.eval()
    return merged
