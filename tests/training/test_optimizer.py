"""AdamW of the student and its heads, against its formula."""

import pytest
import torch
from torch import nn

from moe_distill.config.profile import Train
from moe_distill.training.optimizer import make_optimizer


def test_two_steps_are_those_of_adamw_by_hand(train: Train) -> None:
    """The first step depends on no beta, the second on both; a matrix decays, a bias does not."""
    model = nn.Linear(1, 1).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(2.0)
    optimizer = make_optimizer(model, None, train.model_copy(update={"learning_rate": 0.01, "weight_decay": 0.1}))
    gradients = [1.0, -0.5]
    for gradient in gradients:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()

    expected = {}
    for name, decay in (("weight", 0.1), ("bias", 0.0)):
        value, mean, square = 2.0, 0.0, 0.0
        for step, gradient in enumerate(gradients, start=1):
            mean = 0.9 * mean + (1 - 0.9) * gradient
            square = 0.95 * square + (1 - 0.95) * gradient**2
            value *= 1 - 0.01 * decay
            value -= 0.01 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.95**step)) ** 0.5 + 1e-8)
        expected[name] = value
    assert model.weight.item() == pytest.approx(expected["weight"], abs=1e-9)
    assert model.bias.item() == pytest.approx(expected["bias"], abs=1e-9)
