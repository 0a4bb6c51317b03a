"""The vocabulary map is computed once for two tokenizers, and a broken copy is never used."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from moe_distill.alignment import map_cache as map_store
from moe_distill.alignment.encode import Encoder
from moe_distill.alignment.map_cache import write_vocabulary_map
from moe_distill.alignment.vocabulary_map import first_student_ids, vocabulary_map
from moe_distill.errors import DataError
from moe_distill.shards.vocabulary_store import read_merges, read_tokenizer, read_vocabulary_map
from moe_distill.shards.window_store import STUDENT_WINDOWS, WindowStore
from moe_distill.targets.next_token_counts import load_vocabulary_map
from moe_distill.targets.token_shares import MAX_STUDENT_TOKENS
from tests.shards.forge import forge_column

from .toy import TEXT, byte_level, encoder, make_split, unigram

ENCODERS = encoder(byte_level(500), "teacher"), encoder(byte_level(300, digits=True), "student")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The output rows of each map that is really computed."""
    calls: list[int] = []

    def counted(teacher: Encoder, student: Encoder, output_rows: int) -> np.ndarray:
        calls.append(output_rows)
        return vocabulary_map(teacher, student, output_rows)

    monkeypatch.setattr(map_store, "vocabulary_map", counted)
    return calls


def write(root: Path, encoders: tuple[Encoder, Encoder] = ENCODERS, rows: int = 600) -> list[int]:
    models = root / "teacher", root / "student"
    for folder, owner in zip(models, encoders, strict=True):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
        owner.tokenizer.save(str(folder / "tokenizer.json"))
    write_vocabulary_map(encoders, *models, root / "map")
    return read_vocabulary_map(root / "map").tolist()


def test_the_map_of_the_same_tokenizers_is_computed_once(root: Path, computed: list[int]) -> None:
    assert write(root) == write(root) == vocabulary_map(*ENCODERS, 600).tolist()
    assert computed == [600]


def test_the_students_merges_lie_beside_the_map_in_the_order_of_their_ranks(root: Path) -> None:
    write(root)
    merges, n_ids = read_merges(root / "map")
    description = json.loads(ENCODERS[1].tokenizer.to_str())["model"]
    token_of = {number: token for token, number in description["vocab"].items()}
    assert n_ids == len(token_of)
    found = zip(merges.lefts.tolist(), merges.rights.tolist(), merges.results.tolist(), strict=True)
    expected = [[left, right, left + right] for left, right in description["merges"]]
    assert [[token_of[number] for number in row] for row in found] == expected
    assert len(expected) > 20


def test_the_students_tokenizer_lies_beside_them_with_the_bytes_of_its_ids(root: Path) -> None:
    write(root)
    found = read_tokenizer(root / "map")
    assert found is not None
    assert Tokenizer.from_str(found[0]).to_str() == ENCODERS[1].tokenizer.to_str()
    assert found[1] == [token or b"" for token in ENCODERS[1].token_bytes.table]
    assert b"\xe6" in found[1], "a byte beyond int8"


def test_training_asks_the_tokenizer_that_encoded_the_windows(root: Path) -> None:
    write(root)
    make_split([TEXT], *ENCODERS, root / "windows")
    found = load_vocabulary_map(root / "map", WindowStore(root / "windows/student", STUDENT_WINDOWS))
    assert found.merges is not None
    assert found.merges.trials is not None
    special = "<|endoftext|>"
    tokenizers = found.merges.trials.tokenizer, ENCODERS[1].tokenizer
    read, expected = (tokenizer.encode(special, add_special_tokens=False).ids for tokenizer in tokenizers)
    assert read == expected
    assert len(read) > 1, "a special token is read as text"


