"""The meta step against the textbook graph, closed forms and finite differences, in float64.

In float32 one unit in the last place of the adapted parameters flips ReLUs, so gradients of real
networks can only be compared in float64.
"""

import copy
import math
import weakref

import pytest
import torch
import torch.nn.functional as F

from mcn import meta
from mcn.bank import FeatureBank, draw_negatives
from mcn.errors import MCNError
from mcn.lean import Block, Chain, ChainedLoss
from mcn.losses import classification_loss, meta_loss, multiview_loss
from mcn.network import (
    MetaContrastiveNetwork,
    blocks_with,
    call_with,
    running_statistics,
    shared_parameters,
)
from mcn.shares import Share

METHODS = ("fast", "balanced", "lean")
VIDEOS, ROWS, DIM = 4, 20, 8


def meta_gradient(support, query, params, *args, method="auto", **options):
    """Of plain functions too in the lean way: as chains of one block."""

    def chained(loss):
        if method != "lean" or loss is None or isinstance(loss, ChainedLoss):
            return loss
        return Chain((Block(loss, tuple(params)),))

    return meta.meta_gradient(chained(support), chained(query), params, *args, method=method, **options)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _leaves(params):
    return {name: p.detach().clone().requires_grad_() for name, p in params.items()}


def _textbook(support, query, params, inner_lr, inner_steps=1, inner_clip=math.inf):
    """MAML as written: one graph through the inner updates, differentiated as a whole."""
    theta = _leaves(params)
    adapted = theta
    for _ in range(inner_steps):
        g = torch.autograd.grad(
            support(adapted), tuple(adapted.values()), create_graph=True, materialize_grads=True
        )
        norm = torch.cat([d.flatten() for d in g]).norm()
        short = inner_clip / norm if norm > inner_clip else 1.0
        adapted = {name: p - inner_lr * short * d for (name, p), d in zip(adapted.items(), g, strict=True)}
    parts = torch.autograd.grad(query(adapted), tuple(theta.values()), materialize_grads=True)
    return dict(zip(theta, parts, strict=True))


def _largest(gradients) -> float:
    return max(g.abs().max().item() for g in gradients.values())


def _distance(a, b) -> float:
    """Largest difference of any entry, relative to the largest entry."""
    assert list(a) == list(b)
    return max((a[name] - b[name]).abs().max().item() for name in a) / _largest(b)


# ---- real networks: BatchNorm in training mode, dropout, the bank, both losses


def _network(backbone: str = "r3d_small", **options) -> MetaContrastiveNetwork:
    torch.manual_seed(0)
    width = None if backbone == "s3d" else 4
    return MetaContrastiveNetwork(backbone, width=width, dim=DIM, **options).double()


def _bank() -> FeatureBank:
    return FeatureBank(ROWS, DIM, generator=torch.Generator().manual_seed(1)).double()


class _Loss:
    """A pure loss: its clips, negatives, snapshot, statistics and dropout are all closed over."""

    def __init__(self, network, bank, seed: int, frames: int = 4):
        generator = torch.Generator().manual_seed(seed)
        self.clips = _random(2, VIDEOS, 3, frames, 32, 32, seed=seed)
        self.index = torch.randperm(ROWS, generator=generator)[:VIDEOS]
        self.negatives = draw_negatives(self.index, ROWS, 6, generator)
        self.rows, self.statistics = bank.snapshot(), running_statistics(network)
        self.network, self.seed = network, seed

    def buffers(self):
        return {name: buffer.clone() for name, buffer in self.statistics.items()}

    def of(self, out):
        dropout = torch.Generator().manual_seed(self.seed)
        kept = torch.rand(out.z1.shape, generator=dropout, dtype=torch.float64) > 0.2
        z1 = out.z1 * kept / 0.8
        contrast = multiview_loss(z1, out.z2, self.rows, self.index, negatives=self.negatives)
        return meta_loss(classification_loss(out.logits, out.labels, out.group), contrast)

    def __call__(self, params):
        return self.of(call_with(self.network, params, self.buffers(), *self.clips))

    def blocks(self):
        return blocks_with(self.network, self.buffers(), *self.clips, self.of)


