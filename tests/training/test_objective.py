"""The objective: one registry, one total, the same for training and validation, however a step is split."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_distill.batches.batch import Batch
from moe_distill.config.params import ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.losses.registry import GATE_TERMS, HIDDEN_TERMS, ROUTER_TERMS, TEXT_TERMS, Terms, total_of
from moe_distill.training import objective as objective_module
from moe_distill.training import routing as routing_module
from moe_distill.training.objective import Objective, Student, evaluate_objective
from moe_distill.training.routing import RouterSettings, gate_terms
from moe_distill.training.schedule import objective_at
from moe_distill.training.step import StepMetrics, optimizer_step, validate
from moe_distill.training.trainer import make_trainer
from moe_distill.utils.device import Runtime
from tests.training.conftest import (
    LAYERS,
    heads_of,
    in_stretches,
    make_batch,
    make_student,
    make_teacher_head,
    merged,
    target_of,
    whole_set,
)

FP32 = Runtime(torch.device("cpu"), torch.float32)
ALL_TERMS = TEXT_TERMS + HIDDEN_TERMS + ROUTER_TERMS


@pytest.fixture
def full(experiment: ExperimentParams, train: Train) -> Objective:
    """Every term on."""
    return objective_at(99, experiment, train, {})


def without(objective: Objective, *names: str) -> Objective:
    return dataclasses.replace(objective, weights=objective.weights | dict.fromkeys(names, 0.0))


def test_r04_every_term_has_a_unique_name_and_is_there(student: Student, full: Objective) -> None:
    batch = make_batch(0, [12, 9])
    terms = validate(student, whole_set([batch]), full).terms
    assert sorted(terms) == sorted(ALL_TERMS)
    for name, weight in full.weights.items():
        assert terms[name].weighted == pytest.approx(weight * terms[name].raw)


def test_r24_gradient_is_the_same_for_every_split_of_a_step(student: Student, full: Objective) -> None:
    """All terms on, those of the gate's means among them, and noise on the gate."""
    noisy = dataclasses.replace(full, router=RouterSettings(temperature=1.5, n_experts=2, noise=0.5))
    with torch.no_grad():
        heads_of(student).gate_weight.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    windows = [make_batch(number, [12]) for number in range(4)]
    optimizer = torch.optim.SGD([*student.model.parameters(), *heads_of(student).parameters()], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def step(parts: list[Batch]) -> tuple[torch.Tensor, StepMetrics]:
        update = optimizer_step(student, parts, noisy, optimizer, scaler, FP32, gradient_clip=1e9)
        gradients = [weight.grad.flatten() for group in optimizer.param_groups for weight in group["params"]]
        return torch.cat(gradients), update.metrics

    whole, metrics = step([merged(windows)])
    assert metrics.terms.keys() == set(ALL_TERMS)
    assert metrics.experts is not None
    assert whole.abs().max() > 1e-3
    for parts in ([merged(windows[:2]), merged(windows[2:])], windows):
        gradient, split = step(parts)
        torch.testing.assert_close(gradient, whole, atol=1e-5, rtol=1e-5)
        assert split.total == pytest.approx(metrics.total, abs=1e-5)
        assert split.experts is not None
        assert split.experts.shares == pytest.approx(metrics.experts.shares)
        assert split.experts.divergence == pytest.approx(metrics.experts.divergence, abs=1e-6)


def test_a_validation_is_without_dropout_and_the_next_step_has_it_again(full: Objective) -> None:
    student = make_student(make_teacher_head(), dropout=0.5)
    student.model.train()
    batch = make_batch(0, [12, 9])
    torch.manual_seed(1)
    first = validate(student, whole_set([batch]), full)
    assert student.model.training
    torch.manual_seed(2)
    assert validate(student, whole_set([batch]), full) == first


def test_validation_is_without_exploration_noise(student: Student, full: Objective) -> None:
    batch, quiet = make_batch(0, [12, 9]), dataclasses.replace(full.router, noise=0.0)
    noisy = dataclasses.replace(quiet, noise=0.5)
    of_noisy, of_quiet = (
        validate(student, whole_set([batch]), dataclasses.replace(full, router=each)) for each in (noisy, quiet)
    )
    assert of_noisy == of_quiet


def test_the_gates_means_take_part_in_a_step(student: Student, full: Objective) -> None:
    batch = make_batch(0, [12, 9])
    with torch.no_grad():
        heads_of(student).gate_bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    optimizer = torch.optim.SGD([*student.model.parameters(), *heads_of(student).parameters()], lr=0.0)

    def gradient(objective: Objective) -> torch.Tensor:
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        optimizer_step(student, [batch], objective, optimizer, scaler, FP32, gradient_clip=1e9)
        found = heads_of(student).gate_weight.grad
        assert found is not None
        return found.clone()

    gate = evaluate_objective(student, batch, full, batch.counts, None).gate
    assert gate is not None
    assert student.teacher_head is not None
    terms, _ = gate_terms(heads_of(student), student.teacher_head, gate, full.router, full.weights)
    expected = torch.autograd.grad(total_of(terms), heads_of(student).gate_weight)[0]
    assert expected.abs().max() > 1e-4
    added = gradient(full) - gradient(without(full, *GATE_TERMS))
    torch.testing.assert_close(added, expected, atol=1e-6, rtol=1e-4)


def test_the_gates_means_take_part_in_a_step_of_a_scaled_loss(student: Student, full: Objective) -> None:
    """Alone: no other term sends a gradient to the gate."""
    objective = without(full, *(name for name in HIDDEN_TERMS + ROUTER_TERMS if name != "router_balance"))
    optimizer = torch.optim.SGD(heads_of(student).parameters(), lr=0.0)
    gradients = []
    for is_scaled in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=is_scaled)
        update = optimizer_step(student, [make_batch(0, [12, 9])], objective, optimizer, scaler, FP32, 1e9)
        assert update.loss_scale == (1024.0 if is_scaled else 1.0)
        found = heads_of(student).gate_weight.grad
        assert found is not None
        gradients.append(found.clone())
    assert gradients[0].abs().max() > 1e-5
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-9, rtol=1e-5)


