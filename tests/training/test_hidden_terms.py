"""The terms between states of two whole models: size at initialisation, and what they are blind to."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from moe_distill.batches.batch import Batch, Counts, HiddenRuns
from moe_distill.config.params import ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.losses.hidden import contrastive_nll, cosine_distance, relation_kl
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.losses.text_loss import Text
from moe_distill.targets.sparse_target import sparse_target
from moe_distill.targets.stretches import stretches
from moe_distill.targets.teacher_rows import teacher_rows
from moe_distill.targets.token_shares import rule_map
from moe_distill.teacher.architecture import find_architecture
from moe_distill.teacher.forward import forward
from moe_distill.teacher.sparsify import sparsify
from moe_distill.training.objective import Objective, Student
from moe_distill.training.schedule import objective_at
from moe_distill.training.step import validate
from moe_distill.training.student import layer_pairs, make_heads
from tests.losses.test_hidden import brute_force
from tests.training.conftest import EXPERTS as FEW_EXPERTS
from tests.training.conftest import TEACHER_SIZE as SMALL_TEACHER_SIZE
from tests.training.conftest import make_batch, runs_of, whole_set

STUDENT_ROWS, TEACHER_ROWS, WINDOWS, LENGTH = 300, 400, 2, 64
TEACHER_LAYERS, STUDENT_LAYERS, TEACHER_SIZE, STUDENT_SIZE, EXPERTS = 28, 30, 1024, 576, 3


@pytest.fixture
def full(experiment: ExperimentParams, train: Train) -> Objective:
    return objective_at(99, experiment, train, {})


def real_teacher() -> Qwen3MoeForCausalLM:
    """Depth, width and experts of Huihui-MoE-1B; narrow heads and experts, a small vocabulary."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": TEACHER_ROWS,
        "hidden_size": TEACHER_SIZE,
        "num_hidden_layers": TEACHER_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 1,
        "norm_topk_prob": True,
        "moe_intermediate_size": 64,
    }
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes))
    model.eval()
    return model


