"""Which tokens may follow one another, against the tokenizers library itself, every pair of a small vocabulary."""

import json
import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from moe_distill.alignment.bpe_merges import merges_of
from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.token_bytes import token_bytes
from moe_distill.shards.vocabulary_store import Merges
from moe_distill.targets.canonical import (
    MOST_GONE,
    NO_TOKEN,
    MergeRules,
    may_follow,
    merge_rules,
    noncanonical,
    stays_apart,
    with_text,
)
from moe_distill.targets.neighbour_trials import NeighbourTrials
from moe_distill.targets.sparse_rows import Entries, pair_keys

WORDS = ["the", "configuration", "configure", "con", "figures", "aaaa", "banana", "nab", "tion", "action"]


def trained(seed: int, alphabet: str, vocabulary: int) -> Tokenizer:
    """A byte-level BPE; without GPT-2's splitting rules nothing but its merges decides."""
    generator = random.Random(seed)
    letters = ["".join(generator.choices(alphabet, k=generator.randint(1, 12))) for _ in range(400)]
    texts = [" ".join(generator.choices(WORDS + letters, k=8)) for _ in range(200)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False))
    return tokenizer


def encoder(tokenizer: Tokenizer) -> Encoder:
    """Of a tokenizer that knows few letters, which `make_encoder` would refuse."""
    return Encoder(tokenizer, token_bytes(tokenizer, "toy"), 0, "toy")


def rules_of(tokenizer: Tokenizer) -> MergeRules:
    return merge_rules(merges_of(encoder(tokenizer)), tokenizer.get_vocab_size())


@pytest.mark.parametrize(("seed", "alphabet"), [(0, "ab"), (1, "abcdefgh"), (2, "aaaab")])
def test_every_pair_is_judged_as_the_tokenizer_encodes_it(seed: int, alphabet: str) -> None:
    tokenizer = trained(seed, alphabet, 260)
    n_ids = tokenizer.get_vocab_size()
    texts = [tokenizer.decode([number]) for number in range(n_ids)]
    pairs = [(first, second) for first in range(n_ids) for second in range(n_ids)]
    encoded = tokenizer.encode_batch_fast([texts[first] + texts[second] for first, second in pairs])
    expected = torch.tensor([each.ids == list(pair) for each, pair in zip(encoded, pairs, strict=True)])
    found = stays_apart(rules_of(tokenizer), *torch.tensor(pairs).T)
    assert 0.02 < float((~expected).float().mean()) < 0.98
    assert torch.equal(found, expected)


def test_a_token_that_several_merges_make_leaves_no_rules() -> None:
    tokenizer = trained(0, "ab", 260)
    description = json.loads(tokenizer.to_str())
    made = next(pair for pair in description["model"]["merges"] if len("".join(pair)) == 3)
    other = [made[0] + made[1][0], made[1][1:]] if len(made[1]) > 1 else [made[0][0], made[0][1:] + made[1]]
    description["model"]["vocab"].setdefault("".join(other[:1]), len(description["model"]["vocab"]))
    description["model"]["vocab"].setdefault("".join(other[1:]), len(description["model"]["vocab"]))
    description["model"]["merges"].append(other)
    again = Tokenizer.from_str(json.dumps(description))
    assert len(merges_of(encoder(tokenizer)).results) > 10
    assert len(merges_of(encoder(again)).results) == 0


def test_marks_inside_a_word_leave_no_rules() -> None:
    """The merges of such a tokenizer do not spell what they make."""
    model = models.BPE({"a": 0, "##b": 1, "ab": 2}, [("a", "##b")], continuing_subword_prefix="##")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.ByteLevel()
    assert len(merges_of(encoder(tokenizer)).results) == 0


# ids 0 a, 1 b, 2 c, 3 ab, 4 abc
MERGES = Merges(torch.tensor([0, 3]), torch.tensor([1, 2]), torch.tensor([3, 4]))
FIRST, SECOND = torch.tensor([0, 3, 1, 0, 0]), torch.tensor([1, 2, 0, 0, 1])


def test_what_the_rules_deny_the_tokenizer_is_asked_and_nothing_else() -> None:
    """Of digits in groups of three the merges would join two; inside a group nothing cuts."""
    tokenizer = Tokenizer(models.BPE())
    three = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\p{L}+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([three, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"{number:03}" for number in range(1000)]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1200, show_progress=False))
    spellings = [tokenizer.decode([number]).encode() for number in range(tokenizer.get_vocab_size())]
    trials, rules = NeighbourTrials(tokenizer, spellings), rules_of(tokenizer)
    pairs = [("123", "456"), ("456", "789"), ("12", "3"), ("999", "99")]
    previous, following = torch.tensor([[spellings.index(text.encode()) for text in pair] for pair in pairs]).T
    assert may_follow(rules, previous, following).tolist() == [False] * 4
    found = may_follow(replace(rules, trials=trials), previous, following)
    assert found.tolist() == [True, True, False, True]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert may_follow(replace(rules, trials=trials), nothing, nothing).shape == (0,)


def test_what_the_text_has_may_follow() -> None:
    rules = merge_rules(MERGES, 5)
    assert may_follow(rules, FIRST, SECOND).tolist() == [False, False, True, True, False]
    met = with_text(rules, pair_keys(torch.tensor([0, 1]), torch.tensor([1, 0])))
    assert may_follow(met, FIRST, SECOND).tolist() == [True, False, True, True, True]
    assert len(met.met) == 1, "a pair that the rules allow need not be kept"


def entries(*probs: list[float]) -> Entries:
    """Rows of equal length, of ids 0, 1, ..."""
    table = torch.tensor(probs)
    rows, ids = torch.ones_like(table).nonzero(as_tuple=True)
    return Entries(rows, ids, table.log().flatten())


def test_entries_that_cannot_follow_go_and_the_next_token_stays() -> None:
    previous = torch.tensor([0, 0, 1])  # after a no b; after b anything
    asked = entries(*[[0.3, 0.2, 0.5]] * 3)
    gone = noncanonical(merge_rules(MERGES, 5), asked, previous, torch.tensor([0, 1, 1]))
    assert gone.view(3, 3).tolist() == [[False, True, False], [False] * 3, [False] * 3]


def test_anything_may_follow_where_no_text_stands_before() -> None:
    asked = entries(*[[0.3, 0.2, 0.5]] * 2)
    gone = noncanonical(merge_rules(MERGES, 5), asked, torch.tensor([NO_TOKEN, 0]), None)
    assert gone.view(2, 3).tolist() == [[False] * 3, [False, True, False]]


def test_small_entries_are_not_asked_and_a_row_is_never_emptied() -> None:
    previous = torch.zeros(3, dtype=torch.int64)
    most, more = MOST_GONE - 0.01, MOST_GONE + 0.01
    asked = entries([1 - 5e-4, 5e-4], [1 - most, most], [1 - more, more])
    gone = noncanonical(merge_rules(MERGES, 5), asked, previous, None)
    assert gone.view(3, 2).tolist() == [[False, False], [False, True], [False, False]]
    knowing = noncanonical(merge_rules(MERGES, 5), asked, previous, torch.zeros_like(previous))
    assert knowing.view(3, 2).tolist() == [[False, False], [False, True], [False, True]]
    in_the_tail = entries([0.6 * (1 - more), 0.6 * more])  # of the entries, not of 1
    assert not noncanonical(merge_rules(MERGES, 5), in_the_tail, previous[:1], None).any()


def test_rows_without_entries() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = Entries(nothing, nothing, nothing.float())
    assert noncanonical(merge_rules(MERGES, 5), empty, torch.tensor([0, 1]), None).shape == (0,)
