"""The schedule by hand, and which parameters decay."""

import pytest
import torch
from torch import nn

from mcn.optim import learning_rate, parameter_groups
from mcn.settings import OptimConfig


def test_the_papers_schedule_drops_at_250_333_and_417_of_500_epochs():
    config = OptimConfig(lr=0.01, epochs=500)
    rates = [learning_rate(config, epoch, 500) for epoch in range(500)]
    drops = [epoch for epoch in range(1, 500) if rates[epoch] < rates[epoch - 1]]
    assert drops == [250, 334, 417]  # .667 of 500 is 333.5
    assert rates[0] == 0.01
    assert rates[-1] == pytest.approx(1e-5)


def test_cosine_starts_at_the_rate_and_ends_at_nothing():
    config = OptimConfig(lr=2.0, schedule="cosine")
    assert learning_rate(config, 0, 100) == 2.0
    assert learning_rate(config, 50, 100) == pytest.approx(1.0)
    assert learning_rate(config, 99, 100) == pytest.approx(0.0, abs=1e-3)


def test_warm_up_rises_linearly_then_hands_over():
    config = OptimConfig(lr=1.0, schedule="constant", warmup=0.4)
    assert [learning_rate(config, step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("decay_norm", [True, False])
def test_one_step_shrinks_only_what_decays(decay_norm):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    config = OptimConfig(lr=1.0, weight_decay=0.5, momentum=0.0, decay_norm=decay_norm)
    optimizer = torch.optim.SGD(parameter_groups(model, config), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = 0.5 if decay_norm else 1.0
    assert (model[0].weight == 0.5).all()
    for vector in (model[0].bias, model[1].weight, model[1].bias):
        assert (vector == kept).all()