def real_student() -> LlamaForCausalLM:
    """Depth and width of SmolLM-135M."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=STUDENT_ROWS,
        hidden_size=STUDENT_SIZE,
        num_hidden_layers=STUDENT_LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=192,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


def test_r02_every_term_at_initialisation_of_the_real_dimensions(full: Objective) -> None:
    """1024 -> 576, 28 -> 30 layers, random weights on both sides; each position aligned with itself."""
    teacher, generator = real_teacher(), torch.Generator().manual_seed(2)
    architecture = find_architecture(teacher)
    captured = [7, 14, TEACHER_LAYERS]
    states, _ = forward(
        teacher, architecture, torch.randint(TEACHER_ROWS, (WINDOWS, LENGTH), generator=generator), captured
    )
    assert not isinstance(architecture.moe, str)
    n = WINDOWS * LENGTH
    logits_NV = architecture.decoder.head.to_dtype(torch.float32).logits(states.final_BLT.flatten(0, 1))
    records = sparsify(logits_NV, torch.zeros(n, dtype=torch.int64), 16, 8, torch.rand(n, generator=generator))
    assert states.router_logits_BLE is not None
    runs = HiddenRuns(
        places_WP=torch.arange(n).view(WINDOWS, LENGTH),
        mask_WP=torch.ones(WINDOWS, LENGTH, dtype=torch.bool),
        filled_N=torch.arange(n),
        states_WPST=states.hidden_BLST,
        moe_input_WPT=states.moe_input_BLT,
        router_logits_NE=states.router_logits_BLE.flatten(0, 1),
        gate_noise_NE=torch.zeros(n, EXPERTS),
    )
    target = sparse_target(
        teacher_rows(vars(records), TEACHER_ROWS - 16),
        torch.ones(n, dtype=torch.bool),
        rule_map(torch.arange(TEACHER_ROWS) % STUDENT_ROWS),
        2.0,
        "temper_then_map",
        "sampled",
    )
    batch = Batch(
        windows=tuple(range(WINDOWS)),
        input_ids_BL=torch.randint(STUDENT_ROWS, (WINDOWS, LENGTH), generator=generator),
        places_N=torch.arange(n),
        text=Text(torch.randint(STUDENT_ROWS, (n,), generator=generator), target, stretches(n, 50, target)),
        runs=runs,
        counts=Counts(tokens=n, with_target=n, hidden=n, n_bytes=4 * n, places=n),
        dropout_seed=0,
    )
    head = architecture.moe.head
    pairs = layer_pairs(captured, TEACHER_LAYERS, STUDENT_LAYERS)
    assert pairs == [8, 15, STUDENT_LAYERS]
    heads = make_heads(pairs, STUDENT_SIZE, TEACHER_SIZE, EXPERTS, seed=0)
    terms = validate(Student(real_student(), heads, head), whole_set([batch]), full).terms
    raw = {name: term.raw for name, term in terms.items()}
    assert raw.keys() == {"lm", "kd", *HIDDEN_TERMS, *ROUTER_TERMS}
    for name, value in raw.items():
        limit = math.log(STUDENT_ROWS) + 1 if name in ("lm", "kd") else 5.0
        assert 0.0 <= value <= limit, name
    assert raw["router_importance"] == pytest.approx(0.0, abs=1e-5), "the router begins as the teacher's gate"
    assert min(raw[name] for name in (*HIDDEN_TERMS, "router_feature")) > 0.05


def test_the_order_of_the_students_heads_is_irrelevant(student: Student, full: Objective) -> None:
    """Both query heads of every layer change places: the same function, and the same value of every term."""
    batch = make_batch(0, [12, 9])
    before = validate(student, whole_set([batch]), full).terms
    with torch.no_grad():
        for layer in student.model.model.layers:
            attention = layer.self_attn
            attention.q_proj.weight.copy_(attention.q_proj.weight.view(2, 8, 16).flip(0).reshape(16, 16))
            attention.o_proj.weight.copy_(attention.o_proj.weight.view(16, 2, 8).flip(1).reshape(16, 16))
    after = validate(student, whole_set([batch]), full).terms
    for name, term in before.items():
        assert after[name].raw == pytest.approx(term.raw, abs=1e-5), name


def test_attention_is_blind_to_scale_and_rotation_of_the_teachers_states(student: Student, full: Objective) -> None:
    """Blocks of coordinates in another order, as of heads, are a rotation too."""
    batch = make_batch(0, [12, 9])
    expected = validate(student, whole_set([batch]), full).terms["attention"].raw
    assert expected > 0.05
    states = runs_of(batch).states_WPST
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1)))
    blocks = states.unflatten(-1, (4, 5)).flip(-2).flatten(-2)
    for changed in (30.0 * states, states @ rotation, blocks):
        turned = replace(batch, runs=replace(runs_of(batch), states_WPST=changed))
        value = validate(student, whole_set([turned]), full).terms["attention"].raw
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pairs", [[2, 3], [0, 1]])
def test_terms_are_means_over_the_positions_with_states_of_the_paired_layers(
    student: Student, full: Objective, pairs: list[int]
) -> None:
    """Against loops over positions; where early layers alone are captured, the last of them is not the student's."""
    student = replace(student, heads=make_heads(pairs, 16, SMALL_TEACHER_SIZE, FEW_EXPERTS, seed=0))
    batch = make_batch(0, [12, 9])
    assert 0 < batch.counts.hidden < batch.counts.tokens
    terms = validate(student, whole_set([batch]), full).terms

    assert student.heads is not None
    runs, first, last = runs_of(batch), list[float](), dict[str, list[float]]()
    with torch.no_grad():
        layers = student.model(batch.input_ids_BL, output_hidden_states=True).hidden_states
        for places, mask, states in zip(runs.places_WP, runs.mask_WP, runs.states_WPST, strict=True):
            own = [layers[pair].flatten(0, 1)[places[mask]] for pair in pairs]
            projected = [project(each) for project, each in zip(student.heads.projections, own, strict=True)]
            of_teacher = states[mask].unbind(1)
            first += brute_force(cosine_distance, projected[0], of_teacher[0])
            for name, loss, of_student in (
                ("feature", cosine_distance, projected[1]),
                ("contrastive", contrastive_nll, projected[1]),
                ("attention", relation_kl, own[1]),
            ):
                last.setdefault(name, []).extend(brute_force(loss, of_student, of_teacher[1]))
    by_loops = {"layerwise": first, **last}
    assert by_loops.keys() == set(HIDDEN_TERMS), "each term needs a line in the loop above"
    for name, values in by_loops.items():
        assert len(values) == batch.counts.hidden
        assert terms[name].raw == pytest.approx(sum(values) / batch.counts.hidden, abs=1e-5), name
