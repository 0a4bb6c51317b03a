"""A trained student as a folder that others load: its weights, a configuration for older programs too, a tokenizer."""

import json
from pathlib import Path
from typing import Any

from moe_distill.models.prefix_token import prefix_token_id
from moe_distill.models.shared_tokenizer import is_tokenizer_file, share_tokenizer
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.utils.files import link_or_copy, write_json

# What transformers 5 writes under other names than 4.57 reads, which takes its defaults else: rotary embeddings, which
# stood at the top of config.json, and how many experts there are.
ROTARY = "rope_parameters"
OLD_KEYS = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
OLD_KEYS_OF = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
EXPERTS_OF = {"qwen3_moe": ("num_local_experts", "num_experts")}


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
    """A config.json whose rotary embeddings and experts stand there by the names of transformers 4.57 too."""
    kind, rotary, older = str(config.get("model_type")), config.get(ROTARY), dict[str, Any]()
    if isinstance(rotary, dict):
        if kind == "gemma3_text" and {"full_attention", "sliding_attention"} <= rotary.keys():
            older = _older_rotary(kind, rotary["full_attention"])
            older["rope_local_base_freq"] = rotary["sliding_attention"]["rope_theta"]
        elif "rope_theta" in rotary:  # else of several kinds of layers
            older = _older_rotary(kind, rotary)
    new, old = EXPERTS_OF.get(kind, ("", ""))
    if new in config:
        older[old] = config[new]
    return older | config


def _older_rotary(kind: str, rotary: dict[str, Any]) -> dict[str, Any]:
    names = OLD_KEYS_OF.get(kind, OLD_KEYS)
    older = {names[key]: rotary[key] for key in names if key in rotary}
    if rotary.get("rope_type", "default") != "default":
        older["rope_scaling"] = {key: value for key, value in rotary.items() if key not in names}
    if kind == "phi3" and "rope_scaling" in older:  # 4.57 wants these three and no other
        factors = {key: rotary[key] for key in ("short_factor", "long_factor")}
        older["rope_scaling"] = {"type": rotary["rope_type"], **factors}
    return older
