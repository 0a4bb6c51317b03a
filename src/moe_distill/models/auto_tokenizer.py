"""Make AutoTokenizer on a student's folder give the ids of its tokenizer.json, which are the ids that it is trained on.

transformers builds some tokenizers anew from vocabulary and merges, by the class that tokenizer_config.json or the
model's type names, with the rules of that class. So both are asked, on texts in which such rules differ.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from moe_distill.log import log
from moe_distill.models.model_folder import read_settings
from moe_distill.models.prefix_token import prefix_token_id, show
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.utils.files import write_json

# Digits, blanks, quotes, code, line ends, languages, marks, emoji: what rules of splitting treat differently.
TEXTS = (
    "The 1234567 foxes of 2024 cost 3.14159 or 1,000,000; don't they? They'LL, we've.",
    "  two  blanks   three\ttab\n\n\nlines\r\nend \n  ",
    "\u201cquoted\u201d 'single' \"double\" \u2014 and \u2026 so\u00a0on",
    "def f(x_1: int=0x1F) -> None:\n    return {'a': [x**2, -1]}  # noqa\n\n\nclass A:\n\tpass",
    "na\u00efve caf\u00e9 \u6771\u4eac\u306f\u65e5\u672c \ud55c\uad6d\uc5b4 \u0939\u093f\u0928\u094d\u0926\u0940 "
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0e44\u0e17\u0e22 "
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f642\U0001f3f3\ufe0f",
    "x",
    " x",
    "CamelCase snake_case https://example.org/a?b=c&d=1 user@example.org #1 $5 50% a/b\\c",
)
TOLD_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length", "chat_template")
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
MAX_ADDED = 64  # added tokens that are asked for
SAMPLED_IDS = 2000  # whose texts are joined to one text more: what it was trained to merge shows where rules differ


def match_auto_tokenizer(folder: Path) -> None:
    """Change tokenizer_config.json until AutoTokenizer gives the ids of tokenizer.json; say so, or that it does not.

    Also says what AutoTokenizer puts before a text, where that is not the prefix token that windows begin with.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        _match(folder)
    finally:
        logging.set_verbosity(verbosity)


def _match(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    before = path.read_bytes() if path.is_file() else None
    settings = read_settings(path, str(folder)) if path.is_file() else {}
    least = {key: settings[key] for key in TOLD_KEYS if key in settings} | FAST
    fault = first = _difference(folder, tokenizer)
    for changed in (settings | FAST, least):
        if fault:
            write_json(path, changed)
            fault = _difference(folder, tokenizer)
    if fault:
        path.unlink() if before is None else path.write_bytes(before)
        log(
            f"models: warning: {folder}: {first}. The student is trained on the ids of tokenizer.json, which "
            f"{_way_out(folder, tokenizer)} gives"
        )
        return
    if first:
        log(f"models: {path} now names PreTrainedTokenizerFast: with what it said, {first}")
    _say_use(folder, tokenizer)


def _difference(folder: Path, tokenizer: Tokenizer) -> str:
    """How the ids of AutoTokenizer differ from those of tokenizer.json; empty where they do not."""
    try:
        auto = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return differing_ids(auto, tokenizer)
    except Exception as error:  # the classes of transformers raise anything, and so does the Rust library
        return f"AutoTokenizer fails ({' '.join(str(error).split())[:200]})"


def differing_ids(auto: Any, tokenizer: Tokenizer, special: bool = False) -> str:
    """How the ids that a tokenizer of transformers gives differ from another one's; empty where they do not.

    Args:
        special: compare what is read with the special tokens of the post-processor, else without.
    """
    added = [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())[:MAX_ADDED]]
    ids = range(0, tokenizer.get_vocab_size(), 1 + tokenizer.get_vocab_size() // SAMPLED_IDS)
    words = [tokenizer.decode([number]) for number in ids]
    for text in (*TEXTS, *(f"a  {token}  b{token}" for token in added), "".join(words), "1".join(words)):
        found = list(auto(text, add_special_tokens=special)["input_ids"])
        expected = tokenizer.encode(text, add_special_tokens=special).ids
        if found != expected:
            pairs, shorter = enumerate(zip(found, expected, strict=False)), min(len(found), len(expected))
            place = next((n for n, (a, b) in pairs if a != b), shorter)
            return (
                f"AutoTokenizer ({type(auto).__name__}) reads {text[:24]!r} as {len(found)} tokens, tokenizer.json as "
                f"{len(expected)}, other from token {place} on"
            )
    return ""


def _way_out(folder: Path, tokenizer: Tokenizer) -> str:
    try:
        fast = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        works = not differing_ids(fast, tokenizer)
    except Exception:  # as above
        works = False
    return "PreTrainedTokenizerFast.from_pretrained" if works else "tokenizers.Tokenizer.from_file"


def _say_use(folder: Path, tokenizer: Tokenizer) -> None:
    """Say what AutoTokenizer does beyond the ids of a text: tokens that the model has no row for, or another start."""
    auto = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    rows = read_settings(folder / "config.json", str(folder))["vocab_size"]
    if len(auto) > rows:
        log(
            f"models: warning: {folder}: tokenizer_config.json adds tokens, so that AutoTokenizer has {len(auto)} ids; "
            f"the model has {rows} rows: do not give it those"
        )
    prefix, bare = prefix_token_id(folder, tokenizer), tokenizer.encode("x", add_special_tokens=False).ids
    given = list(auto("x")["input_ids"])
    if given != [prefix, *bare]:
        shown = " ".join(str(tokenizer.id_to_token(number)) for number in given)
        log(
            f"models: {folder}: AutoTokenizer reads 'x' as {shown}; in training every window begins with "
            f"{show(tokenizer, prefix)} and nothing else is added: give it so in use"
        )