def _case(backbone: str = "r3d_small", **options):
    network, bank = _network(backbone, **options), _bank()
    frames = 8 if backbone == "s3d" else 4  # s3d halves time three times
    return network, bank, _Loss(network, bank, 2, frames), _Loss(network, bank, 3, frames)


def _assert_exact(network, support, query, inner_steps: int = 1):
    args = (support, query, shared_parameters(network), 0.01)
    expected = _textbook(*args, inner_steps)
    for method in METHODS:
        result = meta_gradient(*args, method=method, inner_steps=inner_steps)
        assert _distance(result.gradients, expected) < 1e-9, method
    # The case can tell the orders apart: without the Hessian it would be far off.
    first = meta_gradient(*args, order="first", inner_steps=inner_steps)
    assert _distance(first.gradients, expected) > 1e-2


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_exact_is_the_textbook_graph(inner_steps):
    network, _, support, query = _case()
    _assert_exact(network, support, query, inner_steps)


# r3d_10 is not listed: at width 4 it is r3d_small.
@pytest.mark.parametrize("backbone", ["r3d_18", "r2plus1d_10", "r2plus1d_18", "s3d"])
def test_exact_on_other_backbones(backbone):
    network, _, support, query = _case(backbone)
    _assert_exact(network, support, query)


@pytest.mark.parametrize(
    "options",
    [
        {"sharing": "separate"},
        {"statistics": "mixed"},
        {"projection": "mlp", "fcm_input": "pooled", "head": "linear"},
    ],
)
def test_exact_with_other_settings(options):
    network, _, support, query = _case(**options)
    _assert_exact(network, support, query)


def test_first_order_is_the_gradient_at_the_adapted_parameters():
    """The oracle is a plain network with the adapted weights loaded, and backward()."""
    network, bank, support, query = _case()
    theta = shared_parameters(network)
    support(theta).backward()
    adapted = copy.deepcopy(network)
    with torch.no_grad():
        for p, old in zip(adapted.parameters(), network.parameters(), strict=True):
            p -= 0.01 * old.grad
    adapted.zero_grad()
    loss = _Loss(adapted, bank, 3)(shared_parameters(adapted))
    loss.backward()
    expected = {name: p.grad for name, p in adapted.named_parameters()}
    gradients, _, query_loss = meta_gradient(support, query, theta, 0.01, order="first")
    assert _distance(gradients, expected) < 1e-12
    assert query_loss.item() == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_step_is_pure(method):
    """Network, parameters, statistics and bank are as before; the same call says the same."""
    network, bank, support, query = _case()
    params = shared_parameters(network)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    rows, random = bank.snapshot(), torch.get_rng_state()
    runs = [meta_gradient(support, query, params, 0.01, method=method) for _ in range(2)]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(bank.rows, rows)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad and p.is_leaf for p in params.values())
    assert _distance(runs[0].gradients, runs[1].gradients) < 1e-12
    assert not any(g.requires_grad for g in runs[0].gradients.values())
    assert not runs[0].support_loss.requires_grad
    assert not runs[0].query_loss.requires_grad


def test_the_losses_are_those_at_theta_and_at_the_adapted_parameters():
    network, _, support, query = _case()
    theta = shared_parameters(network)
    result = meta_gradient(support, query, theta, 0.01, order="first", inner_steps=2)
    plain = meta_gradient(None, query, theta, 0.01, inner_steps=0)
    assert torch.equal(result.support_loss, support(theta).detach())
    assert torch.equal(plain.query_loss, query(theta).detach())
    assert not torch.equal(result.query_loss, plain.query_loss)


# ---- quadratics, by hand


