"""The safetensors files that are a model's own weights, and what their headers say without reading a weight."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from moe_distill.errors import DataError

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
WEIGHT_ENDINGS = ("weight", "_packed", "_blocks")  # of the last part of a name; buffers may be whole numbers


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads: model.safetensors, else those that its index names; none if neither is there.

    Raises:
        DataError: the index is unreadable, or names a file that is not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        files = [folder / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is no index of weights", str(error), "download or save the model again") from error
    for path in files:
        if not path.is_file() or path.parent != folder:
            raise DataError(f"{index} names {path.name}, which is not there", fix="download or save the model again")
    return files


def count_parameters(folder: Path) -> int:
    """Numbers in a model's own weights, from the files' headers alone; tied matrices are stored, and count, once.

    Raises:
        DataError: see `weight_files`; or a file is not safetensors.
    """
    return sum(math.prod(shape) for _, _, shape in _tensors(folder))


def packed_weight(folder: Path) -> str | None:
    """Name and type of a weight that is not stored as floating-point numbers; None: all are.

    Raises:
        DataError: as `count_parameters` does.
    """
    for name, dtype, shape in _tensors(folder):
        if dtype not in FLOATS and (dtype.startswith("F") or (len(shape) > 1 and name.endswith(WEIGHT_ENDINGS))):
            return f"{name} is {dtype}"
    return None


def _tensors(folder: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield name, type and shape of every tensor of a model's own weights."""
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    tensor = tensors.get_slice(name)
                    yield name, str(tensor.get_dtype()), list(tensor.get_shape())
        except SafetensorError as error:
            raise DataError(f"{path} is not a readable safetensors file", str(error)) from error


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Names and shapes of a model's own weights, from the headers of their files alone.

    Raises:
        DataError: a file is not safetensors.
    """
    return {name: shape for name, _, shape in _tensors(folder)}
