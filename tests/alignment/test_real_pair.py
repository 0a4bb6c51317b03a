"""The known figures of Qwen3 -> SmolLM2 (documents of 20,000 characters, windows of 384 tokens)."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_distill.alignment.bpe_merges import merges_of
from moe_distill.alignment.encode import Encoder, encode
from moe_distill.alignment.tokenize import tokenize_split
from moe_distill.alignment.vocabulary_map import UNMAPPED, exact_vocabulary_share, vocabulary_map
from moe_distill.alignment.window_limits import SplitCounts, WindowLimits
from moe_distill.targets.canonical import may_follow, merge_rules, stays_apart
from moe_distill.targets.neighbour_trials import NeighbourTrials
from tests.assets import real_text

from .toy import document

OUTPUT_ROWS = 151936  # of Qwen3's output matrix
DOCUMENT_CHARACTERS = 20_000


LANGUAGES = Path(__file__).parents[1] / "targets/languages.tsv"


def counts_of(name: str, teacher: Encoder, student: Encoder, folder: Path) -> tuple[SplitCounts, int]:
    text = unicodedata.normalize("NFC", real_text(name))
    parts = [text[start : start + DOCUMENT_CHARACTERS] for start in range(0, len(text), DOCUMENT_CHARACTERS)]
    limits = WindowLimits(384, 384, 1 << 20)
    outputs = folder / "teacher", folder / "student"
    documents = [[document(part) for part in parts]]
    split_counts = tokenize_split(documents, teacher, student, limits, *outputs, "t", "s", ("T", "S"))
    return split_counts, len(parts)


@pytest.mark.parametrize(
    ("name", "aligned", "one_to_one"),
    [("wikitext2_test_raw.txt", 0.961, 0.914), ("tinyshakespeare.txt", 0.859, 0.739)],
)
def test_r14_coverage_of_the_real_pair(
    qwen3: Encoder, smollm2: Encoder, tmp_path: Path, name: str, aligned: float, one_to_one: float
) -> None:
    split_counts, documents = counts_of(name, qwen3, smollm2, tmp_path)
    assert documents > 50
    assert split_counts.skipped == []
    assert split_counts.forced_cuts == 0
    assert split_counts.aligned / split_counts.student_tokens == pytest.approx(aligned, abs=0.005)
    assert split_counts.one_to_one / split_counts.student_tokens == pytest.approx(one_to_one, abs=0.005)


def test_r12_vocabulary_map_of_the_real_pair_is_complete(qwen3: Encoder, smollm2: Encoder) -> None:
    found = vocabulary_map(qwen3, smollm2, OUTPUT_ROWS)
    table, student_table = qwen3.token_bytes.table, smollm2.token_bytes.table
    has_text = np.array([token is not None for token in table] + [False] * (OUTPUT_ROWS - len(table)))
    assert found.shape == (OUTPUT_ROWS,)
    assert (found[~has_text] == UNMAPPED).all()
    assert (found[151669:] == UNMAPPED).all()
    unmapped = [table[number] for number in np.flatnonzero((found == UNMAPPED) & has_text)]
    student_bytes = smollm2.token_bytes.by_bytes()
    # bytes that the student cannot spell at all
    assert all(token and token[:1] not in student_bytes for token in unmapped)
    for number in np.flatnonzero(found >= 0):
        token, first = table[number], student_table[found[number]]
        assert token is not None
        assert first is not None
        assert token.startswith(first)


@pytest.mark.parametrize("name", ["smollm2", "qwen3"])
def test_a_real_tokenizer_is_not_denied_what_it_writes(name: str, request: pytest.FixtureRequest) -> None:
    """Smollm2's merges alone join a quote to an s, Qwen3's Thai letters to the marks on them."""
    encoder: Encoder = request.getfixturevalue(name)
    rules = merge_rules(merges_of(encoder), len(encoder.token_bytes.table))
    trials = NeighbourTrials(encoder.tokenizer, [token or b"" for token in encoder.token_bytes.table])
    texts = [real_text("wikitext2_test_raw.txt")[:300_000].encode(), LANGUAGES.read_bytes()]
    ids = torch.from_numpy(encode(encoder, texts).ids)
    previous, following = ids[:-1], ids[1:]
    denied = ~stays_apart(rules, previous, following)
    assert float(denied.float().mean()) > 0.0003
    assert float((~may_follow(replace(rules, trials=trials), previous, following)).float().mean()) < 1e-4
    shuffled = previous, following[torch.randperm(len(following), generator=torch.Generator().manual_seed(0))]
    assert float((~may_follow(replace(rules, trials=trials), *shuffled)).float().mean()) > 0.01


def test_exact_vocabulary_share_of_the_real_pair(qwen3: Encoder, smollm2: Encoder) -> None:
    assert exact_vocabulary_share(qwen3, smollm2) == pytest.approx(0.798, abs=0.0005)
