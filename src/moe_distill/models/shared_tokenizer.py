"""The student's tokenizer as other programs load it: every text begins with the token that every window began with.

`tokenizer.json` of the trained folder stays as it is, since the windows carry its hash. The copy that is shared has a
post-processor which puts the prefix token first, and names a class that transformers 4.57 has as well as 5.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from moe_distill.log import log
from moe_distill.models.auto_tokenizer import FAST, TOLD_KEYS, differing_ids
from moe_distill.models.model_folder import read_settings
from moe_distill.models.prefix_token import prefix_token_id
from moe_distill.models.tokenizer_files import TOKENIZER_FILES, copy_tokenizer, load_tokenizer
from moe_distill.utils.files import write_atomically, write_json

READERS = {"AutoTokenizer": AutoTokenizer, "PreTrainedTokenizerFast": PreTrainedTokenizerFast}
SECOND_OPINIONS = ("special_tokens_map.json", "added_tokens.json")  # tokenizer.json has both; these would overrule it


def share_tokenizer(source: Path, folder: Path) -> str:
    """Write the tokenizer files of the model folder `source` to `folder`.

    Returns:
        The class of transformers whose `from_pretrained(folder)` gives prefix token + ids of a window. It is
        AutoTokenizer unless transformers builds another tokenizer for the model's type, which is said.
    """
    tokenizer = load_tokenizer(source)
    prefix = prefix_token_id(source, tokenizer)
    copy_tokenizer(source, folder)
    for name in SECOND_OPINIONS:
        (folder / name).unlink(missing_ok=True)
    shared = begin_with(tokenizer, prefix)
    write_atomically(folder / "tokenizer.json", shared.to_str(pretty=True).encode())
    path = folder / "tokenizer_config.json"
    old = read_settings(path, str(source)) if path.is_file() else {}
    write_json(path, _settings(old, tokenizer, prefix))
    faults = {name: _fault(reader, folder, shared) for name, reader in READERS.items()}
    agreeing = [name for name, fault in faults.items() if not fault]
    if faults["AutoTokenizer"]:
        way_out = agreeing[0] if agreeing else "tokenizers.Tokenizer"
        log(f"student: warning: {faults['AutoTokenizer']}; load the tokenizer with {way_out}, as the card does")
    return agreeing[0] if agreeing else "PreTrainedTokenizerFast"


def begin_with(tokenizer: Tokenizer, prefix: int) -> Tokenizer:
    """A copy of a tokenizer that puts the token `prefix` before a text, and no other special token anywhere."""
    content = json.loads(tokenizer.to_str())
    if tokenizer.encode("x").ids != [prefix, *tokenizer.encode("x", add_special_tokens=False).ids]:
        old = content["post_processor"] or {}
        kept = [each for each in old.get("processors", [old]) if each.get("type") == "ByteLevel"]  # offsets alone
        template = _template(str(tokenizer.id_to_token(prefix)), prefix)
        content["post_processor"] = {"type": "Sequence", "processors": [*kept, template]} if kept else template
    return Tokenizer.from_str(json.dumps(content))


def _template(token: str, number: int) -> dict[str, Any]:
    """A post-processor of tokenizers, `TemplateProcessing`: the token, then the text, and again for a second text."""

    def part(sequence: str, kind: int) -> list[dict[str, Any]]:
        special = {"SpecialToken": {"id": token, "type_id": kind}}
        return [special, {"Sequence": {"id": sequence, "type_id": kind}}]

    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": part("A", 0) + part("B", 1),
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _settings(old: dict[str, Any], tokenizer: Tokenizer, prefix: int) -> dict[str, Any]:
    """A tokenizer_config.json: what the old one says of special tokens, length and chat, under the class of all."""
    settings = {key: old[key] for key in TOLD_KEYS if key in old} | FAST
    settings |= {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
    added = tokenizer.get_added_tokens_decoder().get(prefix)
    if added is not None and added.special:  # as a BOS, any other would be cut out of texts that spell it
        settings |= {"bos_token": added.content, "add_bos_token": True, "add_eos_token": False}
    return settings


def _fault(reader: Any, folder: Path, shared: Tokenizer) -> str:
    """How what a class of transformers reads in `folder` differs from the file; empty where it does not."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        loaded = reader.from_pretrained(folder, local_files_only=True)
        return differing_ids(loaded, shared) or differing_ids(loaded, shared, special=True)
    except Exception as error:  # the classes of transformers raise anything, and so does the Rust library
        return f"{reader.__name__} fails ({' '.join(str(error).split())[:200]})"
    finally:
        logging.set_verbosity(verbosity)


def is_tokenizer_file(path: Path) -> bool:
    """Whether a file of a model folder belongs to its tokenizer."""
    return path.name in TOKENIZER_FILES
