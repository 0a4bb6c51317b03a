"""Check and copy a model folder: the files that `save_pretrained` writes, with weights in safetensors only."""

import json
import math
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError, safe_open

from moe_distill.errors import DataError
from moe_distill.utils.disk_space import require_space

# Files that match none of these (pickled weights, Python code, exports to other formats) are never copied.
FILE_PATTERNS = ("*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja")
SMALLER = "choose a smaller model in the profile's models"


def check_model_folder(folder: Path, name: str) -> None:
    """Refuse a folder that cannot be loaded, or only by running code of its own.

    Args:
        name: what the user calls the folder, for the error.

    Raises:
        DataError: a file is missing, the weights are not safetensors, the model needs its own code, or it is not a
            language model.
    """
    for file in ("config.json", "tokenizer.json"):
        if not (folder / file).is_file():
            raise DataError(
                f"{name} has no {file}", fix="use a folder that `save_pretrained` wrote, tokenizer included"
            )
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"the config.json of {name} is not JSON", str(error)) from error
    if "auto_map" in config:
        raise DataError(
            f"{name} needs Python code of its own",
            "its config.json has `auto_map`, and code from a model repository is never run",
            "use a model whose architecture is part of transformers",
        )
    if not isinstance(config.get("vocab_size"), int):
        raise DataError(
            f"{name} is no language model of text alone",
            "its config.json has no `vocab_size` at the top, as those of multimodal models have none",
            "use a checkpoint of the language model itself",
        )
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"{name} has no *.safetensors",
            "weights in other formats are pickles, and loading one can run any code",
            "convert it: load it where you trust it, then save_pretrained()",
        )


def copy_model_folder(source: Path, name: str, output: Path) -> None:
    """Copy the files of a model from the top of `source` to `output`.

    Raises:
        DataError: see `check_model_folder`.
        ResourceError: the disk cannot take them.
    """
    check_model_folder(source, name)
    output.mkdir(parents=True, exist_ok=True)
    files = model_files(source)
    require_space(output, sum(path.stat().st_size for path in files), name, SMALLER)
    for path in files:
        shutil.copyfile(path, output / path.name)


def model_files(folder: Path) -> list[Path]:
    """The files of a model at the top of its folder, sorted by name."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in FILE_PATTERNS)
    ]


def count_parameters(folder: Path) -> int:
    """Parameters in the folder's safetensors files, from their headers alone; tied matrices count once.

    Raises:
        DataError: a file is not safetensors.
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise DataError(f"{path} is not a readable safetensors file", str(error)) from error
    return total