def _quadratic(seed: int):
    """½ (θ − a)ᵀ H (θ − a) over six numbers that live in two tensors; also H and a."""
    root, centre = _random(6, 6, seed=seed), _random(6, seed=seed + 1)
    hessian = root @ root.T / 6

    def loss(params):
        d = torch.cat([params["u"], params["w"].flatten()]) - centre
        return 0.5 * d @ hessian @ d

    return loss, hessian, centre


def _six(seed: int = 9):
    x = _random(6, seed=seed)
    return {"u": x[:2], "w": x[2:].view(2, 2)}


def _flat(params) -> torch.Tensor:
    return torch.cat([params["u"], params["w"].flatten()])


@pytest.mark.parametrize("inner_steps", [1, 2, 5])
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_quadratic_losses_in_closed_form(method, inner_steps):
    (support, h_s, a), (query, h_q, c) = _quadratic(0), _quadratic(5)
    theta, alpha = _six(), 0.3
    shrink = torch.linalg.matrix_power(torch.eye(6).double() - alpha * h_s, inner_steps)
    adapted = a + shrink @ (_flat(theta) - a)
    g_q = h_q @ (adapted - c)
    exact = meta_gradient(support, query, theta, alpha, method=method, inner_steps=inner_steps)
    first = meta_gradient(support, query, theta, alpha, order="first", method=method, inner_steps=inner_steps)
    # A handful of 6 x 6 products of numbers of size 1 in float64.
    torch.testing.assert_close(_flat(exact.gradients), shrink @ g_q, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(_flat(first.gradients), g_q, rtol=1e-12, atol=1e-12)
    expected = 0.5 * (adapted - c) @ h_q @ (adapted - c)
    assert exact.query_loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_a_clipped_inner_step_is_the_textbook_graph(method, inner_steps):
    """The exact order differentiates the clip, too: leaving its Jacobian out would be seen."""
    network, _, support, query = _case()
    params = shared_parameters(network)
    plain = meta_gradient(None, support, params, 0.0, inner_steps=0).gradients
    norm = meta.norm_of(plain)
    for clip in (norm / 3, norm * 1e6):  # short of the gradient, and far beyond every one
        options = {"inner_steps": inner_steps, "inner_clip": clip}
        exact = meta_gradient(support, query, params, 0.01, method=method, **options).gradients
        expected = _textbook(support, query, params, 0.01, **options)
        assert _distance(exact, expected) < 1e-9
    unclipped = meta_gradient(support, query, params, 0.01, method=method, inner_steps=inner_steps).gradients
    assert all(torch.equal(exact[name], unclipped[name]) for name in exact)  # the far one changes no bit


@pytest.mark.parametrize("order", ["exact", "first"])
def test_a_clip_in_closed_form(order):
    """On a quadratic loss: the step has the clip's length, and the Jacobian is that of a unit vector."""
    (support, h_s, a), (query, h_q, c) = _quadratic(0), _quadratic(5)
    theta, alpha, clip = _six(), 0.3, 0.5
    g = h_s @ (_flat(theta) - a)
    unit = g / g.norm()
    assert g.norm() > clip
    adapted = _flat(theta) - alpha * clip * unit
    jacobian = clip / g.norm() * (torch.eye(6).double() - torch.outer(unit, unit))
    v = h_q @ (adapted - c)
    expected = v - alpha * h_s @ jacobian @ v if order == "exact" else v
    found = meta_gradient(support, query, theta, alpha, order=order, inner_clip=clip)
    torch.testing.assert_close(_flat(found.gradients), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["exact", "first"])
def test_without_inner_steps_it_is_the_plain_gradient(order, method):
    support, (query, h_q, c) = _quadratic(0)[0], _quadratic(5)
    theta = _six()
    result = meta_gradient(support, query, theta, 0.3, order=order, method=method, inner_steps=0)
    expected = h_q @ (_flat(theta) - c)
    torch.testing.assert_close(_flat(result.gradients), expected, rtol=1e-12, atol=1e-12)
    assert result.support_loss is None


@pytest.mark.parametrize("method", METHODS)
def test_an_inner_rate_of_zero_is_the_plain_gradient(method):
    support, query, theta = _quadratic(0)[0], _quadratic(5)[0], _six()
    zero = meta_gradient(support, query, theta, 0.0, method=method).gradients
    plain = meta_gradient(None, query, theta, 0.0, inner_steps=0).gradients
    assert torch.equal(_flat(zero), _flat(plain))


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_the_slope_of_the_adapted_loss(method):
    """Finite differences of θ → L_q(θ̄(θ)), on a smooth net, by an inner update made by hand."""
    x, y = _random(2, 5, 3, seed=1), _random(2, 5, seed=2)
    params = {"a": _random(3, 4, seed=3), "b": _random(4, seed=4)}
    losses = [lambda p, i=i: (torch.tanh(x[i] @ p["a"]) @ p["b"] - y[i]).square().mean() for i in (0, 1)]

    def adapted_loss(p):
        for _ in range(2):
            theta = _leaves(p)
            grads = torch.autograd.grad(losses[0](theta), tuple(theta.values()))
            p = {n: t.detach() - 0.1 * g for (n, t), g in zip(theta.items(), grads, strict=True)}
        return losses[1](p)

    along = {"a": _random(3, 4, seed=5), "b": _random(4, seed=6)}
    far = [adapted_loss({n: p + e * along[n] for n, p in params.items()}) for e in (1e-5, -1e-5)]
    gradients = meta_gradient(*losses, params, 0.1, method=method, inner_steps=2).gradients
    slope = sum((gradients[n] * along[n]).sum() for n in params)
    # Central differences: h² = 1e-10 of the third derivative, and 1e-16 / h of rounding.
    assert slope.item() == pytest.approx(((far[0] - far[1]) / 2e-5).item(), rel=1e-7)


# ---- parameters that a loss does not use, losses without curvature


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["exact", "first"])
def test_an_unused_parameter_has_gradient_zero(order, method):
    params = {**_six(), "idle": torch.ones(3, 2, dtype=torch.float64)}
    args = (_quadratic(0)[0], _quadratic(5)[0])
    gradients = meta_gradient(*args, params, 0.3, order=order, method=method).gradients
    assert torch.equal(gradients["idle"], torch.zeros(3, 2, dtype=torch.float64))
    without = meta_gradient(*args, _six(), 0.3, order=order, method=method).gradients
    assert torch.equal(_flat(gradients), _flat(without))


