"""Windows: packed text loses nothing but the ends, measured text nothing at all."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from moe_distill.corpus.documents import read_documents
from moe_distill.errors import DataError
from moe_distill.models.packed_windows import document_batches, packed_tokens, training_batches

from .conftest import AWKWARD, TOKENIZER

END = TOKENIZER.vocabulary_size - 3


@pytest.fixture(scope="module")
def tokenizer(teacher: tuple[Path, dict[str, float]]) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(teacher[0] / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_packed_text_is_every_document_and_its_end(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens_N = packed_tokens(corpus / "train.parquet", tokenizer, END, tmp_path)
    assert not list(tmp_path.iterdir())  # the file that holds them has no name
    texts = [document.text for batch in read_documents(corpus / "train.parquet") for document in batch]
    assert AWKWARD in texts  # spells <|endoftext|>, yet only the packing writes that token
    assert int((tokens_N == END).sum()) == len(texts)
    assert tokenizer.decode(tokens_N.tolist(), skip_special_tokens=False) == "".join(
        text + "<|endoftext|>" for text in texts
    )


def test_one_pass_takes_each_token_once_but_for_the_ends() -> None:
    tokens_N = torch.arange(1000, 1103, dtype=torch.int32)
    batches = list(islice(training_batches(tokens_N, 7, length=10, windows=3, seed=0), 3))
    for inputs_BL, targets_BL in batches:
        assert inputs_BL.shape == targets_BL.shape == (3, 10)
        assert (inputs_BL[:, 0] == 7).all()
        assert torch.equal(inputs_BL[:, 1:], targets_BL[:, :-1])
        assert torch.equal(targets_BL.diff(), torch.ones(3, 9, dtype=torch.long))
    seen = torch.cat([targets_BL.flatten() for _, targets_BL in batches])
    assert len(seen.unique()) == 90


def test_passes_are_cut_and_ordered_anew_from_the_seed() -> None:
    tokens_N = torch.arange(2000, dtype=torch.int32)

    def starts(seed: int) -> list[int]:
        batches = islice(training_batches(tokens_N, 0, length=10, windows=1, seed=seed), 450)
        return [int(targets_BL[0, 0]) for _, targets_BL in batches]

    first = starts(1)
    assert first == starts(1)
    assert first != starts(2)
    assert len({start % 10 for start in first}) == 3  # three passes, each with its offset
    assert first[:199] != sorted(first[:199])


def test_too_few_tokens_for_a_window_are_refused() -> None:
    with pytest.raises(DataError, match=r"19 tokens, too few for windows of 10.*max_length"):
        next(training_batches(torch.zeros(19, dtype=torch.int32), 0, length=10, windows=1, seed=0))


def test_measured_windows_hold_each_token_of_each_text_once(tokenizer: Tokenizer) -> None:
    texts = [AWKWARD, "a", "", "one two three " * 9, "x" * 16]
    rows = []
    for inputs_BL, targets_BL in document_batches(texts, tokenizer, END, length=16, windows=3):
        assert inputs_BL.shape == targets_BL.shape
        assert len(inputs_BL) <= 3
        for inputs_L, targets_L in zip(inputs_BL, targets_BL, strict=True):
            real = targets_L[targets_L != -100]
            assert (targets_L[len(real) :] == -100).all()
            assert inputs_L[: len(real)].tolist() == [END, *real[:-1].tolist()]
            assert (inputs_L >= 0).all()
            rows.append(tuple(real.tolist()))
    expected = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        expected += [tuple(ids[start : start + 16]) for start in range(0, len(ids), 16)]
    assert sorted(rows) == sorted(expected)
