"""The schedule by hand, and which parameters decay."""

import pytest
import torch
from torch import nn

from mcn.optim import laid_out_as, learning_rate, parameter_groups, sgd
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


def test_the_fused_optimiser_makes_the_same_steps() -> None:
    config, ends = OptimConfig(lr=0.1), []
    for fused in (None, True):  # a CPU has it too, though it is not used there
        torch.manual_seed(0)
        module = nn.Conv3d(2, 4, 3).double().to(memory_format=torch.channels_last_3d)
        optimiser = sgd(parameter_groups(module, config), config, torch.device("cpu"))
        for group in optimiser.param_groups:
            group["fused"] = fused
        for _ in range(3):
            for p in module.parameters():
                p.grad = laid_out_as(p, torch.randn(p.shape, dtype=p.dtype))
            optimiser.step()
        ends.append([p.detach() for p in module.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_gpu_gets_the_fused_optimiser() -> None:
    module = nn.Linear(2, 2)
    for device, fused in (("cpu", None), ("cuda", True)):
        optimiser = sgd(parameter_groups(module, OptimConfig()), OptimConfig(), torch.device(device))
        assert optimiser.param_groups[0]["fused"] is fused


def test_a_gradient_is_laid_out_as_its_parameter() -> None:
    gradient = torch.randn(4, 3, 3, 3, 3)
    parameter = torch.zeros_like(gradient).to(memory_format=torch.channels_last_3d)
    found = laid_out_as(parameter, gradient)
    assert torch.equal(found, gradient)
    assert found.stride() == parameter.stride()
    assert laid_out_as(gradient, gradient) is gradient
