"""A trained student as a folder that others load: its weights, a configuration for older programs too, a tokenizer."""

import json
from pathlib import Path
from typing import Any

from moe_distill.models.prefix_token import prefix_token_id
from moe_distill.models.shared_tokenizer import is_tokenizer_file, share_tokenizer
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.utils.files import link_or_copy, write_json

# The keys of rotary embeddings that transformers had before 5, at the top of config.json; 4.57 takes its defaults else.
ROTARY, OLD_KEYS = "rope_parameters", ("rope_theta", "partial_rotary_factor")


def share_model(source: Path, folder: Path) -> str:
    """Write the model of `source` to `folder`, its weights as hard links where the disk allows it.

    Returns:
        The class of transformers that reads its tokenizer; see `share_tokenizer`.
    """
    prefix = prefix_token_id(source, load_tokenizer(source))
    for path in sorted(source.iterdir()):
        if not is_tokenizer_file(path) and path.name not in ("config.json", "generation_config.json"):
            link_or_copy(str(path), str(folder / path.name))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", older_too(config) | {"bos_token_id": prefix})
    generation = source / "generation_config.json"
    if generation.is_file():
        settings = json.loads(generation.read_text(encoding="utf-8"))
        write_json(folder / generation.name, settings | {"bos_token_id": prefix})
    return share_tokenizer(source, folder)


def older_too(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json whose rotary embeddings stand there by the names of transformers 4.57 too."""
    rotary = config.get(ROTARY)
    if not isinstance(rotary, dict) or "rope_theta" not in rotary:  # absent, or of several kinds of layers
        return config
    older = {key: rotary[key] for key in OLD_KEYS if key in rotary}
    if rotary.get("rope_type", "default") != "default":
        older["rope_scaling"] = {key: value for key, value in rotary.items() if key not in OLD_KEYS}
    return older | config
