"""What a tokenizer is believed to write side by side, against all that it does write."""

import json
import random
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from moe_distill.alignment.bpe_merges import merges_of
from moe_distill.alignment.encode import Encoder, make_encoder
from moe_distill.targets import neighbour_trials
from moe_distill.targets.canonical import MergeRules, merge_rules, stays_apart
from moe_distill.targets.neighbour_trials import NeighbourTrials

LANGUAGES = Path(__file__).with_name("languages.tsv")
MARK = "\u2581"
LOWER, UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
SHORT, REST = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "gpt4o": [
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SHORT}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SHORT}?|\p{{N}}{{1,3}}|{REST}"
    ],
    "olmo2": [rf"{SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"],
    "qwen": [rf"{SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"],
    "deepseek": [
        r"\p{N}{1,3}",
        r"[一-龥\u3040-\u309f\u30a0-\u30ff]+",
        rf"[!-/:-~][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{REST}",
    ],
    "groups from the right": [
        rf"{SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}(?=(?:\p{{N}}{{3}})*(?:\P{{N}}|$))|{REST}"
    ],
    "gpt2": [r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
}
SENTENCEPIECES = ("metaspace", "gemma")


def numbers(seed: int) -> str:
    generator = random.Random(seed)
    shapes = ("{}", "{},{}", "{}.{}", "({})", '"{}"', "x{} = {}\n", "{}%", "{}:{}")
    lengths = [(generator.randint(1, 12), generator.randint(1, 5)) for _ in range(1500)]
    digits = [["".join(generator.choices("0123456789", k=n)) for n in pair] for pair in lengths]
    return " ".join(generator.choice(shapes).format(*pair) for pair in digits)


def quotes(seed: int) -> str:
    generator = random.Random(seed)
    shapes = ('"{}"', "'{}'", '("{}")', "['{}']", "{}'s", "“{}”", '{{"{}": 1}}', '\\"{}\\"', "don't '{}'!", 'f"{}"')
    words = LANGUAGES.read_text(encoding="utf-8").split()
    return " ".join(generator.choice(shapes).format(generator.choice(words)) for _ in range(1500))


def texts(held_out: bool) -> dict[str, str]:
    """Of each kind; what is held out is another half of the same."""
    sources = sorted(Path(neighbour_trials.__file__).parents[1].rglob("*.py"))[held_out::2]
    found = {"digits": numbers(held_out), "quotes": quotes(held_out), "code": "".join(map(Path.read_text, sources))}
    for line in LANGUAGES.read_text(encoding="utf-8").splitlines():
        language, text = line.split("\t")
        middle = len(text) // 2
        found[language] = text[middle:] if held_out else text[:middle]
    return found


@cache
def student(kind: str) -> Encoder:
    """A BPE of 4,000 tokens behind splitting rules that real models have."""
    tokenizer, special = Tokenizer(models.BPE()), ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), MARK]
    alphabet = [] if kind in SENTENCEPIECES else pre_tokenizers.ByteLevel.alphabet()
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    elif kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", MARK)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(MARK, "merged_with_next")
    else:
        special = ["<|endoftext|>"]
        splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in SPLITS[kind]]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, limit_alphabet=400, show_progress=False
    )
    tokenizer.train_from_iterator(list(texts(held_out=False).values()), trainer)
    if kind in SENTENCEPIECES:
        description = json.loads(tokenizer.to_str())
        description["added_tokens"] = description["added_tokens"][:1]
        description["model"] |= {"unk_token": "<unk>", "byte_fallback": True}
        tokenizer = Tokenizer.from_str(json.dumps(description))
        tokenizer.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return make_encoder(tokenizer, 0, kind)


def rules_of(encoder: Encoder) -> MergeRules:
    return merge_rules(merges_of(encoder), len(encoder.token_bytes.table))


def trials_of(encoder: Encoder) -> NeighbourTrials:
    return NeighbourTrials(encoder.tokenizer, [token or b"" for token in encoder.token_bytes.table])