def test_stretches_of_positions_change_nothing(student: Student, full: Objective) -> None:
    batch = make_batch(1, [11, 12])
    small, small_gradients = terms_and_gradients(student, batch, full)
    large, large_gradients = terms_and_gradients(student, in_stretches(batch, 1000), full)
    assert len(batch.text.stretches) > 2
    assert small.keys() == large.keys() == set(ALL_TERMS) - set(GATE_TERMS)
    for name in small:
        torch.testing.assert_close(small[name].weighted, large[name].weighted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(small_gradients, large_gradients, atol=1e-6, rtol=1e-5)


def terms_and_gradients(student: Student, batch: Batch, objective: Objective) -> tuple[Terms, list[Tensor]]:
    output = evaluate_objective(student, batch, objective, batch.counts, None)
    return output.terms, list(torch.autograd.grad(output.loss, list(student.model.parameters())))


@pytest.mark.parametrize("chunk_tokens", [7, 1000])
def test_no_logits_wait_for_the_backward_pass(student: Student, full: Objective, chunk_tokens: int) -> None:
    batch = in_stretches(make_batch(1, [11, 12]), chunk_tokens)
    vocabulary, size = student.model.get_output_embeddings().weight.shape
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        evaluate_objective(student, batch, full, batch.counts, None)
    assert torch.Size((vocabulary, size)) in kept, "the gradient of the output matrix"
    assert not [shape for shape in kept if shape[-1:] == (vocabulary,)]


def test_r05_training_and_validation_compute_the_same(student: Student, full: Objective, train: Train) -> None:
    batch = make_batch(2, [12, 10])
    validated = validate(student, whole_set([batch]), full)
    trainer = make_trainer(student, train, FP32, 0)
    update = optimizer_step(student, [batch], full, trainer.optimizer, trainer.scaler, FP32, 1.0)
    trained = update.metrics
    assert trained.terms.keys() == validated.terms.keys()
    for name, term in trained.terms.items():
        assert abs(term.raw - validated.terms[name].raw) < 1e-6
    assert abs(trained.total - sum(term.weighted for term in trained.terms.values())) < 1e-6
    assert trained.bits_per_byte == pytest.approx(validated.bits_per_byte, abs=1e-6)


def test_r06_lm_keeps_full_weight_where_there_is_no_target(student: Student, full: Objective) -> None:
    batch = make_batch(3, [12], with_runs=False)
    with torch.no_grad():
        terms = evaluate_objective(student, batch, full, batch.counts, None).terms
        logits = student.model(batch.input_ids_BL).logits.flatten(0, 1)[batch.places_N].double()
    nll = torch.nn.functional.cross_entropy(logits, batch.text.labels_N, reduction="none")
    weight = 1.0 - 0.7 * target_of(batch).has_target_N.double()
    assert 0 < batch.counts.with_target < 12
    assert float(terms["lm"].raw) == pytest.approx(float(nll.mean()), abs=1e-5)
    assert float(terms["lm"].weighted) == pytest.approx(float((weight * nll).mean()), abs=1e-5)
    kd = terms["kd"]
    assert float(kd.weighted) == pytest.approx(0.7 * 2.0**2 * float(kd.raw) * batch.counts.with_target / 12, rel=1e-5)


COMPUTED = {  # what is called, and how often, for each term alone; `route` asks every expert
    "feature": {"objective.cosine_distance": 1},
    "attention": {"objective.relation_kl": 1},
    "layerwise": {"objective.cosine_distance": LAYERS - 1},
    "contrastive": {"objective.contrastive_nll": 1},
    "router_feature": {"objective.route": 1, "routing.cosine_distance": 1},
    "router_attention": {"objective.route": 1, "routing.relation_kl": 1},
    "router_balance": {"routing.load_balancing_loss": 1},
    "router_importance": {"routing.importance_kl": 1},
}


@pytest.mark.parametrize("alone", [None, *ALL_TERMS[2:]])
def test_r03_a_term_of_weight_zero_is_not_computed(
    student: Student, full: Objective, monkeypatch: pytest.MonkeyPatch, alone: str | None
) -> None:
    calls: Counter[str] = Counter()

    def count(module: ModuleType, name: str) -> None:
        function: Callable[..., Any] = getattr(module, name)
        key = f"{module.__name__.rpartition('.')[2]}.{name}"

        def counted(*arguments: Any) -> Any:
            calls[key] += 1
            return function(*arguments)

        monkeypatch.setattr(module, name, counted)

    modules = {"objective": objective_module, "routing": routing_module}
    for key in {key for calls_of_term in COMPUTED.values() for key in calls_of_term}:
        file, _, name = key.partition(".")
        count(modules[file], name)
    objective = without(full, *(name for name in ALL_TERMS[2:] if name != alone))
    terms = validate(student, whole_set([make_batch(4, [12])]), objective).terms
    assert terms.keys() == {"lm", "kd"} | ({alone} if alone else set())
    assert calls == (COMPUTED.get(alone, "a line of COMPUTED, above") if alone else {})


def test_without_runs_a_batch_still_trains(student: Student, full: Objective) -> None:
    batch = make_batch(5, [12], with_runs=False)
    assert sorted(evaluate_objective(student, batch, full, batch.counts, None).terms) == ["kd", "lm"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_r26_reduced_precision_trains_on_cpu_with_a_scaler(
    student: Student, full: Objective, train: Train, dtype: torch.dtype
) -> None:
    runtime = Runtime(torch.device("cpu"), dtype)
    trainer = make_trainer(student, train, runtime, 0)
    assert trainer.scaler.is_enabled() == (dtype is torch.float16)
    batch = make_batch(6, [12, 12])
    reference = validate(student, whole_set([batch]), full)
    totals = []
    for _ in range(12):
        update = optimizer_step(student, [batch], full, trainer.optimizer, trainer.scaler, runtime, 1.0)
        totals.append(update.metrics.total)
    assert totals[0] == pytest.approx(reference.total, rel=2e-2)
    assert totals[-1] < totals[0]
    assert all(parameter.dtype is torch.float32 for parameter in student.model.parameters())
