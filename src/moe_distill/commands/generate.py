"""`moe-distill generate`: a text continued by a student, on the CPU, from local files alone."""

from codecs import getincrementaldecoder
from collections.abc import Iterator
from pathlib import Path

import torch

from moe_distill.alignment.token_bytes import token_bytes
from moe_distill.errors import ConfigError, DataError
from moe_distill.models.prefix_token import prefix_token_id
from moe_distill.models.pretrained import WRITTEN_BY, load_causal_lm
from moe_distill.models.tokenizer_files import load_tokenizer
from moe_distill.utils.files import outside_the_root

# How configurations name the most tokens that a model reads.
LIMITS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@torch.inference_mode()
def generate(text: str, folder: Path, n_tokens: int, temperature: float, seed: int) -> Iterator[str]:
    """Yield pieces of text that follow `text`, as soon as each is known; the first is `text` itself.

    The model reads its prefix token first, as in training. It ends at its end-of-text token, after `n_tokens` tokens,
    or at the most that it can read.

    Args:
        temperature: of the softmax that tokens are drawn from; 0 takes the likeliest one.
        seed: of the draws.

    Raises:
        ConfigError: an option is out of range, or the text is not UTF-8.
        DataError: the folder holds no model, or one of another kind of tokenizer; or the text is too long for it.
    """
    _check_options(text, n_tokens, temperature, seed)
    require_model(folder)
    model, tokenizer = load_causal_lm(folder, torch.float32, torch.device("cpu")), load_tokenizer(folder)
    ids = [prefix_token_id(folder, tokenizer), *tokenizer.encode(text, add_special_tokens=False).ids]
    limit = min((value for name in LIMITS if isinstance(value := getattr(model.config, name, None), int)), default=None)
    if limit is not None and len(ids) >= limit:
        raise DataError(f"the text has {len(ids)} tokens, {folder} reads at most {limit}", fix="give a shorter text")
    ends = model.config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    generator, spelled = torch.Generator().manual_seed(seed), token_bytes(tokenizer, f"of {folder}").table
    decoder = getincrementaldecoder("utf-8")("replace")  # a model may write half a character, and then another
    yield text
    new, cache = torch.tensor([ids]), None
    for _ in range(n_tokens if limit is None else min(n_tokens, limit - len(ids))):
        output = model(input_ids=new, use_cache=True, **({} if cache is None else {"past_key_values": cache}))
        cache = getattr(output, "past_key_values", None)  # some families have none: these read all again
        token = _chosen(output.logits[0, -1].float(), temperature, generator)
        if token in ends:
            return
        ids.append(token)
        new = torch.tensor([[token]] if cache is not None else [ids])
        if piece := decoder.decode((spelled[token] if token < len(spelled) else None) or b""):
            yield piece


def require_model(folder: Path) -> None:
    """Refuse a folder that holds no model, naming the command that makes it.

    Raises:
        DataError: it has no config.json.
    """
    if not (folder / "config.json").is_file():
        what = "holds no model" if folder.is_dir() else "does not exist"
        known = folder.parent == Path("models") and folder.name in WRITTEN_BY
        fix = f"run: dvc repro {WRITTEN_BY[folder.name]}" if known else "give the folder of a model, as models/student"
        if known and not Path("params.yaml").is_file():
            _, _, fix = outside_the_root(Path())
        raise DataError(f"{folder} {what}", fix=fix)


def _check_options(text: str, n_tokens: int, temperature: float, seed: int) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):  # what Python makes of bytes that are not UTF-8
        raise ConfigError("the text is not UTF-8", fix="convert it, as with: iconv -f latin1 -t utf-8")
    if n_tokens < 1:
        raise ConfigError(f"--tokens is {n_tokens}", fix="give 1 or more")
    if not 0.0 <= temperature < float("inf"):
        raise ConfigError(f"--temperature is {temperature}", fix="give 0 (the likeliest token) or more")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed is {seed}", fix="give 0 or more")


def _chosen(logits_V: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0.0:
        return int(logits_V.argmax())
    probs_V = torch.softmax((logits_V - logits_V.max()) / temperature, dim=-1)
    return int(torch.multinomial(probs_V, 1, generator=generator))
