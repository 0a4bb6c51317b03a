"""Check and copy a model folder: the files that `save_pretrained` writes, with weights in safetensors only.

Nothing here imports torch or transformers before a model is copied, so that the stage `check` can ask too.
"""

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from moe_distill.errors import DataError
from moe_distill.log import log, shown
from moe_distill.models.model_weights import WEIGHTS, WEIGHTS_INDEX, packed_weight, weight_files
from moe_distill.models.prefix_token import require_prefix_token, set_prefix_token
from moe_distill.models.tokenizer_files import load_tokenizer, require_rows
from moe_distill.utils.disk_space import require_space
from moe_distill.utils.files import write_json

# Files that match none of these (pickled weights, Python code, exports to other formats) are never copied.
FILE_PATTERNS = ("*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja")
# Adapters, and weights in a layout of their own: they lie beside a model's weights, and are not read.
FOREIGN_PATTERNS = ("adapter_*", "consolidated*.safetensors")
CODE_KEY = "auto_map"  # in a *.json: names the Python code of the repository, which is never run
POINTER = b"version https://git-lfs.github.com/spec/"  # the first bytes of a file that `git lfs pull` is to replace
SMALLER = "choose a smaller model in the profile's models"


def check_model_folder(folder: Path, name: str, prefix_token: str | int | None = None) -> None:
    """Refuse a folder that is no language model with weights and tokenizer that fit each other.

    Args:
        name: what the user calls the folder, for the error.
        prefix_token: the profile's, see `require_prefix_token`.

    Raises:
        DataError: a file is missing, unreadable or a pointer of git-lfs; the weights are quantised, or no safetensors;
            the model is no language model; its tokenizer has more ids than it has rows; or the prefix token is unfit.
    """
    for file in ("config.json", "tokenizer.json"):
        if not (folder / file).is_file():
            raise DataError(
                f"{name} has no {file}", fix="use a folder that `save_pretrained` wrote, tokenizer included"
            )
    _refuse_pointers(folder, name)
    for path in sorted(folder.glob("*config.json")):
        read_settings(path, name)
    config = read_settings(folder / "config.json", name)
    if not isinstance(config.get("vocab_size"), int):
        raise DataError(
            f"{name} is no language model of text alone",
            "its config.json has no `vocab_size` at the top, as those of multimodal models have none",
            "use a checkpoint of the language model itself",
        )
    _check_weights(folder, name, config)
    tokenizer = load_tokenizer(folder)
    require_rows(tokenizer, config["vocab_size"], name)
    require_prefix_token(config, tokenizer, name, prefix_token)


def _refuse_pointers(folder: Path, name: str) -> None:
    """Refuse what a clone without git-lfs has in place of large files."""
    for path in filter(Path.is_file, sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                what = f"{path.name} of {name} is the pointer that git-lfs keeps in place of a large file"
                raise DataError(what, fix=f"run: cd {folder} && git lfs install && git lfs pull")


def _check_weights(folder: Path, name: str, config: dict[str, Any]) -> None:
    if config.get("quantization_config") is not None:
        method = config["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        _refuse_quantised(name, f"its config.json has `quantization_config`, method {method}")
    if named := config.get("transformers_weights"):
        what, fix = f"the config.json of {name} names a file of weights, {named}", f"rename that file to {WEIGHTS}"
        raise DataError(what, fix=f"{fix}, and leave out the key `transformers_weights`")
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if not weight_files(folder):
        if not found:
            raise DataError(
                f"{name} has no *.safetensors",
                "weights in other formats are pickles, and loading one can run any code",
                "convert it: load it where you trust it, then save_pretrained()",
            )
        raise DataError(
            f"{name} has neither {WEIGHTS} nor {WEIGHTS_INDEX}",
            "an adapter alone is no model" if "adapter_model.safetensors" in found else f"it has {shown(found)}",
            "merge an adapter into its base, or load the model where you trust it; then save_pretrained()",
        )
    if packed := packed_weight(folder):
        _refuse_quantised(name, f"its weight {packed}")


def _refuse_quantised(name: str, why: str) -> None:
    raise DataError(f"the weights of {name} are quantised", why, "use the checkpoint that it was quantised from")


def read_settings(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        DataError: it is not one, or not UTF-8; names the file and the model.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        raise DataError(f"the {path.name} of {name} is not JSON", str(error), "save the model again") from error
    if not isinstance(content, dict):
        what = f"the {path.name} of {name} is not an object but a {type(content).__name__}"
        raise DataError(what, fix="save the model again")
    return content


def copy_model_folder(source: Path, name: str, output: Path, prefix_token: str | int | None = None) -> None:
    """Copy the files of a model from the top of `source` to `output`, and say what is left behind.

    Args:
        prefix_token: the profile's; it becomes the copy's `bos_token_id`, with which every window begins.

    Raises:
        DataError: see `check_model_folder`; or transformers does not have such a model.
        ResourceError: the disk cannot take them.
    """
    check_model_folder(source, name, prefix_token)
    config = read_settings(source / "config.json", name)
    _require_model_type(config, name)
    output.mkdir(parents=True, exist_ok=True)
    files = model_files(source)
    require_space(output, sum(path.stat().st_size for path in files), name, SMALLER)
    for path in files:
        shutil.copyfile(path, output / path.name)
    for path in sorted(output.glob("*config.json")):
        settings = read_settings(path, name)
        if settings.pop(CODE_KEY, None) is not None:
            write_json(path, settings)
            log(f"models: `{CODE_KEY}` in the {path.name} of {name} is left out: transformers' own code is used")
    if prefix_token is not None:
        set_prefix_token(output, prefix_token)
    _say_left_out(source, files, name)


def _require_model_type(config: dict[str, Any], name: str) -> None:
    """Refuse a model that transformers cannot open by itself."""
    # imported here: it takes seconds, which `check` does not need
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        code = f"; its config.json has `{CODE_KEY}`, and code from a model repository is never run"
        raise DataError(
            f"{name} needs Python code of its own" if CODE_KEY in config else f"{name} cannot be opened",
            f"transformers has no causal language model of `model_type` {kind}{code if CODE_KEY in config else ''}",
            "use a model whose architecture is part of transformers",
        )


def model_files(folder: Path) -> list[Path]:
    """The files of a model at the top of its folder, sorted by name: of safetensors, its own weights alone.

    Raises:
        DataError: see `weight_files`.
    """
    weights = weight_files(folder)
    index = {WEIGHTS_INDEX} if folder / WEIGHTS not in weights else set()
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and any(fnmatchcase(path.name, pattern) for pattern in FILE_PATTERNS)
        and not any(fnmatchcase(path.name, pattern) for pattern in FOREIGN_PATTERNS)
        and (path.suffix != ".safetensors" or path in weights)
        and (not path.name.endswith(".safetensors.index.json") or path.name in index)
    ]


def _say_left_out(source: Path, files: list[Path], name: str) -> None:
    others = [path for path in sorted(source.iterdir()) if path not in files]
    if adapters := [path.name for path in others if path.name.startswith("adapter_")]:
        log(f"models: warning: {name} has an adapter beside the model, {shown(adapters)}: the model alone is used")
    foreign = [path.name for path in others if path.suffix == ".safetensors" and path.name not in adapters]
    if foreign:
        log(f"models: {name}: {shown(foreign)} is left out: no file of the weights that transformers reads")
    if others:
        said = f"models: {len(files)} files of {name} are taken, {len(others)} are left out"
        log(f"{said}: {shown([path.name + '/' * path.is_dir() for path in others])}")
