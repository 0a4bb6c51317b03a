"""Targets inside a teacher token, against conditioning token by token with Python's bytes."""

import math

import pytest
import torch

from moe_distill.shards.teacher_store import teacher_rows
from moe_distill.targets.inside import MINIMUM_ODDS, InsidePlaces, InsideText, inside_places, inside_target
from moe_distill.teacher.sparsify import sparsify

TEACHER = [
    b"return",
    b"re",
    b"ret",
    b"returns",
    b"restart",
    b"a",
    b"reset",
    b"rat",
    b"r",
    b"remain",
    b"rez",
    b"y",
    b"zoo",
]
STUDENT = [b"r", b"e", b"t", b"urn", b"s", b"start", b"turn", b"a", b"et", b"se", b"m", b"ain"]
FREQUENCIES = [0.04, 0.1, 0.06, 0.02, 0.08, 0.2, 0.05, 0.05, 0.1, 0.1, 0.05, 0.05, 0.1]  # in the text
NOT_KEPT = 3  # of the teacher's tokens, in the shards' tail


def longest(rest: bytes) -> int:
    found = [number for number, token in enumerate(STUDENT) if rest.startswith(token)]
    return max(found, key=lambda number: len(STUDENT[number])) if found else -1


def all_places() -> InsidePlaces:
    numbers: dict[bytes, int] = {}
    places = [(token[:place], token[place:]) for token in TEACHER for place in range(len(token))]
    return inside_places(
        counts_R=torch.tensor([len(token) for token in TEACHER]),
        prefixes_P=torch.tensor([numbers.setdefault(before, len(numbers)) for before, _ in places]),
        student_ids_P=torch.tensor([longest(rest) for _, rest in places]),
        frequencies_R=torch.tensor(FREQUENCIES),
    )


def conditioned(
    probs: list[float], kept: set[int], next_id: int, offset: int, student_id: int, temperature: float
) -> tuple[dict[int, float], float] | None:
    """Student id -> probability, and the residual; None where too little is known."""
    if len(TEACHER[next_id]) <= offset:
        return None
    written = TEACHER[next_id][:offset]
    known = kept | {next_id}
    possible = [t for t in known if TEACHER[t].startswith(written) and len(TEACHER[t]) > offset]
    others = [t for t in range(len(TEACHER)) if t not in known]
    alike = [t for t in others if TEACHER[t].startswith(written) and len(TEACHER[t]) > offset]
    part = sum(FREQUENCIES[t] for t in alike) / sum(FREQUENCIES[t] for t in others)
    if sum(probs[t] for t in possible) < MINIMUM_ODDS * part * sum(probs[t] for t in others):
        return None
    mass = {t: probs[t] ** (1 / temperature) for t in possible}
    total = sum(mass.values()) + part * sum(probs[t] ** (1 / temperature) for t in others)
    result = dict.fromkeys(range(len(STUDENT)), 0.0)
    for t in possible:
        place = student_id if t == next_id else longest(TEACHER[t][offset:])
        if place >= 0:
            result[place] += mass[t] / total
    return {s: p for s, p in result.items() if p}, 1.0 - sum(result.values())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_target_inside_a_token_is_the_conditioned_distribution(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    next_ids = torch.randint(len(TEACHER), (400,), generator=generator)
    logits = 2.0 * torch.randn(400, len(TEACHER), generator=generator)
    logits[torch.arange(400), next_ids] += 2.0  # or nothing is known of most
    text = InsideText(
        next_ids,
        torch.randint(1, 5, (400,), generator=generator),
        torch.randint(len(STUDENT), (400,), generator=generator),
    )
    k = len(TEACHER) - NOT_KEPT
    records = sparsify(logits, next_ids, k, 0, torch.zeros(400))
    target, is_known = inside_target(teacher_rows(vars(records), NOT_KEPT), text, all_places(), temperature)
    outcomes = []
    for row in range(400):
        expected = conditioned(
            logits[row].double().softmax(-1).tolist(),
            set(records.topk_ids[row].tolist()),
            int(next_ids[row]),
            int(text.offsets[row]),
            int(text.student_ids[row]),
            temperature,
        )
        assert bool(is_known[row]) == (expected is not None)
        if expected is None:
            continue
        probs, residual = expected
        found = {int(s): float(p) for s, p in zip(target.ids[row], target.probs[row], strict=True) if p > 0}
        assert found == pytest.approx(probs, abs=1e-5)
        assert float(target.residual[row]) == pytest.approx(residual, abs=1e-5)
        outcomes.append((len(probs), residual > 0, int(next_ids[row]) in records.topk_ids[row]))
    several, unmapped, kept = zip(*outcomes, strict=True)
    assert max(several) >= 3  # the cases that the test is for do occur
    assert any(unmapped)
    assert not all(kept)
    assert 50 < len(outcomes) < 350


def test_a_place_beyond_the_token_is_not_known() -> None:
    """In a stretch of several teacher tokens the student may stand in the second of them."""
    rows = teacher_rows(
        vars(sparsify(torch.zeros(1, len(TEACHER)), torch.tensor([2]), 10, 0, torch.zeros(1))), NOT_KEPT
    )
    for offset, expected in ((2, True), (3, False), (50, False)):
        text = InsideText(torch.tensor([2]), torch.tensor([offset]), torch.tensor([0]))
        likely = rows.__class__(**vars(rows) | {"tail_logsumexp": rows.tail_logsumexp.fill_(-math.inf)})
        assert inside_target(likely, text, all_places(), 1.0)[1].tolist() == [expected]
