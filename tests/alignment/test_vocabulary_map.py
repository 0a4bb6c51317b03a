"""Teacher ids -> student ids against the slow obvious version (R12)."""

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from moe_distill.alignment.encode import ORDINARY_TEXT, Encoder
from moe_distill.alignment.vocabulary_map import UNMAPPED, exact_vocabulary_share, vocabulary_map
from moe_distill.targets.token_shares import rule_map

from .toy import byte_level, encoder, sentencepiece


def slow_map(teacher: Encoder, student: Encoder, output_rows: int) -> list[int]:
    result = []
    for teacher_id in range(output_rows):
        table = teacher.token_bytes.table
        token = table[teacher_id] if teacher_id < len(table) else None
        result.append(UNMAPPED if token is None else _student_id(token, student))
    return result


def _student_id(token: bytes, student: Encoder) -> int:
    table = list(student.token_bytes.table)
    same = [number for number, entry in enumerate(table) if entry == token]
    pieces = [number for number in same if not (student.tokenizer.id_to_token(number) or "").startswith("<0x")]
    if same:
        return (pieces or same)[0]
    try:
        ids = student.tokenizer.encode(token.decode(), add_special_tokens=False).ids
    except UnicodeDecodeError:
        ids = []
    if ids and b"".join(table[number] or b"?" for number in ids) == token:
        return ids[0]
    prefixes = [entry for entry in table if entry and token.startswith(entry)]
    return _student_id(max(prefixes, key=len), student) if prefixes else UNMAPPED


def pairs() -> dict[str, tuple[Encoder, Encoder]]:
    teacher = byte_level(700)
    teacher.add_tokens([AddedToken("<think>", special=False)])
    teacher.add_special_tokens([AddedToken("<mask>", special=True)])
    teacher_encoder = encoder(teacher, "teacher")
    lossy = byte_level(70, text="sleeps; é runs over a brown jumps. " + ORDINARY_TEXT, full_alphabet=False)
    return {
        "full": (teacher_encoder, encoder(byte_level(300, digits=True), "student")),
        "lossy": (teacher_encoder, encoder(lossy, "student")),
        "sentencepiece": (teacher_encoder, encoder(sentencepiece("prepend"), "student")),
        "from sentencepiece": (encoder(sentencepiece("metaspace"), "teacher"), encoder(byte_level(300), "student")),
    }


@pytest.mark.parametrize("name", ["full", "lossy", "sentencepiece", "from sentencepiece"])
def test_r12_map_equals_the_slow_map(name: str) -> None:
    teacher, student = pairs()[name]
    rows = len(teacher.token_bytes.table) + 7
    found = vocabulary_map(teacher, student, rows)
    assert found.dtype == np.int32
    assert found.tolist() == slow_map(teacher, student, rows)


def test_r12_every_rule_is_used_by_the_toy_pair() -> None:
    teacher, student = pairs()["lossy"]
    found = vocabulary_map(teacher, student, len(teacher.token_bytes.table) + 7)
    known = student.token_bytes.by_bytes()
    used = dict.fromkeys(("exact", "segmentation", "prefix", "nothing"), 0)
    for token, number in zip(teacher.token_bytes.table, found, strict=False):
        if token in known:
            used["exact"] += 1
        elif token and number >= 0:
            spelled = all(token[place : place + 1] in known for place in range(len(token)))
            used["segmentation" if spelled and _is_text(token) else "prefix"] += 1
        elif token:
            used["nothing"] += 1
    assert min(used.values()) >= 1, used


def test_r12_tokens_with_the_same_bytes_map_to_each_other() -> None:
    teacher, student = pairs()["full"]
    found = vocabulary_map(teacher, student, len(teacher.token_bytes.table))
    shared = [n for n, token in enumerate(teacher.token_bytes.table) if token in student.token_bytes.table and token]
    assert len(shared) > 256
    for number in shared:
        assert student.token_bytes.table[found[number]] == teacher.token_bytes.table[number]


def test_r12_ids_without_text_map_to_nothing() -> None:
    teacher, student = pairs()["full"]
    rows = len(teacher.token_bytes.table) + 7
    found = vocabulary_map(teacher, student, rows)
    assert len(found) == rows
    assert (found[-7:] == UNMAPPED).all()
    assert found[teacher.tokenizer.token_to_id("<mask>")] == UNMAPPED
    assert found[teacher.tokenizer.token_to_id("<|endoftext|>")] == UNMAPPED
    assert found[teacher.tokenizer.token_to_id("<think>")] == student.tokenizer.token_to_id("<")


@pytest.mark.parametrize("name", ["full", "lossy", "sentencepiece", "from sentencepiece"])
def test_r12_mass_moves_whole_and_only_between_tokens(name: str) -> None:
    """Random teacher distributions, moved id by id, against the stored map as training uses it."""
    teacher, student = pairs()[name]
    table, n_student = teacher.token_bytes.table, len(student.token_bytes.table)
    rows = len(table) + 7
    found = rule_map(torch.from_numpy(vocabulary_map(teacher, student, rows)).long())
    probs = torch.distributions.Dirichlet(torch.full((rows,), 0.1)).sample((5,))
    slow = torch.zeros(5, n_student, dtype=torch.float64)
    kept_apart = torch.zeros(5, dtype=torch.float64)
    for teacher_id, student_id in enumerate(slow_map(teacher, student, rows)):
        if student_id == UNMAPPED:
            kept_apart += probs[:, teacher_id]
        else:
            slow[:, student_id] += probs[:, teacher_id]
    mapped = found.likeliest >= 0
    moved = torch.zeros(5, n_student).index_add_(1, found.likeliest[mapped], probs[:, mapped])
    assert torch.allclose(moved.double(), slow, atol=1e-6)
    assert torch.allclose(moved.sum(1).double() + kept_apart, torch.ones(5).double(), atol=1e-6)
    without_text = [number for number, token in enumerate(student.token_bytes.table) if token is None]
    assert without_text
    assert (moved[:, without_text] == 0).all()
    silent = torch.zeros(1, rows)
    silent[0, [number for number in range(rows) if number >= len(table) or table[number] is None]] = 1
    assert torch.zeros(1, n_student).index_add_(1, found.likeliest[mapped], silent[:, mapped]).sum() == 0


def test_exact_share_counts_the_students_tokens_that_the_teacher_has() -> None:
    teacher, student = pairs()["full"]
    shared = sum(token is not None and token in teacher.token_bytes.table for token in student.token_bytes.table)
    assert 0 < shared < len(student.token_bytes.table)
    assert exact_vocabulary_share(teacher, student) == shared / len(student.token_bytes.table)
    assert exact_vocabulary_share(student, student) == (len(student.token_bytes.table) - 1) / len(
        student.token_bytes.table
    )  # its one special token has no bytes


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
