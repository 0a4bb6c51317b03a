"""Write and read `models/teacher_head`, the part of the teacher that replay needs: safetensors and a description."""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from moe_distill.errors import DataError, restore_command
from moe_distill.replay.router_rule import RouterRule
from moe_distill.shards.value_checks import check_finite
from moe_distill.utils.checksummed_json import read_json_object, verified_content, write_checksummed_json
from moe_distill.utils.files import sha256_file, write_atomically

HEAD_FORMAT = "moe-distill/teacher-head"
HEAD_VERSION = 3
WEIGHTS_NAME = "teacher_head.safetensors"
DESCRIPTION_NAME = "teacher_head.json"
FIX = "run: dvc repro -f teacher"


class HeadDescription(BaseModel):
    """The content of teacher_head.json, its checksum aside."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = HEAD_FORMAT
    format_version: int = HEAD_VERSION
    teacher_fingerprint: str
    num_experts: int = 0  # 0: nothing is replayed, and the weights are empty
    no_replay: str | None = None  # why, in words
    router: RouterRule | None = None
    activation: str = "silu"  # of an expert, by its name in transformers
    activation_limit: float | None = None  # gpt-oss: where both halves of an expert are clamped
    activation_slope: float = 1.0  # gpt-oss: of the sigmoid in its activation
    output_scale: float = 1.0  # of what the block adds to the residual stream
    moe_norm_epsilon: float = 0.0
    final_norm_epsilon: float = 0.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    weights_sha256: str = ""


def write_head(folder: Path, tensors: dict[str, Tensor], description: HeadDescription) -> None:
    """Write a head; `description.weights_sha256` is computed here."""
    contiguous = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / WEIGHTS_NAME, save(contiguous))
    digest = sha256_file(folder / WEIGHTS_NAME)
    content = description.model_copy(update={"weights_sha256": digest}).model_dump(mode="json")
    write_checksummed_json(folder / DESCRIPTION_NAME, content)


def read_description(folder: Path) -> HeadDescription:
    """Read and verify the description of a head.

    Raises:
        DataError: it is missing, corrupt, or of another format or version; names both values.
    """
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        raise DataError(f"{path} does not exist", fix=FIX)
    content = read_json_object(path)
    found, expected = (content.get("format"), content.get("format_version")), (HEAD_FORMAT, HEAD_VERSION)
    if found != expected:
        raise DataError(
            f"{path} is {found[0]} version {found[1]}, expected {expected[0]} version {expected[1]}", fix=FIX
        )
    try:
        return HeadDescription.model_validate(verified_content(path, content))
    except ValidationError as error:
        raise DataError(f"{path} does not describe a teacher head", str(error.errors()[0]["msg"]), FIX) from error


def read_head(folder: Path, device: torch.device) -> tuple[HeadDescription, dict[str, Tensor]]:
    """Read and verify a head: its description, and its tensors by name.

    Raises:
        DataError: the weights are missing, corrupt or not finite, or see `read_description`.
    """
    description, path = read_description(folder), folder / WEIGHTS_NAME
    if not path.is_file():
        raise DataError(f"{path} does not exist", f"{DESCRIPTION_NAME} describes it", FIX)
    found = sha256_file(path)
    if found != description.weights_sha256:
        why = f"sha256 {found}, {DESCRIPTION_NAME} says {description.weights_sha256}"
        raise DataError(f"{path} is corrupt", why, restore_command(path))
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        raise DataError(f"{path} is not safetensors", str(error), FIX) from error
    for name, tensor in tensors.items():
        check_finite(f"{path}: tensor {name}", tensor, 0, FIX)
    return description, tensors
