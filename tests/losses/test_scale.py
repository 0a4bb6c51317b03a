"""R2: at initialisation every loss is of a size one can weigh, at the real pair's dimensions.

Huihui-MoE-1B -> SmolLM-135M: vocabulary 151,936 -> 49,152, width 1024 -> 576, 28 -> 30 layers.
"""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from moe_distill.config.params import KdOrder, KdTail
from moe_distill.losses.hidden import contrastive_nll, cosine_distance, paired_layer, relation_kl
from moe_distill.losses.output_head import OutputHead
from moe_distill.losses.text_loss import Text, text_loss
from moe_distill.targets.stretches import stretches
from moe_distill.targets.teacher_rows import TeacherRows
from moe_distill.targets.token_shares import rule_map
from tests.targets.reference import random_logits, target_of_all, teacher_rows, text_of

TEACHER_VOCABULARY, STUDENT_VOCABULARY = 151_936, 49_152
TEACHER_SIZE, STUDENT_SIZE = 1024, 576
TEACHER_LAYERS, STUDENT_LAYERS = 28, 30
TEXT_LIMIT, HIDDEN_LIMIT = math.log(STUDENT_VOCABULARY) + 1.0, 5.0
POSITIONS = 8


@pytest.fixture(scope="module")
def student() -> tuple[Tensor, Tensor]:
    """Normalised states and SmolLM's initial output matrix (standard deviation 0.0417): logits of about 1."""
    weight_VD = 0.0417 * random_logits(STUDENT_VOCABULARY, STUDENT_SIZE, seed=1, scale=1.0)
    return random_logits(POSITIONS, STUDENT_SIZE, seed=2, scale=1.0), weight_VD


@pytest.fixture(scope="module", params=["random", "peaked", "certain"])
def rows(request: pytest.FixtureRequest) -> TeacherRows:
    logits = random_logits(POSITIONS, TEACHER_VOCABULARY, seed=3)
    if request.param != "random":
        peak = 25.0 if request.param == "peaked" else 60.0  # 0.9 of the mass; all of it but 1e-20
        logits[torch.arange(POSITIONS), torch.arange(POSITIONS) * 7919] = peak
    return teacher_rows(logits, 256, 16)


@torch.no_grad()
def test_r02_lm_at_initialisation(student: tuple[Tensor, Tensor]) -> None:
    labels = torch.arange(POSITIONS) * 6007
    text = Text(labels, None, stretches(POSITIONS, POSITIONS, None))
    nll = float(text_loss(student[0], OutputHead(student[1]), text, kd_weight=0.0, dtype=torch.float32).nll)
    assert nll / POSITIONS <= TEXT_LIMIT
    logits = student[0].double() @ student[1].double().T
    expected = -sum(float(row.log_softmax(-1)[label]) for row, label in zip(logits, labels, strict=True))
    assert nll == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("order", get_args(KdOrder))
@pytest.mark.parametrize("tail", get_args(KdTail))
@torch.no_grad()
def test_r02_kd_at_initialisation(
    student: tuple[Tensor, Tensor], rows: TeacherRows, temperature: float, order: KdOrder, tail: KdTail
) -> None:
    student_ids = torch.arange(TEACHER_VOCABULARY) * 31 % STUDENT_VOCABULARY
    student_ids[::10] = -1
    target = target_of_all(rows, rule_map(student_ids), temperature, order, tail)
    found = text_loss(student[0], OutputHead(student[1]), text_of(target), kd_weight=1.0, dtype=torch.float32)
    assert found.kl is not None
    assert 0.0 <= float(found.kl) / POSITIONS <= TEXT_LIMIT
    assert 0.0 <= float(found.loss) / POSITIONS / temperature**2 <= TEXT_LIMIT
    assert float(found.weighted_nll) == 0.0


def states(size: int, kind: str, seed: int) -> Tensor:
    """[2 windows, 64 positions, size]: isotropic, or as in trained models with a common direction and huge axes."""
    drawn = torch.randn(2, 64, size, generator=torch.Generator().manual_seed(seed))
    if kind == "isotropic":
        return drawn
    drawn = drawn + 3.0
    drawn[..., :2] *= 1000.0
    drawn[:, 0] *= 100.0  # the first position's massive activations
    return drawn


@pytest.mark.parametrize("kind", ["isotropic", "outliers"])
@pytest.mark.parametrize("teacher_layer", [0, 7, 14, 27, 28])
def test_r02_hidden_losses_at_initialisation(kind: str, teacher_layer: int) -> None:
    student_layer = paired_layer(teacher_layer, TEACHER_LAYERS, STUDENT_LAYERS)
    assert 0 <= student_layer <= STUDENT_LAYERS
    student = states(STUDENT_SIZE, "isotropic", seed=student_layer)
    teacher = states(TEACHER_SIZE, kind, seed=100 + teacher_layer)
    weight = torch.empty(TEACHER_SIZE, STUDENT_SIZE)
    torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=torch.Generator().manual_seed(1))
    projected, mask = student @ weight.T, torch.ones(2, 64, dtype=torch.bool)
    for value in (
        cosine_distance(projected, teacher, mask),
        relation_kl(student, teacher, mask),
        contrastive_nll(projected, teacher, mask),
    ):
        assert 0.0 < float(value.mean()) <= HIDDEN_LIMIT
