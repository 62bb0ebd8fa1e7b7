"""The measures of a meta step against closed forms, naive loops and the meta-gradient itself, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from mcn.data.plan import epoch_plan, steps_per_epoch, steps_since
from mcn.diagnosis import (
    adapt,
    answers,
    bank_cosines,
    compare_orders,
    constant_answer,
    loss_at,
    mean_of,
)
from mcn.losses import classification_loss
from mcn.meta import meta_gradient
from mcn.pairing import combine_features
from mcn.shares import Share

ALPHA = 0.3


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _quadratic(seed):
    """1/2 (w - a)' H (w - a) of six parameters in two tensors, with H and a."""
    root, centre = _random(6, 6, seed=seed), _random(6, seed=seed + 1)
    hessian = root @ root.T / 6

    def loss(params):
        d = _flat(params) - centre
        return 0.5 * d @ hessian @ d

    return loss, hessian, centre


def _flat(params):
    return torch.cat([params["u"], params["w"].flatten()])


def _six(seed=9):
    x = _random(6, seed=seed)
    return {"u": x[:2], "w": x[2:].view(2, 2)}


def _cosine(a, b):
    return (a @ b / a.norm() / b.norm()).item()


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_orders_of_quadratic_losses_in_closed_form(inner_steps):
    (support, h, a), (query, h_q, c) = _quadratic(0), _quadratic(5)
    theta, eye = _six(), torch.eye(6).double()
    shrink = torch.linalg.matrix_power(eye - ALPHA * h, inner_steps)
    adapted = a + shrink @ (_flat(theta) - a)
    v = h_q @ (adapted - c)
    found = compare_orders(support, query, theta, ALPHA, inner_steps=inner_steps)
    assert found.ratio == pytest.approx(((eye - shrink) @ v).norm().item() / v.norm().item(), rel=1e-12)
    assert found.cosine == pytest.approx(_cosine(v, shrink @ v), rel=1e-12)
    if inner_steps == 1:
        assert found.ratio == pytest.approx(ALPHA * (h @ v).norm().item() / v.norm().item(), rel=1e-12)
        assert found.curvature == pytest.approx((v @ h @ v / (v @ v)).item(), rel=1e-12)
    torch.testing.assert_close(
        _flat(adapt(support, theta, ALPHA, inner_steps=inner_steps)), adapted, rtol=1e-12, atol=1e-12
    )


def test_orders_with_a_clip_in_closed_form():
    (support, h, a), (query, h_q, c) = _quadratic(0), _quadratic(5)
    theta, clip = _six(), 0.5
    g = h @ (_flat(theta) - a)
    unit = g / g.norm()
    v = h_q @ (_flat(theta) - ALPHA * clip * unit - c)
    subtracted = ALPHA * h @ (clip / g.norm() * (v - unit * (unit @ v)))
    found = compare_orders(support, query, theta, ALPHA, inner_clip=clip)
    assert found.ratio == pytest.approx(subtracted.norm().item() / v.norm().item(), rel=1e-12)
    assert found.cosine == pytest.approx(_cosine(v, v - subtracted), rel=1e-12)


def _bent(seed):
    x, y = _random(5, 3, seed=seed), _random(5, seed=seed + 1)
    return lambda p: (torch.tanh(x @ p["a"]).sum(1) - y).square().mean() + 0.1 * p["b"].exp().sum()


def _bent_parameters():
    return {"a": _random(3, 4, seed=3), "b": _random(2, seed=4)}


def test_orders_are_those_of_the_meta_gradient():
    support, query, params = _bent(0), _bent(10), _bent_parameters()
    exact, first = (
        torch.cat(
            [
                g.flatten()
                for g in meta_gradient(support, query, params, ALPHA, order=order).gradients.values()
            ]
        )
        for order in ("exact", "first")
    )
    found = compare_orders(support, query, params, ALPHA)
    assert found.ratio == pytest.approx((first - exact).norm().item() / first.norm().item(), rel=1e-9)
    assert found.cosine == pytest.approx(_cosine(first, exact), rel=1e-9)


def test_shares_are_the_loss_that_they_add_up_to():
    parts = [
        [Share(_bent(seed), weight) for seed, weight in pairs]
        for pairs in (((0, 0.25), (2, 0.75)), ((4, 1.0),))
    ]
    whole = [lambda p, part=part: sum(s.weight * s.loss(p) for s in part) for part in parts]
    params = _bent_parameters()
    assert compare_orders(*parts, params, ALPHA) == pytest.approx(
        compare_orders(*whole, params, ALPHA), rel=1e-9
    )
    assert loss_at(parts[0], params) == pytest.approx(whole[0](params).item(), rel=1e-12)


def test_without_an_inner_step_there_is_nothing_to_compare():
    with pytest.raises(ValueError, match="inner_lr is 0"):
        compare_orders(_bent(0), _bent(1), _bent_parameters(), 0.0)


def test_answers_are_counted_apart():
    labels = torch.tensor([1.0, 0, 0, 1, 0, 0])
    logits = torch.tensor([2.0, -1, -1, -3, 4, -2])
    assert answers(logits, labels) == (50.0, 75.0)
    always_no = answers(-torch.ones(6), labels)
    assert always_no == (0.0, 100.0)
    assert math.isnan(answers(logits[:1], labels[:1]).other)


@pytest.mark.parametrize("pairing", ["cross", "all"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_constant_answer_has_a_smaller_loss(size, pairing):
    z = _random(2 * size, 3)
    pairs = combine_features(z, z, group_size=size, pairing=pairing)
    found = constant_answer(pairs.labels, pairs.group)
    of_each = [
        classification_loss(torch.full_like(pairs.labels, logit), pairs.labels, pairs.group).item()
        for logit in torch.linspace(-6, 3, 2001).tolist()
    ]
    assert found <= min(of_each)
    assert found == pytest.approx(min(of_each), abs=1e-4)  # the grid's step is .0045
    if (size, pairing) == (4, "cross"):
        assert found == pytest.approx(8 * math.log(16 / 3**1.5), rel=1e-9)  # 16 H(1/4): 8.997


def test_bank_cosines_by_a_loop():
    rows, index = F.normalize(_random(2, 5, 3), dim=-1), torch.tensor([4, 1, 1])
    z = [_random(3, 3, seed=7), _random(3, 3, seed=8)]
    found = bank_cosines(rows, index, *z)
    for i, video in enumerate(index.tolist()):
        own = [_cosine(z[view][i], rows[view, video]) for view in (0, 1)]
        others = [_cosine(z[view][i], rows[view, j]) for view in (0, 1) for j in range(5) if j != video]
        assert found.own[i].item() == pytest.approx(sum(own) / 2, rel=1e-9)
        assert found.others[i].item() == pytest.approx(sum(others) / 8, rel=1e-9)


def test_a_standard_error():
    assert mean_of([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, math.sqrt(14 / 3) / 2))


@pytest.mark.parametrize("stages", [True, False])
@pytest.mark.parametrize(("redraw", "query_only"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("done", [1, 3, 4, 11])
def test_steps_since_by_doing_the_steps(stages, redraw, query_only, done):
    videos, batch, seed = 13, 3, 5
    per_epoch, last = steps_per_epoch(videos, batch, stages), {}
    for step in range(done):
        plan = epoch_plan(videos, batch, step // per_epoch, seed, stages, redraw)[step % per_epoch]
        for request in plan.query if query_only else plan.query + plan.support:
            last[request.video] = step
    expected = [done - 1 - last[video] if video in last else None for video in range(videos)]
    found = steps_since(videos, batch, done, seed, stages, redraw=redraw, query_only=query_only)
    assert found == expected
