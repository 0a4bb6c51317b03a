"""`kd_weight: auto`: the likeliest mixture of teacher and student, and a training that follows it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_distill.batches.split import open_split
from moe_distill.config.profile import Train
from moe_distill.losses.registry import HIDDEN_TERMS, ROUTER_TERMS
from moe_distill.shards.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from moe_distill.tracking.curves import CURVE_NAME, VALIDATION_CURVE_NAME
from moe_distill.training import loop
from moe_distill.training.kd_weight import (
    LARGEST_KD_WEIGHT,
    SharedText,
    earned_weight,
    mixture_weight,
    read_shared_text,
)
from moe_distill.training.phases import train_kd, train_router
from moe_distill.training.schedule import first_phase_steps, kd_weight_is_due, objective_at
from tests.chain import Chain
from tests.teacher.conftest import make_teacher
from tests.training.folders import Folders, make_folders, make_params


def em_weight(first_nll: list[float], second_nll: list[float]) -> float:
    """The slow, obvious way: responsibilities, their mean, again."""
    weight = 0.5
    for _ in range(20_000):
        total = 0.0
        for first, second in zip(first_nll, second_nll, strict=True):
            least = min(first, second)
            of_first = weight * math.exp(least - first)
            total += of_first / (of_first + (1.0 - weight) * math.exp(least - second))
        weight = total / len(first_nll)
    return weight


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (3.0, 0.0), (3.0, 1.0), (40.0, -10.0)])
def test_the_weight_is_where_em_ends(scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    first = 100.0 + scale * torch.randn(25, generator=generator, dtype=torch.float64)
    second = 100.0 + shift + scale * torch.randn(25, generator=generator, dtype=torch.float64)
    found = mixture_weight(first, second)
    assert 0.02 < found < 0.98
    assert found == pytest.approx(em_weight(first.tolist(), second.tolist()), abs=2e-3)


@pytest.mark.parametrize(("lead", "expected"), [(1e-3, 1.0), (5000.0, 1.0), (-1e-3, 0.0), (-5000.0, 0.0)])
def test_of_two_models_the_one_that_leads_everywhere_has_all(lead: float, expected: float) -> None:
    second = torch.linspace(50.0, 200.0, 7, dtype=torch.float64)
    assert mixture_weight(second - lead, second) == expected


def test_without_text_nothing_is_earned() -> None:
    nothing = torch.zeros(0, dtype=torch.float64)
    assert mixture_weight(nothing, nothing) == 0.0


@pytest.mark.parametrize(("leads_in", "expected"), [(0, 0), (1, 0), (3, 0), (4, 1 / 3), (5, 2 / 3), (6, 1)])
def test_kd_has_what_the_teachers_share_exceeds_the_students_by(leads_in: int, expected: float) -> None:
    """Of six texts the teacher leads far in some, the student in the others: shares are counts."""
    teacher_nll_W = torch.full((6,), 500.0).double()
    teacher_nll_W[:leads_in] = 10.0
    ahead = SharedText(torch.arange(6), torch.arange(6), teacher_nll_W, torch.full((6,), 1000.0).double())
    found = earned_weight(ahead, torch.full((6,), 100.0))
    assert found / LARGEST_KD_WEIGHT == pytest.approx(expected, abs=1e-6)


def test_both_models_are_compared_on_the_same_bytes(chain: Chain) -> None:
    """Tokens are counted one by one, and spell as many bytes on both sides."""
    split = open_split(chain.windows / "validation", chain.targets / "validation")
    assert split.shards is not None
    numbers = [3, 0, 7]
    nll_N = torch.rand(int(split.windows.token_counts[numbers].sum()))
    logprobs = torch.cat(list(split.shards.columns("target_logprob"))).double()
    train = open_split(chain.windows / "train", chain.targets / "train")
    found = read_shared_text(train, split, numbers)
    nll_N *= 0.01  # of a student that knows more than frequencies
    first, of_windows = 0, list[float]()
    for stretch, number in enumerate(numbers):
        rows = split.windows.tokens("teacher_rows", number).tolist()
        aligned = [position for position, row in enumerate(rows) if row >= 0]
        of_teacher = -sum(float(logprobs[row]) for row in range(rows[aligned[0]], rows[aligned[-1]]))
        of_student = sum(float(nll_N[first + position]) for position in range(aligned[0], aligned[-1]))
        assert float(found.teacher_nll_W[stretch]) == pytest.approx(of_teacher, rel=1e-9)
        assert (found.windows_N == stretch).sum() == aligned[-1] - aligned[0]
        of_windows.append(of_student)
        first += len(rows)
    of_students = torch.tensor(of_windows, dtype=torch.float64)
    of_teachers = of_students - torch.tensor([2.0, 1.0, -1.0])
    found = replace(found, teacher_nll_W=of_teachers)
    expected = LARGEST_KD_WEIGHT * (2 * mixture_weight(of_teachers, of_students) - 1)
    assert 0.0 < expected < LARGEST_KD_WEIGHT
    assert earned_weight(found, nll_N) == pytest.approx(expected)


def test_beside_an_untrained_student_a_teacher_must_know_more_than_frequencies(chain: Chain) -> None:
    """Token by token; a student that knows next to nothing makes no teacher a good one."""
    train = open_split(chain.windows / "train", chain.targets / "train")
    split = open_split(chain.windows / "validation", chain.targets / "validation")
    counts: dict[int, int] = {}
    for number in range(len(train.windows)):
        for token in train.windows.tokens("token_ids", number).tolist():
            counts[token] = counts.get(token, 0) + 1
    n_ids = len(split.windows.token_bytes)
    total = sum(counts.values()) + n_ids
    found = read_shared_text(train, split, [2])
    rows, ids = (split.windows.tokens(name, 2).tolist() for name in ("teacher_rows", "token_ids"))
    aligned = [position for position, row in enumerate(rows) if row >= 0]
    expected = -sum(math.log((counts.get(token, 0) + 1) / total) for token in ids[aligned[0] : aligned[-1]])
    assert float(found.frequencies_nll_W) == pytest.approx(expected)

    knows_nothing = torch.full((len(ids),), 50.0)
    better, worse = (replace(found, teacher_nll_W=found.frequencies_nll_W + nats) for nats in (-1.0, 1.0))
    assert earned_weight(better, knows_nothing) == LARGEST_KD_WEIGHT
    assert earned_weight(worse, knows_nothing) == 0.0


def test_it_is_measured_more_often_before_the_first_validation(train: Train) -> None:
    train = train.model_copy(update={"validate_every": 20})
    assert [step for step in range(1, 70) if kd_weight_is_due(step, train)] == [1, 2, 4, 8, 16]


def test_every_term_of_phase_2_follows_what_the_teacher_has_earned() -> None:
    params = make_params(kd_weight="auto", losses=dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.2))
    quarter = LARGEST_KD_WEIGHT / 4
    objective = objective_at(19, params.experiment, params.profile.train, {"feature": 3.0}, earned=quarter)
    assert objective.kd_weight == quarter
    expected = {name: 0.05 * (3.0 if name == "feature" else 1.0) for name in objective.weights}
    assert objective.weights == pytest.approx(expected)
    in_full = objective_at(19, params.experiment, params.profile.train, {}, earned=LARGEST_KD_WEIGHT)
    assert in_full.weights == dict.fromkeys(in_full.weights, 0.2), "those of a given weight, to the bit"
    nothing = objective_at(19, params.experiment, params.profile.train, {}, earned=0.0)
    assert not any(nothing.weights.values())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return make_folders(tmp_path_factory.mktemp("auto"), make_teacher("qwen3_moe_top1"))


class KilledError(Exception):
    """Stands for kill -9."""


def test_r21_a_training_killed_at_its_end_measures_what_an_unbroken_one_does(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "earned_weight", lambda _shared, nll_N: float(nll_N.double().sum()) % LARGEST_KD_WEIGHT)
    params = make_params(kd_weight="auto", max_steps=12, validate_every=4, checkpoint_every=1, learning_rate=1e-2)
    last = first_phase_steps(params.experiment, params.profile.train)
    unbroken = train_kd(params, folders.inputs, folders.outputs("unbroken_kd"))

    def killed(work: Path, checkpoint: Checkpoint) -> None:
        save_checkpoint(work, checkpoint)
        if checkpoint.step == last:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", killed)
        with pytest.raises(KilledError):
            train_kd(params, folders.inputs, folders.outputs("broken_kd"))
    resumed = train_kd(params, folders.inputs, folders.outputs("broken_kd"))
    assert resumed.steps == unbroken.steps == last
    assert resumed.kd_weight == unbroken.kd_weight
    assert resumed.final.terms == unbroken.final.terms


def test_r21_a_resumed_training_follows_the_same_weight(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on from a checkpoint between two measurements; curves and students are equal to the bit."""
    # a random teacher earns nothing: here it does, and something else whenever the student is another one
    monkeypatch.setattr(loop, "earned_weight", lambda _shared, nll_N: float(nll_N.double().sum()) % LARGEST_KD_WEIGHT)
    params = make_params(kd_weight="auto", max_steps=12, validate_every=4, checkpoint_every=3, learning_rate=1e-2)
    unbroken, broken = folders.outputs("unbroken"), folders.outputs("broken")
    train_router(params, folders.inputs, unbroken)

    def killed_at_8() -> None:
        if (broken.work / CURVE_NAME).read_text().splitlines()[-1].startswith("8\t"):
            raise KilledError

    with pytest.raises(KilledError):
        train_router(params, folders.inputs, replace(broken, on_validation=killed_at_8))
    checkpoint = newest_checkpoint(broken.work)
    assert checkpoint is not None
    assert checkpoint.step == 6
    train_router(params, folders.inputs, broken)
    assert len({row["kd_weight"] for row in folders.curve("unbroken", validation=True)}) == 3
    for name in (CURVE_NAME, VALIDATION_CURVE_NAME):
        assert (broken.work / name).read_bytes() == (unbroken.work / name).read_bytes()
    students = [load_file(each.student / "model.safetensors") for each in (unbroken, broken)]
    assert all(torch.equal(weight, students[1][name]) for name, weight in students[0].items())


def test_a_curve_has_the_weight_of_each_step(folders: Folders) -> None:
    params = make_params(kd_weight="auto", losses=dict.fromkeys(HIDDEN_TERMS + ROUTER_TERMS, 0.05))
    train_router(params, folders.inputs, folders.outputs("curve"))
    steps, validations = folders.curve("curve"), folders.curve("curve", validation=True)
    assert all(0.0 <= row["kd_weight"] <= 1.0 for row in steps + validations)
    for validation in validations:
        following = [row["kd_weight"] for row in steps if validation["step"] < row["step"] <= validation["step"] + 5]
        assert all(weight == pytest.approx(validation["kd_weight"]) for weight in following)


def test_a_student_that_has_diverged_leaves_the_weight_to_the_teacher() -> None:
    nats = torch.full((2,), 9.0, dtype=torch.float64)
    shared = SharedText(torch.arange(4), torch.tensor([0, 0, 1, 1]), nats, nats)
    assert earned_weight(shared, torch.full((4,), math.nan)) == earned_weight(shared, torch.full((4,), 99.0))
    ahead_of_frequencies = replace(shared, teacher_nll_W=nats - 1.0)
    assert earned_weight(ahead_of_frequencies, torch.full((4,), math.nan)) == 0.7