@pytest.mark.parametrize("method", METHODS)
def test_parameters_that_only_one_loss_uses(method):
    params = {"s": _random(3), "q": _random(3, seed=1), "both": _random(3, seed=2)}

    def support(p):
        return (p["s"].exp() * p["both"].square()).sum()

    def query(p):
        return (p["q"].square() * p["both"].sin()).sum()

    gradients = meta_gradient(support, query, params, 0.1, method=method).gradients
    assert gradients["s"].abs().min() > 0  # only through the mixed second derivative
    assert _distance(gradients, _textbook(support, query, params, 0.1)) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_a_support_loss_without_curvature(method):
    slope, (query, h_q, c) = _random(6, seed=3), _quadratic(5)
    theta = _six()
    gradients = meta_gradient(lambda p: slope @ _flat(p), query, theta, 0.3, method=method).gradients
    expected = h_q @ (_flat(theta) - 0.3 * slope - c)
    torch.testing.assert_close(_flat(gradients), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_support_loss_with_curvature_in_some_parameters_only(method):
    def support(p):
        return p["u"].sum() + p["w"].pow(4).sum()

    args = (support, _quadratic(5)[0], _six(), 0.05)
    gradients = meta_gradient(*args, method=method).gradients
    assert _distance(gradients, _textbook(*args)) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_enabled_inside_and_the_callers_mode_is_kept(method):
    args = (_quadratic(0)[0], _quadratic(5)[0], _six(), 0.3)
    expected = meta_gradient(*args, method=method).gradients
    with torch.no_grad():
        gradients = meta_gradient(*args, method=method).gradients
        assert not torch.is_grad_enabled()
    assert torch.equal(_flat(gradients), _flat(expected))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_have_the_type_and_shape_of_the_parameters(method):
    params = {"a": torch.ones(2, 3), "b": torch.ones((), dtype=torch.float64)}
    loss = lambda p: p["a"].pow(3).sum() + p["b"].pow(3)  # noqa: E731
    gradients = meta_gradient(loss, loss, params, 0.1, method=method).gradients
    for name, p in params.items():
        assert (gradients[name].shape, gradients[name].dtype) == (p.shape, p.dtype)


@pytest.mark.parametrize(("method", "calls"), [("fast", 2), ("balanced", 4), ("lean", 4)])
def test_how_often_the_support_loss_is_called(method, calls):
    """``fast`` keeps the graph; the others compute each step's loss a second time."""
    seen = []

    def support(p):
        seen.append(1)
        return p["u"].pow(4).sum() + p["w"].pow(4).sum()

    meta_gradient(support, _quadratic(5)[0], _six(), 0.01, method=method, inner_steps=2)
    assert len(seen) == calls


# ---- many processes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("order", "calls"), [("exact", 5), ("first", 3)])
def test_reduce_takes_every_gradient_and_every_hessian_product_once(order, calls, method):
    seen = []

    def reduce(tensors):
        seen.append({name: t.clone() for name, t in tensors.items()})
        return tensors

    args = (_quadratic(0)[0], _quadratic(5)[0], _six(), 0.3)
    options = {"order": order, "method": method, "inner_steps": 2}
    result = meta_gradient(*args, **options, reduce=reduce)
    assert torch.equal(_flat(result.gradients), _flat(meta_gradient(*args, **options).gradients))
    assert len(seen) == calls  # a support gradient a step, the query's, a product a step
    assert all(list(tensors) == ["u", "w"] for tensors in seen)
    h_s, a = _quadratic(0)[1:]
    torch.testing.assert_close(_flat(seen[0]), h_s @ (_flat(_six()) - a), rtol=1e-12, atol=1e-12)


class _Waiting(Exception):
    """A rank has come to a reduction that the others have not reached yet."""


def _in_lockstep(ranks):
    """Run ranks that meet in ``reduce``, without threads.

    Losses are pure, so a rank that has to wait is stopped, and later run again from its start with
    the averages known by then.
    """
    known = []
    while True:
        asked, results = [], []
        for rank in ranks:
            answers = iter(known)

            def reduce(tensors, answers=answers, asked=asked):
                answer = next(answers, None)
                if answer is None:
                    asked.append({name: t.detach().clone() for name, t in tensors.items()})
                    raise _Waiting
                return answer

            try:
                results.append(rank(reduce))
            except _Waiting:
                continue
        if not asked:
            return results
        assert len(asked) == len(ranks)  # nobody is ahead
        known.append({name: sum(t[name] for t in asked) / len(asked) for name in asked[0]})


def _shares():
    """Two ranks' losses of a small net with a ReLU, and the losses of one process that sees both."""
    x, y = _random(4, 6, 3, seed=1), _random(4, 6, seed=2)

    def share(i):
        return lambda p: (F.relu(x[i] @ p["a"]).tanh() @ p["b"] - y[i]).square().mean()

    support, query = [share(0), share(1)], [share(2), share(3)]
    whole = [lambda p, s=s: (s[0](p) + s[1](p)) / 2 for s in (support, query)]
    return support, query, whole


@pytest.mark.parametrize("inner_clip", [None, 0.1])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["exact", "first"])
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_two_ranks_that_reduce_are_one_process_with_both_shares(order, method, inner_steps, inner_clip):
    support, query, whole = _shares()
    params = {"a": _random(3, 4, seed=3), "b": _random(4, seed=4)}
    options = {"order": order, "method": method, "inner_steps": inner_steps, "inner_clip": inner_clip}

    def rank(i):
        return lambda reduce: meta_gradient(support[i], query[i], params, 0.2, reduce=reduce, **options)

    results = _in_lockstep([rank(0), rank(1)])
    expected = meta_gradient(*whole, params, 0.2, **options)
    for result in results:
        assert _distance(result.gradients, expected.gradients) < 1e-12
    mean = (results[0].query_loss + results[1].query_loss) / 2
    assert mean.item() == pytest.approx(expected.query_loss.item(), rel=1e-12)
    # Averaging once at the end is another algorithm ("a task per rank"), with another gradient.
    alone = [meta_gradient(support[i], query[i], params, 0.2, **options).gradients for i in (0, 1)]
    task_per_rank = {name: (alone[0][name] + alone[1][name]) / 2 for name in params}
    assert _distance(task_per_rank, expected.gradients) > 1e-3


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "second"}, "order is one of .*'second'"),
        ({"method": "finite"}, "method is one of .*'finite'"),
        ({"inner_steps": -1}, "inner_steps is 0 or more, got -1"),
    ],
)
def test_settings_that_do_not_exist_raise(options, message):
    with pytest.raises(ValueError, match=message):
        meta_gradient(_quadratic(0)[0], _quadratic(5)[0], _six(), 0.1, **options)


