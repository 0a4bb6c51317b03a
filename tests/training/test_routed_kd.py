"""`router_kd` against loops over positions, and against the cached target under the teacher's own gate."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moe_distill.losses.kd import forward_kl
from moe_distill.replay.block import (
    TeacherHead,
    block_input,
    expert_outputs,
    final_hidden,
    gate_logits,
    routed_hidden,
    teacher_mixture,
)
from moe_distill.shards.teacher_store import teacher_rows
from moe_distill.targets.sparse_target import Order, sparse_target
from moe_distill.targets.token_shares import VocabularyMap, rule_map
from moe_distill.teacher.sparsify import sparsify
from moe_distill.training.objective import Student
from moe_distill.training.routed_kd import RoutedText, routed_kd, routed_text
from moe_distill.training.routing import RouterSettings, route
from moe_distill.training.student import gather_runs
from tests.training.conftest import EXPERTS, STUDENT_VOCABULARY, TEACHER_SIZE, TEACHER_VOCABULARY, K, make_batch

N = 7
WEIGHT_VD = torch.randn(STUDENT_VOCABULARY, 16, generator=torch.Generator().manual_seed(9))


def routed(head: TeacherHead, moe_input_NT: Tensor, mixture_NE: Tensor) -> Tensor:
    return routed_hidden(moe_input_NT, expert_outputs(head, block_input(head, moe_input_NT)), mixture_NE)


@pytest.fixture
def vocabulary_map() -> VocabularyMap:
    """Several teacher ids to a student id; five of them to none."""
    student_ids = torch.arange(TEACHER_VOCABULARY) * 7 % 40
    student_ids[::18] = -1
    return rule_map(student_ids)


@pytest.fixture
def text(teacher_head: TeacherHead, vocabulary_map: VocabularyMap) -> RoutedText:
    """What the teacher has cached under its own gate, and a routed state under that same gate.

    The next token is the first kept one, or at every third position one that no kept id stands for.
    """
    generator = torch.Generator().manual_seed(3)
    moe_input_NT = torch.randn(N, TEACHER_SIZE, generator=generator)
    gate = gate_logits(teacher_head, block_input(teacher_head, moe_input_NT))
    routed_NT = routed(teacher_head, moe_input_NT, teacher_mixture(teacher_head, gate))
    logits = final_hidden(teacher_head, routed_NT) @ teacher_head.tensors["output"].T
    records = sparsify(logits, torch.zeros(N, dtype=torch.int64), K, 4, torch.rand(N, generator=generator))
    rows = teacher_rows(vars(records), TEACHER_VOCABULARY - K)
    labels = vocabulary_map.likeliest[rows.topk_ids].amax(-1)
    labels[::3] = STUDENT_VOCABULARY - 1
    states, previous = torch.randn(N, 16, generator=generator), torch.zeros_like(labels)
    return RoutedText(states, routed_NT, previous, labels, rows)


@pytest.mark.parametrize("order", ["temper_then_map", "map_then_temper"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_under_the_teachers_own_gate_the_target_is_the_cached_one(
    teacher_head: TeacherHead, vocabulary_map: VocabularyMap, text: RoutedText, temperature: float, order: Order
) -> None:
    value = routed_kd(text, WEIGHT_VD, teacher_head, vocabulary_map, temperature, order, 100)
    target = sparse_target(text.rows, vocabulary_map, temperature, order, "residual")
    expected = temperature**2 * forward_kl(text.student_ND @ WEIGHT_VD.T, target, temperature)
    torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_another_gate_against_a_loop_over_positions(
    teacher_head: TeacherHead, vocabulary_map: VocabularyMap, text: RoutedText, temperature: float
) -> None:
    text = replace(
        text, routed_NT=text.routed_NT + 0.5 * torch.randn(N, TEACHER_SIZE, generator=torch.Generator().manual_seed(5))
    )
    value = routed_kd(text, WEIGHT_VD, teacher_head, vocabulary_map, temperature, "temper_then_map", 3)
    matrix = teacher_head.tensors["output"].double()
    for n in range(N):
        state = text.routed_NT[n].double()
        state = state / math.sqrt(float(state.square().mean()) + 1e-6)
        cached = dict(
            zip(text.rows.topk_ids[n].tolist(), text.rows.topk_logprobs[n].double().exp().tolist(), strict=True)
        )
        powers = {i: math.exp(float(matrix[i] @ state)) for i in cached}
        kept = sum(cached.values())
        rerouted = {i: kept * power / sum(powers.values()) for i, power in powers.items()}
        node = {1.0: 0, 2.0: 2}[temperature]
        total = sum(p ** (1 / temperature) for p in rerouted.values()) + math.exp(text.rows.tail_logsumexp[n, node])
        merged: dict[int, float] = {}
        for i, p in rerouted.items():
            s = int(vocabulary_map.likeliest[i])
            if s >= 0:
                merged[s] = merged.get(s, 0.0) + p ** (1 / temperature) / total
        student = (text.student_ND[n].double() @ WEIGHT_VD.double().T / temperature).softmax(-1)
        rest, student_rest = 1 - sum(merged.values()), 1 - sum(float(student[s]) for s in merged)
        expected = sum(q * math.log(q / float(student[s])) for s, q in merged.items())
        expected = temperature**2 * (expected + rest * math.log(rest / student_rest))
        label = int(text.labels_N[n])
        before, after = (
            sum(p for i, p in probs.items() if int(vocabulary_map.likeliest[i]) == label)
            for probs in (cached, rerouted)
        )
        if n % 3:
            expected += math.log(before / after)
        else:
            assert before == after == 0
        assert float(value[n]) == pytest.approx(expected, abs=1e-4)


def test_chunks_change_nothing_and_no_other_row_is_read(
    teacher_head: TeacherHead, vocabulary_map: VocabularyMap, text: RoutedText
) -> None:
    expected = routed_kd(text, WEIGHT_VD, teacher_head, vocabulary_map, 1.0, "temper_then_map", 100)
    rows = torch.full_like(teacher_head.tensors["output"], math.nan)
    needed = text.rows.topk_ids.unique()
    assert len(needed) < TEACHER_VOCABULARY
    rows[needed] = teacher_head.tensors["output"][needed]
    sparse_head = replace(teacher_head, tensors=teacher_head.tensors | {"output": rows})
    torch.testing.assert_close(
        routed_kd(text, WEIGHT_VD, sparse_head, vocabulary_map, 1.0, "temper_then_map", 2), expected
    )


def test_router_and_student_both_learn(
    teacher_head: TeacherHead, vocabulary_map: VocabularyMap, text: RoutedText
) -> None:
    """The gradient of the value, checked by finite differences in both arguments, through merged and empty entries."""
    generator = torch.Generator().manual_seed(4)

    def total(name: str, states: Tensor) -> Tensor:
        changed = replace(text, **{name: states})
        return routed_kd(changed, WEIGHT_VD, teacher_head, vocabulary_map, 1.0, "temper_then_map", 3).sum()

    for name in ("student_ND", "routed_NT"):
        states = getattr(text, name).clone().requires_grad_()
        total(name, states).backward()
        direction = torch.randn(states.shape, generator=generator)
        ahead, behind = (total(name, states.detach() + step * direction) for step in (1e-2, -1e-2))
        slope = float(ahead - behind) / 2e-2
        assert float((states.grad * direction).sum()) == pytest.approx(slope, rel=1e-2)
        assert abs(slope) > 1e-2


def test_positions_of_the_runs_get_their_own_rows_and_labels(student: Student, teacher_head: TeacherHead) -> None:
    batch = make_batch(0, [12, 9, 10])
    assert batch.runs is not None
    assert batch.rows is not None
    states = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))
    student_WRD = gather_runs(states, batch.runs)
    routing = route(student.heads, teacher_head, student_WRD, batch.runs, RouterSettings(1.0, EXPERTS, 0.0, 0))
    text = routed_text(batch, batch.runs, student_WRD, routing.routed_WRT)
    n = 0
    for window, length in enumerate(batch.runs.mask_WR.sum(1).tolist()):
        for place in range(length):
            flat = int(batch.runs.places_WR[window, place])
            number = batch.places_N.tolist().index(flat)
            aligned = batch.aligned_A.tolist().index(number)
            assert text.labels_N[n] == batch.labels_N[number]
            assert torch.equal(text.rows.topk_ids[n], batch.rows.topk_ids[aligned])
            assert torch.equal(text.student_ND[n], states[flat // 12, flat % 12])
            assert torch.equal(text.routed_NT[n], routing.routed_WRT[window, place])
            n += 1
    assert n == len(text.labels_N) == 20  # two positions of three
