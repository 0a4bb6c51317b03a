"""The objective: one registry, one total, the same for training and validation, however a step is split."""

import dataclasses
from collections import Counter
from types import ModuleType

import pytest
import torch
from moe_distill.training.text_terms import text_targets
from torch import Tensor

from moe_distill.config.params import ExperimentParams
from moe_distill.config.profile import Train
from moe_distill.losses.registry import ALL_TERMS, Terms, total_of
from moe_distill.shards.vocabulary_store import Merges
from moe_distill.targets.canonical import merge_rules
from moe_distill.targets.sparse_rows import pair_keys
from moe_distill.training import objective as objective_module
from moe_distill.training import routing as routing_module
from moe_distill.training import text_terms as text_terms_module
from moe_distill.training.batch import Batch, Chunks, Inside
from moe_distill.training.objective import Objective, Student, evaluate_objective
from moe_distill.training.routing import RouterSettings, gate_terms
from moe_distill.training.schedule import objective_at
from moe_distill.training.step import StepMetrics, optimizer_step, validate
from moe_distill.training.trainer import make_trainer
from moe_distill.utils.device import Runtime
from tests.training.conftest import LAYERS, make_batch

FP32 = Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture
def full(experiment: ExperimentParams, train: Train) -> Objective:
    """Every term on."""
    return objective_at(99, experiment, train, {})


def without(objective: Objective, *names: str) -> Objective:
    off = {name: 0.0 for name in names if name in objective.weights}
    text = {"chunk": "chunk_weight", "kd_inside": "inside_weight"}
    kd = dataclasses.replace(objective.kd, **{text[name]: 0.0 for name in names if name in text})
    return dataclasses.replace(objective, kd=kd, weights=objective.weights | off)


def test_r04_every_term_has_a_unique_name_and_is_there(student: Student, full: Objective) -> None:
    batch = make_batch(0, [12, 9])
    terms = validate(student, [batch], full, FP32).terms
    assert sorted(terms) == sorted(ALL_TERMS)
    for name, weight in full.weights.items():
        torch.testing.assert_close(terms[name].weighted, weight * terms[name].raw)