def test_an_inner_step_without_a_support_loss_raises():
    with pytest.raises(ValueError, match="needs a support loss"):
        meta_gradient(None, _quadratic(5)[0], _six(), 0.1)


@pytest.mark.parametrize("wrong_one", ["support", "query"])
def test_lean_refuses_a_loss_in_one_piece(wrong_one):
    chain, opaque = Chain((Block(_quadratic(5)[0], ("u", "w")),)), _quadratic(0)[0]
    losses = (opaque, chain) if wrong_one == "support" else (chain, opaque)
    with pytest.raises(MCNError, match=r"chain of blocks, not function loss: .*balanced or fast$"):
        meta.meta_gradient(*losses, _six(), 0.1, method="lean")
    assert meta.meta_gradient(*losses, _six(), 0.1, method="lean", order="first").gradients


@pytest.mark.parametrize(("memory", "way"), [(10**12, "fast"), (10, "lean")])
def test_auto_is_the_way_that_memory_leaves_open(memory, way, monkeypatch):
    """The same gradient, and the products of that way; an opaque loss has to do without lean."""
    monkeypatch.setattr(meta, "memory_of", lambda device: memory)
    taken, product = [], meta._product
    monkeypatch.setattr(meta, "_product", lambda way, *rest: taken.append(way) or product(way, *rest))
    losses, params = (_quadratic(0)[0], _quadratic(5)[0]), _six()
    chains = [Chain((Block(loss, ("u", "w")),)) for loss in losses]
    expected = _flat(meta.meta_gradient(*losses, params, 0.3, method="fast", inner_steps=2).gradients)
    taken.clear()
    for pair in (chains, losses, (chains[0], losses[1])):
        found = meta.meta_gradient(*pair, params, 0.3, inner_steps=2).gradients
        torch.testing.assert_close(_flat(found), expected, rtol=1e-12, atol=1e-12)
    opaque = "fast" if way == "fast" else "balanced"
    assert taken == [way] * 2 + [opaque] * 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", ["support", "query"])
