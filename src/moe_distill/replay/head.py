"""`models/teacher_head`: what replay needs of the teacher, as safetensors with a hashed description."""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from moe_distill.errors import DataError
from moe_distill.workspace import sha256_file, write_atomically, write_json

HEAD_FORMAT = "moe-distill/teacher-head"
HEAD_VERSION = 1
WEIGHTS_NAME = "teacher_head.safetensors"
DESCRIPTION_NAME = "teacher_head.json"


class HeadDescription(BaseModel):
    """How to compute with the tensors of a head; `num_experts` 0 says that the last block is dense."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = HEAD_FORMAT
    format_version: int = HEAD_VERSION
    teacher_fingerprint: str
    num_experts: int
    experts_per_token: int
    normalizes_topk: bool
    activation: str
    norm_epsilon: float
    weights_sha256: str


def write_head(folder: Path, tensors: dict[str, Tensor], description: HeadDescription) -> None:
    """Write a head; `description.weights_sha256` is filled in."""
    contiguous = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / WEIGHTS_NAME, save(contiguous))
    digest = sha256_file(folder / WEIGHTS_NAME)
    write_json(
        folder / DESCRIPTION_NAME, description.model_copy(update={"weights_sha256": digest}).model_dump(mode="json")
    )


def read_head(folder: Path, device: torch.device) -> tuple[HeadDescription, dict[str, Tensor]]:
    """Read and verify a head.

    Raises:
        DataError: missing, of another version, or corrupt; names both values.
    """
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        raise DataError(f"{path} does not exist", fix="run: dvc repro teacher")
    try:
        description = HeadDescription.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path} does not describe a teacher head", str(error.errors()[0]["msg"])) from error
    if (description.format, description.format_version) != (HEAD_FORMAT, HEAD_VERSION):
        raise DataError(f"{path} is {description.format} version {description.format_version}, not {HEAD_VERSION}")
    found = sha256_file(folder / WEIGHTS_NAME)
    if found != description.weights_sha256:
        raise DataError(f"{folder / WEIGHTS_NAME} is corrupt", f"sha256 {found}, expected {description.weights_sha256}")
    return description, load_file(folder / WEIGHTS_NAME, device=str(device))
