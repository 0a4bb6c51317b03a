"""The exact targets of benchmarks/exact_search.py against every continuation of a toy teacher, one by one."""

from itertools import product

import numpy as np
import pytest
import torch
from exact_search import Limits, Place, Reader, Search, Teacher
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.token_bytes import token_bytes

TABLE = (None, b"a", b"b", b"ab", b"bc", b" a", b" ", b"c")
STUDENT_IDS = {token: number for number, token in enumerate(("a", "b", "c", "Ġ", "ab", "abc", "Ġa", "bc"))}
DEPTH = 5
PLACES = [
    Place(1, b"", (), (1, 4)),
    Place(1, b"a", (STUDENT_IDS["a"],), (3, 6)),
    Place(1, b" a", (STUDENT_IDS["Ġa"],), (5, 4)),
    Place(1, b"ab", (STUDENT_IDS["Ġ"], STUDENT_IDS["ab"]), (3, 6)),
]


class MarkovTeacher(Teacher):
    """Whose next token depends on its last one alone."""

    def __init__(self) -> None:
        self.table, self._fitting = TABLE, {}
        transitions = np.random.default_rng(0).dirichlet(np.ones(len(TABLE) - 1), len(TABLE))
        self.transitions = np.concatenate([np.zeros((len(TABLE), 1)), transitions], axis=1)

    def after(self, context: Tensor, rows: list[int], paths: list[tuple[int, ...]]) -> NDArray[np.float64]:
        last = [path[-1] if path else int(context[row]) for row, path in zip(rows, paths, strict=True)]
        return self.transitions[last]


def student() -> Encoder:
    merges = [("a", "b"), ("ab", "c"), ("Ġ", "a"), ("b", "c")]
    tokenizer = Tokenizer(models.BPE(vocab=STUDENT_IDS, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Encoder(tokenizer, token_bytes(tokenizer, "toy"), 0, "toy")


def by_enumeration(teacher: MarkovTeacher, encoder: Encoder, place: Place, last: int) -> NDArray[np.float64]:
    """Of all continuations of DEPTH tokens, those that spell what is written and leave the student's tokens alone."""
    target = np.zeros(len(STUDENT_IDS))
    table = encoder.token_bytes.table
    before = b"".join(table[number] or b"" for number in place.before)
    for path in product(range(1, len(TABLE)), repeat=DEPTH):
        spelled = b"".join(TABLE[number] or b"" for number in path)
        if spelled.startswith(place.written):
            ids = encoder.tokenizer.encode((before + spelled[len(place.written) :]).decode()).ids
            n_before = len(place.before)
            if tuple(ids[:n_before]) == place.before:
                steps = zip((last, *path), path, strict=False)
                target[ids[n_before]] += np.prod([teacher.transitions[step] for step in steps])
    shares: NDArray[np.float64] = target / target.sum()
    return shares


@pytest.mark.parametrize("number", range(len(PLACES)))
def test_is_the_share_of_all_continuations(number: int) -> None:
    teacher, encoder = MarkovTeacher(), student()
    search = Search(teacher, Reader(encoder), [PLACES[number]], Limits(0.0, 0.0, DEPTH))
    search.search(torch.tensor([0, 2, 7]))
    found = search.target_NV[0] / search.target_NV[0].sum()
    assert found == pytest.approx(by_enumeration(teacher, encoder, PLACES[number], 2), abs=1e-12)
    assert (found > 0.0).sum() > 1


def test_paths_in_one_pass_are_those_of_a_pass_each() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TABLE), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    context, rows, paths = torch.tensor([0, 3, 1, 2, 5]), [0, 4, 2, 3], [(4,), (6, 1, 2), (), (7, 7)]
    found = Teacher(model, TABLE).after(context, rows, paths)
    for row, path, probs_V in zip(rows, paths, found, strict=True):
        ids = torch.cat([context[: row + 1], torch.tensor(path, dtype=torch.int64)])
        expected_V = model(ids[None]).logits[0, -1].double().softmax(-1)
        assert probs_V == pytest.approx(expected_V.detach().numpy(), abs=1e-6)