def test_a_loss_that_is_not_a_scalar_raises(wrong, method):
    good, vector = _quadratic(0)[0], lambda p: p["u"]
    support, query = (vector, good) if wrong == "support" else (good, vector)
    with pytest.raises(ValueError, match=r"scalar, got shape \(2,\)"):
        meta_gradient(support, query, _six(), 0.1, method=method)


def test_balanced_refuses_a_loss_that_writes_to_statistics_outside_it():
    """Not silently counted twice: the recomputation of an impure loss is an error."""
    network = _network()
    clips, buffers = _random(2, VIDEOS, 3, 8, 16, 16), running_statistics(network)

    def impure(params):
        return call_with(network, params, buffers, *clips).z1.square().sum()

    args = (impure, impure, shared_parameters(network), 0.01)
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        meta_gradient(*args, method="balanced")


# ---- shares of a batch


def _weighted():
    """Three unequal shares of the support and of the query loss, and the same as losses in one piece."""
    x, y = _random(6, 6, 3, seed=1), _random(6, 6, seed=2)

    def loss(i):
        return lambda p: (F.relu(x[i] @ p["a"]).tanh() @ p["b"] - y[i]).square().mean()

    weights = (0.2, 0.3, 0.5)
    parts = [[Share(loss(3 * stage + i), w) for i, w in enumerate(weights)] for stage in (0, 1)]
    whole = [lambda p, part=part: sum(share.weight * share.loss(p) for share in part) for part in parts]
    return parts, whole, {"a": _random(3, 4, seed=3), "b": _random(4, seed=4)}