def test_r24_gradient_is_the_same_for_every_split_of_a_step(student: Student, full: Objective) -> None:
    """All terms on, those of the gate's means among them, and noise on the gate."""
    noisy = dataclasses.replace(full, router=RouterSettings(temperature=1.5, n_experts=2, noise=0.5, noise_seed=3))
    with torch.no_grad():
        student.heads.gate_weight.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    windows = [make_batch(number, [12]) for number in range(4)]
    optimizer = torch.optim.SGD([*student.model.parameters(), *student.heads.parameters()], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def step(parts: list) -> tuple[torch.Tensor, StepMetrics]:
        outcome = optimizer_step(student, parts, noisy, optimizer, scaler, FP32, gradient_clip=1e9).outcome
        gradients = [weight.grad.flatten() for group in optimizer.param_groups for weight in group["params"]]
        return torch.cat(gradients), outcome

    whole, outcome = step([merged(windows)])
    assert outcome.terms.keys() == set(ALL_TERMS)
    assert whole.abs().max() > 1e-3
    for parts in ([merged(windows[:2]), merged(windows[2:])], windows):
        gradient, split = step(parts)
        torch.testing.assert_close(gradient, whole, atol=1e-5, rtol=1e-5)
        assert split.total == pytest.approx(outcome.total, abs=1e-5)
        torch.testing.assert_close(split.experts.share_E, outcome.experts.share_E)
        assert split.experts.divergence == pytest.approx(outcome.experts.divergence, abs=1e-6)


def test_validation_is_without_exploration_noise(student: Student, full: Objective) -> None:
    batch, quiet = make_batch(0, [12, 9]), dataclasses.replace(full.router, noise=0.0)
    noisy = dataclasses.replace(quiet, noise=0.5)
    of_noisy, of_quiet = (
        validate(student, [batch], dataclasses.replace(full, router=each), FP32) for each in (noisy, quiet)
    )
    assert of_noisy.total == of_quiet.total
    assert torch.equal(of_noisy.experts.share_E, of_quiet.experts.share_E)


def test_the_gates_means_take_part_in_a_step(student: Student, full: Objective) -> None:
    batch = make_batch(0, [12, 9])
    with torch.no_grad():
        student.heads.gate_bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    optimizer = torch.optim.SGD([*student.model.parameters(), *student.heads.parameters()], lr=0.0)

    def gradient(objective: Objective) -> torch.Tensor:
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        optimizer_step(student, [batch], objective, optimizer, scaler, FP32, gradient_clip=1e9)
        return student.heads.gate_weight.grad.clone()

    gate = evaluate_objective(student, batch, full, batch.counts, None).gate
    terms, _ = gate_terms(student.heads, student.teacher_head, [gate], full.router, full.weights)
    expected = torch.autograd.grad(total_of(terms), student.heads.gate_weight)[0]
    assert expected.abs().max() > 1e-4
    added = gradient(full) - gradient(without(full, "router_balance", "router_importance"))
    torch.testing.assert_close(added, expected, atol=1e-6, rtol=1e-4)


def merged_chunks(parts: list[Chunks]) -> Chunks:
    firsts = [sum(len(part.teacher_logprobs_J) for part in parts[:number]) for number in range(len(parts))]
    numbers = [
        torch.where(part.chunk_of_N < 0, -1, part.chunk_of_N + first) for part, first in zip(parts, firsts, strict=True)
    ]
    return Chunks(torch.cat(numbers), torch.cat([part.teacher_logprobs_J for part in parts]))


def merged_inside(parts: list[Inside], shift: list[int]) -> Inside:
    """The positions moved by what stands before each part."""

    def joined(values: list) -> object:
        return type(values[0])(
            *(torch.cat([getattr(each, field.name) for each in values]) for field in dataclasses.fields(values[0]))
        )

    positions = torch.cat([part.positions_I + s for part, s in zip(parts, shift, strict=True)])
    return Inside(positions, joined([part.rows for part in parts]), joined([part.text for part in parts]))


def merged(parts: list) -> object:
    """One batch of several windows of equal length."""
    length = parts[0].input_ids_BL.shape[1]
    shift = [number * length for number in range(len(parts))]
    rows = {f.name: torch.cat([getattr(p.rows, f.name) for p in parts]) for f in dataclasses.fields(parts[0].rows)}
    runs = dataclasses.replace(
        parts[0].runs,
        windows_W=torch.cat([p.runs.windows_W for p in parts]),
        places_WR=torch.cat([p.runs.places_WR + s for p, s in zip(parts, shift, strict=True)]),
        mask_WR=(mask := torch.cat([p.runs.mask_WR for p in parts])),
        filled_N=mask.flatten().nonzero().squeeze(1),
        states_WRSD=torch.cat([p.runs.states_WRSD for p in parts]),
        moe_input_WRD=torch.cat([p.runs.moe_input_WRD for p in parts]),
    )
    return dataclasses.replace(
        parts[0],
        input_ids_BL=torch.cat([p.input_ids_BL for p in parts]),
        places_N=torch.cat([p.places_N + s for p, s in zip(parts, shift, strict=True)]),
        labels_N=torch.cat([p.labels_N for p in parts]),
        aligned_A=torch.cat([p.aligned_A + s for p, s in zip(parts, shift, strict=True)]),
        next_teacher_ids_A=torch.cat([p.next_teacher_ids_A for p in parts]),
        rows=dataclasses.replace(parts[0].rows, **rows),
        runs=runs,
        inside=merged_inside([p.inside for p in parts], shift),
        chunks=merged_chunks([p.chunks for p in parts]),
        n_bytes=sum(p.n_bytes for p in parts),
    )


def test_chunks_of_positions_change_nothing(student: Student, full: Objective) -> None:
    batch = make_batch(1, [11, 12])
    whole = dataclasses.replace(full, chunk_tokens=1000)
    small, small_gradients = terms_and_gradients(student, batch, full)
    large, large_gradients = terms_and_gradients(student, batch, whole)
    for name in small:
        torch.testing.assert_close(small[name].weighted, large[name].weighted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(small_gradients, large_gradients, atol=1e-6, rtol=1e-5)


def terms_and_gradients(student: Student, batch: Batch, objective: Objective) -> tuple[Terms, list[Tensor]]:
    terms = evaluate_objective(student, batch, objective, batch.counts, None).terms
    return terms, list(torch.autograd.grad(total_of(terms), list(student.model.parameters())))


@pytest.mark.parametrize(("chunk_tokens", "keeps_logits"), [(7, False), (1000, True)])
def test_logits_wait_for_the_backward_pass_only_in_a_batch_of_one_stretch(
    student: Student, full: Objective, chunk_tokens: int, keeps_logits: bool
) -> None:
    batch = make_batch(1, [11, 12])
    vocabulary, size = student.model.get_output_embeddings().weight.shape
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    objective = dataclasses.replace(full, chunk_tokens=chunk_tokens, weights=dict.fromkeys(full.weights, 0.0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        evaluate_objective(student, batch, objective, batch.counts, None)
    logits = [shape for shape in kept if shape[-1:] == (vocabulary,) and shape != (size, vocabulary)]
    assert bool(logits) == keeps_logits


def test_r05_training_and_validation_compute_the_same(student: Student, full: Objective, train: Train) -> None:
    batch = make_batch(2, [12, 10])
    validated = validate(student, [batch], full, FP32)
    trainer = make_trainer(student, train, FP32, 0)
    trained = optimizer_step(student, [batch], full, trainer.optimizer, trainer.scaler, FP32, 1.0).outcome
    assert trained.terms.keys() == validated.terms.keys()
    for name, term in trained.terms.items():
        assert abs(float(term.raw) - float(validated.terms[name].raw)) < 1e-6
    assert abs(trained.total - sum(float(term.weighted) for term in trained.terms.values())) < 1e-6


def test_r06_lm_keeps_full_weight_where_there_is_no_target(student: Student, full: Objective) -> None:
    batch = make_batch(3, [12], with_runs=False)
    with torch.no_grad():
        result = evaluate_objective(student, batch, full, batch.counts, None)
    with torch.no_grad():
        logits = student.model(batch.input_ids_BL).logits.flatten(0, 1)[batch.places_N].double()
    nll = torch.nn.functional.cross_entropy(logits, batch.labels_N, reduction="none")
    weight = torch.ones(12, dtype=torch.float64)
    weight[batch.aligned_A] = 1 - 0.7
    weight[batch.inside.positions_I] = 1 - 0.1  # all are known
    assert float(result.terms["lm"].raw) == pytest.approx(float(nll.mean()), abs=1e-5)
    assert float(result.terms["lm"].weighted) == pytest.approx(float((weight * nll).mean()), abs=1e-5)
    kd = result.terms["kd"]
    assert float(kd.weighted) == pytest.approx(0.7 * 2.0**2 * float(kd.raw) * len(batch.aligned_A) / 12, rel=1e-5)
    inside = result.terms["kd_inside"]
    expected = 0.1 * 2.0**2 * float(inside.raw) * len(batch.inside.positions_I) / 12
    assert float(inside.weighted) == pytest.approx(expected, rel=1e-5)


COMPUTED = {  # what is called, and how often, for each term alone; `route` asks every expert
    "kd_inside": {"text_terms.inside_target": 1},
    "chunk": {"text_terms.chunk_kl": 1},
    "feature": {"objective.cosine_distance": 1},
    "attention": {"objective.relation_kl": 1},
    "layerwise": {"objective.cosine_distance": LAYERS - 1},
    "contrastive": {"objective.contrastive_nll": 1},
    "router_feature": {"objective.route": 1, "routing.cosine_distance": 1},
    "router_attention": {"objective.route": 1, "routing.relation_kl": 1},
    "router_kd": {"objective.route": 1, "objective.routed_kd": 1},
    "router_balance": {"objective.route": 1, "routing.load_balancing_loss": 1},
    "router_importance": {"objective.route": 1, "routing.importance_kl": 1},
}


@pytest.mark.parametrize("alone", [None, *ALL_TERMS[2:]])
def test_r03_a_term_of_weight_zero_is_not_computed(
    student: Student, full: Objective, monkeypatch: pytest.MonkeyPatch, alone: str | None
) -> None:
    calls: Counter[str] = Counter()

    def count(module: ModuleType, name: str) -> None:
        function = getattr(module, name)
        key = f"{module.__name__.rpartition('.')[2]}.{name}"
        monkeypatch.setattr(module, name, lambda *arguments: [calls.update([key]), function(*arguments)][1])

    for name in ("chunk_kl", "inside_target"):
        count(text_terms_module, name)
    for name in ("cosine_distance", "relation_kl", "contrastive_nll", "route", "routed_kd"):
        count(objective_module, name)
    for name in ("cosine_distance", "relation_kl", "load_balancing_loss", "importance_kl"):
        count(routing_module, name)
    objective = without(full, *(name for name in ALL_TERMS[2:] if name != alone))
    terms = validate(student, [make_batch(4, [12])], objective, FP32).terms
    assert terms.keys() == {"lm", "kd"} | ({alone} if alone else set())
    assert calls == (COMPUTED[alone] if alone else {})


def test_without_runs_a_batch_still_trains(student: Student, full: Objective) -> None:
    batch = make_batch(5, [12], with_runs=False)
    assert sorted(evaluate_objective(student, batch, full, batch.counts, None).terms) == [
        "chunk",
        "kd",
        "kd_inside",
        "lm",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_r26_reduced_precision_trains_on_cpu_with_a_scaler(
    student: Student, full: Objective, train: Train, dtype: torch.dtype
) -> None:
    runtime = Runtime(torch.device("cpu"), dtype)
    trainer = make_trainer(student, train, runtime, 0)
    assert trainer.scaler.is_enabled() == (dtype is torch.float16)
    batch = make_batch(6, [12, 12])
    reference = validate(student, [batch], full, FP32)
    totals = []
    for _ in range(12):
        update = optimizer_step(student, [batch], full, trainer.optimizer, trainer.scaler, runtime, 1.0)
        totals.append(update.outcome.total)
    assert totals[0] == pytest.approx(reference.total, rel=2e-2)
    assert totals[-1] < totals[0]
    assert all(parameter.dtype is torch.float32 for parameter in student.model.parameters())


def test_the_target_of_a_position_knows_the_token_before_it(student: Student, full: Objective) -> None:
    batch = make_batch(0, [12, 9])
    ids = torch.arange(student.model.config.vocab_size)
    lefts, rights = torch.meshgrid(ids, ids, indexing="ij")
    results = len(ids) + torch.arange(len(ids) ** 2)
    of_all = Merges(lefts.flatten(), rights.flatten(), results, torch.zeros_like(results).bool())
    merges = merge_rules(of_all, len(ids) + len(results))
    last = int(batch.input_ids_BL.flatten()[batch.places_N][batch.aligned_A][0])
    is_met = (lefts.flatten() != last) | (rights.flatten() % 2 == 0)  # odd ids alone are denied, after one token alone
    met = dataclasses.replace(merges, met=pair_keys(lefts.flatten(), rights.flatten())[is_met])
    knowing = dataclasses.replace(student.vocabulary_map, merges=met)
    plain = text_targets(batch, full.kd, student.vocabulary_map, None)["kd"].target
    found = text_targets(batch, full.kd, knowing, None)["kd"].target
    changed = (found.logprobs != plain.logprobs).any(-1)
    assert changed[0]
    assert torch.equal(changed, changed & (batch.previous_ids[batch.aligned_A] == last))