def test_what_the_student_reads_inside_a_token_is_counted(root: Path) -> None:
    """Beside the rule, once: what follows in the text where the same bytes are left of a token, or are one."""
    write(root)
    make_split([TEXT + "the;fox;brown;ox;" * 5], *ENCODERS, root / "windows")
    lengths = torch.from_numpy(ENCODERS[1].token_bytes.lengths)

    def with_others(token_ids: torch.Tensor) -> None:
        """Every third token is another of as many bytes: the rule alone would not do."""
        for place in range(0, len(token_ids), 3):
            as_long = (lengths == lengths[token_ids[place]]).nonzero().squeeze(1)
            token_ids[place] = as_long[place % len(as_long)]

    forge_column(root / "windows/student", 0, "token_ids", with_others)
    store = WindowStore(root / "windows/student", STUDENT_WINDOWS)
    found = load_vocabulary_map(root / "map", store, inside_tokens=True).beginnings
    assert found is not None
    assert len(found.n_bytes) == 600, "rows of the output matrix beyond the tokenizer's ids have no bytes"
    table = ENCODERS[0].token_bytes.table
    names = ("last_teacher_ids", "last_teacher_bytes", "next_teacher_ids", "token_ids")
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    number_of = {
        token[n_read:]: int(found.rests[found.places(torch.tensor(number), torch.tensor(n_read))])
        for number, token in enumerate(table)
        if token
        for n_read in range(1, len(token))
    }
    several = 0
    columns = [torch.cat(list(store.reader.columns(name))).tolist() for name in names]
    for last_id, n_read, _, student_id in zip(*columns, strict=True):
        if rest := (table[last_id] or b"")[n_read:] if last_id >= 0 else b"":
            counts[number_of[rest]][student_id] += 1
    for _, _, next_teacher_id, student_id in zip(*columns, strict=True):
        if next_teacher_id >= 0 and table[next_teacher_id] in number_of:
            counts[number_of[table[next_teacher_id] or b""]][student_id] += 1
    for rest, number in number_of.items():
        counts[number][int(first_student_ids(ENCODERS[1], [rest])[0])] += 1
        ids, shares = (each[number].tolist() for each in (found.rest_map.student_ids, found.rest_map.log_shares.exp()))
        expected = {student_id: n / counts[number].total() for student_id, n in counts[number].items()}
        told = {student_id: share for student_id, share in zip(ids, shares, strict=True) if share}
        if len(expected) <= MAX_STUDENT_TOKENS:
            assert told == pytest.approx(expected)
            several += len(expected) > 1
    assert several > 10


def test_a_student_without_bpe_has_no_merges(root: Path) -> None:
    write(root, (ENCODERS[0], encoder(unigram(), "student")))
    merges, _ = read_merges(root / "map")
    assert len(merges.results) == 0
    assert read_tokenizer(root / "map") is None


def test_another_tokenizer_or_another_number_of_rows_has_its_own_map(root: Path, computed: list[int]) -> None:
    others = [(ENCODERS, 601), (ENCODERS[::-1], 600), ((ENCODERS[0], ENCODERS[0]), 600)]
    first = write(root)
    for encoders, rows in others:
        assert write(root, encoders, rows) == vocabulary_map(*encoders, rows).tolist()
    assert write(root) == first
    assert computed == [600, 601, 600, 600]


@pytest.mark.parametrize("damage", ["bit", "missing file", "missing index"])
def test_a_broken_copy_is_named_and_computed_again(
    root: Path, computed: list[int], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    expected = write(root)
    (kept,) = (path for path in (root / ".work/vocabulary_map").iterdir() if path.is_dir())
    shard = kept / "shard_00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    if damage == "bit":
        shard.write_bytes(content)
    else:
        (shard if damage == "missing file" else kept / "index.json").unlink()
    assert write(root) == expected
    assert computed == [600, 600]
    assert str(kept) in capsys.readouterr().out
    assert write(root) == expected
    assert computed == [600, 600]


def test_another_models_tokenizer_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"teacher has 300 output rows and a tokenizer of \d+ ids"):
        write(root, rows=300)