class _Token:
    pass


def _chains(shares, params):
    return [Share(Chain((Block(share.loss, tuple(params)),)), share.weight) for share in shares]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["exact", "first"])
@pytest.mark.parametrize("inner_steps", [0, 1, 2])
def test_shares_are_the_loss_that_they_add_up_to(order, method, inner_steps):
    parts, whole, params = _weighted()
    options = {"order": order, "method": method, "inner_steps": inner_steps}
    found = meta.meta_gradient(*(_chains(part, params) for part in parts), params, 0.2, **options)
    expected = meta_gradient(*whole, params, 0.2, **options)
    assert _distance(found.gradients, expected.gradients) < 1e-12
    assert found.query_loss.item() == pytest.approx(expected.query_loss.item(), rel=1e-12)
    if inner_steps:
        assert found.support_loss.item() == pytest.approx(expected.support_loss.item(), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["exact", "first"])
def test_a_task_a_share_is_the_mean_of_tasks(order, method):
    parts, whole, params = _weighted()
    chains = [_chains(part, params) for part in parts]
    options = {"order": order, "method": method, "inner_steps": 2}
    reduced = []
    found = meta.meta_gradient(
        *chains, params, 0.2, task="share", reduce=lambda t: reduced.append(t) or t, **options
    )
    tasks = [meta_gradient(s.loss, q.loss, params, 0.2, **options) for s, q in zip(*parts, strict=True)]
    weights = [share.weight for share in parts[1]]
    pairs = list(zip(weights, tasks, strict=True))
    expected = {name: sum(w * task.gradients[name] for w, task in pairs) for name in params}
    assert _distance(found.gradients, expected) < 1e-12
    assert found.query_loss.item() == pytest.approx(sum(w * t.query_loss.item() for w, t in pairs))
    assert len(reduced) == 1  # one exchange, at the end
    if order == "exact":
        batch = meta_gradient(*whole, params, 0.2, **options).gradients
        assert _distance(found.gradients, batch) > 1e-3  # another algorithm


@pytest.mark.parametrize(
    ("order", "method", "task", "together"),
    [
        ("exact", "fast", "batch", 4),
        ("exact", "fast", "share", 1),
        ("exact", "balanced", "batch", 0),
        ("exact", "lean", "batch", 0),
        ("first", "auto", "batch", 0),
    ],
)
def test_one_graph_at_a_time(order, method, task, together):
    """Graphs that are alive when another begins: none, but for those that fast differentiates again."""
    alive, most = weakref.WeakSet(), [0]

    def share(seed):
        target = _random(4, seed=seed)

        def loss(p):
            most[0] = max(most[0], len(alive))
            kept = (p["w"] * target).tanh()
            if kept.grad_fn is not None:
                token = _Token()
                alive.add(token)
                kept.grad_fn.metadata["token"] = token  # lives as long as the graph
            return kept.square().sum()

        return Share(Chain((Block(loss, ("w",)),)) if method == "lean" else loss, 0.25)

    support, query = [share(i) for i in range(4)], [share(i + 4) for i in range(4)]
    meta.meta_gradient(support, query, {"w": _random(4)}, 0.1, order=order, method=method, task=task)
    assert most[0] == together