def denied_by_rules(rules: MergeRules, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    apart = stays_apart(rules, *torch.tensor(pairs).T).tolist()
    return [pair for pair, is_apart in zip(pairs, apart, strict=True) if not is_apart]


@pytest.mark.parametrize("kind", [*SPLITS, *SENTENCEPIECES])
def test_at_most_a_thousandth_of_what_a_tokenizer_writes_is_denied(kind: str) -> None:
    """Of each kind of text and in each language, held out from the tokenizer's training."""
    encoder = student(kind)
    rules, trials = rules_of(encoder), trials_of(encoder)
    assert len(rules.pairs) > 3000 if kind in SPLITS else len(rules.pairs) > 2000
    n_denied = {}
    for name, text in texts(held_out=True).items():
        pairs = list(pairwise(encoder.tokenizer.encode(text, add_special_tokens=False).ids))
        denied = denied_by_rules(rules, pairs)
        wrong = [pair for pair in denied if not trials.ever_written(*pair)]
        assert len(wrong) <= len(pairs) / 1000, (name, [encoder.tokenizer.decode(list(pair)) for pair in wrong])
        n_denied[name] = len(denied) / len(pairs)
    if kind not in ("qwen", "gpt2", "gemma", "metaspace"):
        assert n_denied["digits"] > 0.02, "which the rules alone would deny"


def test_what_a_tokenizer_joins_stays_denied() -> None:
    """Halves of a token that a word is written with: no text has them side by side."""
    encoder = student("olmo2")
    rules, trials, table = rules_of(encoder), trials_of(encoder), encoder.token_bytes.table
    merges = merges_of(encoder)
    pairs = list(zip(merges.lefts.tolist(), merges.rights.tolist(), strict=True))
    # not an "M", which may end "I'M", for that is cut before any letter
    halves = {pair: [table[number] or b"" for number in pair] for pair in pairs}
    words = [pair for pair, (left, right) in halves.items() if len(left) > 2 and (left + right).isalpha()]
    assert denied_by_rules(rules, words) == words
    assert len(words) > 200
    assert not any(trials.ever_written(*pair) for pair in words)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["olmo2", "gpt2", "groups from the right", "gpt4o"])
def test_whatever_stands_in_a_text_of_few_characters_is_allowed(kind: str, seed: int) -> None:
    """All texts of up to six of five characters; a tokenizer that has nearly every short one as a token."""
    characters = random.Random(seed).sample(["a", "B", "1", "'", " ", '"', "s", "\n", "\u0e01", "\u0e31"], 5)
    everything = ["".join(text) for n in range(1, 7) for text in product(characters, repeat=n)]
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in SPLITS[kind]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(random.Random(seed).sample(everything, 3000), trainer)
    encoder = make_encoder(tokenizer, 0, kind)
    encodings = encoder.tokenizer.encode_batch_fast(everything, add_special_tokens=False)
    written = {pair for encoding in encodings for pair in pairwise(encoding.ids)}
    trials, used = trials_of(encoder), sorted({number for pair in written for number in pair})
    wrong = [pair for pair in denied_by_rules(rules_of(encoder), sorted(written)) if not trials.ever_written(*pair)]
    assert len(wrong) <= len(written) / 1000, [tuple(map(tokenizer.decode, ([a], [b]))) for a, b in wrong]
    denied = denied_by_rules(rules_of(encoder), [(first, second) for first in used for second in used])
    assert any(not trials.ever_written(*pair) for pair in denied)


def test_a_token_that_holds_a_part_of_a_character_is_completed() -> None:
    """Thai letters and marks are cut apart, the bytes of either are not."""
    encoder = student("qwen")
    trials, ids = trials_of(encoder), encoder.token_bytes.by_bytes()
    letter, mark = "ก".encode(), "ั".encode()
    part = max((token for token in ids if token and letter.startswith(token) and token != letter), key=len)
    assert trials.ever_written(ids[letter[-1:]], ids[mark[:2]] if mark[:2] in ids else ids[mark[:1]])
    rest = letter[len(part) :]
    assert not trials.ever_written(ids[part], ids[rest if rest in ids else rest[:1]])


def test_a_completed_token_needs_a_cut_before_it() -> None:
    """An "a" is joined to "b" and the first byte of a letter; before a digit, "a" and "b" are apart without a cut."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "bà", "abà"])}  # "à": the byte E0
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "à"), ("a", "bà")]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(SPLITS["qwen"][0]), "isolated")
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([split, byte_level]), decoders.ByteLevel()
    texts = ("ab\u0e50", "ab\u0e01", "1b\u0e01")  # the digit zero and a letter of Thai
    assert [tokenizer.encode(text).tokens[0] for text in texts] == ["a", "abà", "1"]
    assert [tokenizer.encode(text).tokens[1] for text in (texts[0], texts[2])] == ["b", "bà"]
    trials = trials_of(make_encoder(tokenizer, 0, "qwen"))
    assert not trials.ever_written(vocabulary["a"], vocabulary["bà"])
    assert trials.ever_written(vocabulary["1"], vocabulary["bà"])


def test_a_token_without_text_is_never_written() -> None:
    trials = trials_of(student("gpt2"))
    assert not trials.ever_written(0, 100)
    assert not trials.ever_written(100, 0)


def test_a_verdict_depends_on_the_pair_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, and whether or not it is still kept."""
    encoder = student("olmo2")
    generator = random.Random(0)
    n_ids = len(encoder.token_bytes.table)
    pairs = [(generator.randrange(n_ids), generator.randrange(n_ids)) for _ in range(20_000)]
    denied = denied_by_rules(rules_of(encoder), pairs)
    trials, again = trials_of(encoder), trials_of(encoder)
    verdicts = {pair: trials.ever_written(*pair) for pair in denied}
    assert {True, False} == set(verdicts.values())
    monkeypatch.setattr(neighbour_trials, "MOST_KEPT", 3)
    assert {pair: again.ever_written(*pair) for pair in reversed(denied)} == verdicts
    assert len(again._kept) <= 3
