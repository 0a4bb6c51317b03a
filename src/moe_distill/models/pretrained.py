"""Open and write model folders: safetensors only, no remote code, no network."""

from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from moe_distill.errors import DataError
from moe_distill.models.tokenizer_files import copy_tokenizer
from moe_distill.shards.value_checks import is_finite

GROUPED_PRODUCT = (8, 0)  # compute capability that has it
WRITTEN_BY = {  # else models
    "teacher_corrected": "teacher_correction",
    "student_kd": "train_kd",
    "student_router": "train_router",
    "student": "student",
    "student_lm_only": "control",
}


def load_causal_lm(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load a causal language model in an explicit dtype, in evaluation mode.

    Raises:
        DataError: transformers cannot open the model without remote code, weights are missing, unexpected or of
            another shape than config.json asks for, or a weight is not finite.
    """
    logging.disable_progress_bar()  # one for reading weights would stand in every log
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    fix = f"run: moe-distill verify; where it finds nothing: dvc repro -f {WRITTEN_BY.get(folder.name, 'models')}"
    try:
        loaded: object = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            experts_implementation=experts_implementation(capability),
            ignore_mismatched_sizes=True,  # else an error that names no weight; refused below
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: of a conversion
        raise DataError(f"{folder} holds no usable model", str(error).splitlines()[0], fix) from error
    model, loading = cast(tuple[PreTrainedModel, dict[str, list[object]]], loaded)
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):  # transformers warns and goes on
        if names := sorted(str(name) for name in loading[fault]):
            raise DataError(f"the weights of {folder} have {fault.replace('_', ' ')}", ", ".join(names[:3]), fix)
    for name, weight in model.named_parameters():
        if not is_finite(weight):
            raise DataError(f"weight {name} of {folder} is not finite", fix=fix)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # else the padding token's row, which may begin every window, has no gradient
    nn.Module.to(model, device)  # transformers wraps `to` with checks for quantised models
    model.eval()
    return model


def experts_implementation(compute_capability: tuple[int, int] | None) -> Literal["eager"] | None:
    """How the experts of a mixture are computed: `eager`, one after the other; None: as transformers chooses.

    That is one grouped product of all experts, for which a GPU needs compute capability 8.0. A P100, V100 or T4 has
    none. Attention needs no rule: `sdpa` takes a kernel that the GPU has, at worst the plain products.

    Args:
        compute_capability: (major, minor) of the GPU, None for a CPU.
    """
    return "eager" if compute_capability is not None and compute_capability < GROUPED_PRODUCT else None


def save_causal_lm(model: PreTrainedModel, tokenizer_folder: Path, folder: Path) -> None:
    """Write an ordinary `save_pretrained` folder, with the tokenizer files of another folder beside the weights."""
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    copy_tokenizer(tokenizer_folder, folder)


def text_token_mask(tokenizer: Tokenizer, output_rows: int) -> torch.Tensor:
    """Which rows of the output matrix are ids that stand for text, and not special or unused: bool [output_rows]."""
    mask = torch.zeros(output_rows, dtype=torch.bool)
    mask[list(tokenizer.get_vocab(with_added_tokens=True).values())] = True
    special = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    mask[special] = False
    return mask
