r"""MAML's two-stage update (paper, Sec. 3.4 and 3.5): the gradient of the meta update.

Inner update (:eq:`eq-inner`): :math:`\bar\theta = \theta - \alpha_1 g_s(\theta)` with the support
gradient :math:`g_s`. Meta update (:eq:`eq-outer`): the query loss at :math:`\bar\theta`,
differentiated with respect to :math:`\theta`,

.. math:: \nabla_\theta L_q(\bar\theta) = g_q(\bar\theta) - \alpha_1 H_s(\theta)\, g_q(\bar\theta).

So a step is three quantities: :math:`g_s`, :math:`g_q` and a Hessian-vector product. Each may be a sum
over shares of a batch (:mod:`mcn.shares`), and each may be summed over processes (``reduce``); this module
knows neither ranks, nor networks, nor devices.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mcn.errors import MCNError
from mcn.lean import ChainedLoss, Params, hessian_product, run_lightly
from mcn.memory import choose_way, counted, memory_of
from mcn.shares import Loss, Share, WeightedSum, as_shares

Reduce = Callable[[Params], Params]
Product = Callable[[Params], Params]  # v -> H_s v
Shares = Loss | Sequence[Share]

ORDERS = ("exact", "first")
METHODS = ("auto", "fast", "balanced", "lean")
TASKS = ("batch", "share")


class MetaGradient(NamedTuple):
    """What :func:`meta_gradient` gives; unpacks as ``gradients, support_loss, query_loss``.

    The losses are sums over the shares that were given, not over processes.
    """

    gradients: Params  #: by parameter name, ready to be an optimiser's ``.grad``
    support_loss: Tensor | None  #: at the first inner step; ``None`` without inner steps
    query_loss: Tensor  #: at the adapted parameters

    def divided(self, by: float) -> "MetaGradient":
        """All of it divided by a number: of losses that were multiplied by it."""
        support = None if self.support_loss is None else self.support_loss / by
        return MetaGradient({n: g / by for n, g in self.gradients.items()}, support, self.query_loss / by)


def meta_gradient(
    support_loss: Shares | None,
    query_loss: Shares,
    params: Params,
    inner_lr: float,
    *,
    order: str = "exact",
    method: str = "auto",
    reduce: Reduce | None = None,
    inner_steps: int = 1,
    inner_clip: float | None = None,
    task: str = "batch",
) -> MetaGradient:
    r"""Gradient of the query loss after ``inner_steps`` gradient steps on the support loss.

    Both losses are **pure** functions of a dict of parameters that return a scalar: called again
    with the same parameters they give the same value (bank snapshot, negatives, dropout and
    BatchNorm buffers are arguments they close over, not state they change). ``params`` is not
    modified. ``inner_lr`` is :math:`\alpha_1`. Either may be a list of shares with weights
    (:class:`mcn.shares.Share`), whose weighted sum is the loss.

    ``order="exact"`` differentiates through the inner update (second order, the paper's formula);
    ``"first"`` takes :math:`g_q(\bar\theta)` as it is (first-order MAML). ``method`` is the way to the
    Hessian product, a choice of time against memory:

    * ``"fast"`` keeps the graph of :math:`g_s`, through the query pass, and differentiates it again;
    * ``"balanced"`` keeps none: the forward derivative of the gradient along :math:`g_q`; of a chain of
      blocks (:class:`mcn.lean.ChainedLoss`) without the parts that nobody asks for, of any other by PyTorch;
    * ``"lean"`` is that derivative block by block (:mod:`mcn.lean`): the least memory, but each block is
      computed twice, and both losses have to be chains;
    * ``"auto"`` is :func:`choose_method`'s, asked anew in each call: for many steps, ask it once.

    Shares are evaluated one after the other, each let go before the next: the memory of one share. Only
    ``"fast"`` needs the graph of every support share at once.

    ``task="batch"``: all shares are one task, with one inner update by the gradient of all. ``"share"``:
    each support share is a task of its own, paired with the query share of the same place; parameters
    adapt to each by its own gradient, and the meta-gradients are summed with the query shares' weights.
    That is another algorithm, with another gradient; it needs one graph at a time even where ``"fast"``.

    ``inner_clip`` is the largest norm of an inner step's gradient (:func:`inner_update`); the exact order
    differentiates through the clip, too (:func:`through_clip`).

    ``reduce`` maps a dict of tensors to its sum over processes, among which the weights of all shares add
    up to 1: for the task of a batch it is called with each step's :math:`g_s`, with :math:`g_q` and with
    each Hessian product, for a task a share once, at the end. ``inner_steps=0`` is plain training on the
    query loss. Raises ``ValueError`` for an unknown order, method or task or a loss that is not a
    scalar, :class:`~mcn.errors.MCNError` for a loss that ``"lean"`` cannot take.

    >>> half = lambda target: lambda p: 0.5 * (p["w"] - target).square().sum()
    >>> gradients, _, query = meta_gradient(half(1.0), half(0.0), {"w": torch.tensor([3.0])}, 0.5)
    >>> gradients["w"], query  # w' = 3 - .5 * 2 = 2; dL/dw = (1 - .5) * 2
    (tensor([1.]), tensor(2.))
    """
    _check(order, method, task, inner_steps)
    support, query = as_shares(support_loss), as_shares(query_loss)
    if inner_steps and not support:
        raise ValueError("an inner step needs a support loss: give one or set inner_steps=0")
    reduce = reduce or (lambda tensors: tensors)
    way = method if order == "exact" else "first"
    if way == "auto" and inner_steps:
        together = support if task == "batch" else support[:1]
        way = choose_method(together, query, params, inner_steps=inner_steps)
    if task == "share" and inner_steps:
        return _sum_of_tasks(support, query, params, inner_lr, order, way, reduce, inner_steps, inner_clip)

    products: list[tuple[Product, Params]] = []  # one for each inner step, with its gradient
    adapted, first_loss = params, None
    for _ in range(inner_steps):
        theta = _leaves(adapted)
        step, loss, product = _sum_of_shares(support, theta, way)
        first_loss = loss if first_loss is None else first_loss
        step = reduce(step)
        if way != "first":
            products.append((product, step if inner_clip is not None else {}))
        adapted = inner_update(theta, step, inner_lr, inner_clip)
        del step, product

    # The query's gradient is not differentiated again, so that "fast" keeps nothing of it.
    v, query_value = _sum_of_shares(query, _leaves(adapted), "first" if way == "fast" else way)[:2]
    del adapted  # two copies of the parameters less while a product is made
    v = reduce(v)
    for product, step in reversed(products):  # v <- (I - \alpha_1 H_s J) v, the last inner step first
        h = reduce(product(through_clip(v, step, inner_clip)))  # J is the clip's Jacobian, or I
        v = {name: v[name] - inner_lr * h[name] for name in v}
    return MetaGradient(v, first_loss, query_value)


def inner_update(theta: Params, gradient: Params, inner_lr: float, inner_clip: float | None = None) -> Params:
    r""":math:`\bar\theta = \theta - \alpha_1 g` (:eq:`eq-inner`), by parameter name.

    A gradient that is longer than ``inner_clip`` (norm over all parameters) is shortened to that length.

    >>> inner_update({"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])}, 0.5, inner_clip=1.0)
    {'w': tensor([-0.3000, -0.4000])}
    """
    if inner_clip is not None and (norm := norm_of(gradient)) > inner_clip:
        gradient = {name: g * (inner_clip / norm) for name, g in gradient.items()}
    return {name: theta[name].detach() - inner_lr * gradient[name] for name in theta}


def through_clip(v: Params, gradient: Params, inner_clip: float | None) -> Params:
    r"""The Jacobian of the clip at ``gradient``, which is symmetric, times ``v``; without a clip ``v``.

    Of :math:`g \mapsto m\, g / \|g\|` it is :math:`J = \frac{m}{\|g\|}(I - \hat g \hat g^\top)`: a step of
    fixed length only turns.

    >>> g = {"w": torch.tensor([3.0, 4.0])}
    >>> through_clip(g, g, inner_clip=1.0)["w"].abs().max() < 1e-6
    tensor(True)
    """
    if inner_clip is None or (norm := norm_of(gradient)) <= inner_clip:
        return v
    along = dot(gradient, v) / norm**2
    return {name: (inner_clip / norm) * (v[name] - along * gradient[name]) for name in v}


def norm_of(tensors: Params) -> float:
    """The Euclidean norm over all tensors together.

    >>> norm_of({"a": torch.tensor([3.0]), "b": torch.tensor(4.0)})
    5.0
    """
    return torch.nn.utils.get_total_norm(tensors.values()).item()


def dot(a: Params, b: Params) -> float:
    """The inner product over all tensors together, by name.

    >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
    11.0
    """
    return sum((a[name] * b[name]).sum().item() for name in a)


def choose_method(
    support_loss: Shares, query_loss: Shares, params: Params, *, inner_steps: int = 1, processes: int = 1
) -> str:
    """The way that ``method="auto"`` takes: ``fast`` where that fits, by :func:`mcn.memory.choose_way`.

    Evaluates the first support share once and counts what its graph keeps. ``support_loss`` are the shares
    whose graphs ``fast`` would hold at a time; ``processes`` share the device's memory.

    >>> loss = lambda p: p["w"].exp().sum()
    >>> choose_method(loss, loss, {"w": torch.ones(3)})
    'fast'
    """
    support, query = as_shares(support_loss), as_shares(query_loss)
    with counted() as kept:
        device = _evaluate(support[0].loss, _leaves(params), "auto").device
    chained = all(isinstance(share.loss, ChainedLoss) for share in (*support, *query))
    graphs = inner_steps * len(support)
    return choose_way(kept.bytes, memory_of(device) // processes, graphs=graphs, chained=chained)


def _sum_of_tasks(
    support: list[Share],
    query: list[Share],
    params: Params,
    inner_lr: float,
    order: str,
    way: str,
    reduce: Reduce,
    inner_steps: int,
    inner_clip: float | None,
) -> MetaGradient:
    """Each pair of shares a task of its own; their meta-gradients summed, and reduced once."""
    gradients, losses = WeightedSum(), WeightedSum()
    method = "auto" if way == "first" else way
    for own, asked in zip(support, query, strict=True):
        one = meta_gradient(
            own.loss, asked.loss, params, inner_lr,
            order=order, method=method, inner_steps=inner_steps, inner_clip=inner_clip,
        )  # fmt: skip
        gradients.add(one.gradients, asked.weight)
        assert one.support_loss is not None
        losses.add({"support": one.support_loss}, own.weight)
        losses.add({"query": one.query_loss}, asked.weight)
    return MetaGradient(reduce(gradients.total), losses.total["support"], losses.total["query"])


def _sum_of_shares(shares: list[Share], theta: Params, way: str) -> tuple[Params, Tensor, Product]:
    """Gradient and loss of all shares, one at a time, and the product with their Hessian."""
    gradients, losses = WeightedSum(), WeightedSum()
    products: list[Product] = []
    for share in shares:
        gradient, loss, product = _of_one(share.loss, theta, way)
        gradients.add(gradient, share.weight)
        losses.add({"loss": loss}, share.weight)
        products.append(product)

    def product_of_all(v: Params) -> Params:
        total = WeightedSum()
        for share, product in zip(shares, products, strict=True):
            total.add(product(v), share.weight)
        return total.total

    return gradients.total, losses.total["loss"], product_of_all


def _of_one(loss_of: Loss, theta: Params, way: str) -> tuple[Params, Tensor, Product]:
    """One share's gradient and loss; what is left of its graph is in the product of the fast way."""
    loss = _evaluate(loss_of, theta, way)
    gradient = _gradient(loss, theta, create_graph=way == "fast")
    plain = {name: g.detach() for name, g in gradient.items()}
    kept = gradient if way == "fast" else {}
    return plain, loss.detach(), lambda v: _product(way, loss_of, kept, theta)(v)


def _check(order: str, method: str, task: str, inner_steps: int) -> None:
    for name, value, known in (("order", order, ORDERS), ("method", method, METHODS), ("task", task, TASKS)):
        if value not in known:
            raise ValueError(f"{name} is one of {known}, got {value!r}")
    if inner_steps < 0:
        raise ValueError(f"inner_steps is 0 or more, got {inner_steps}")


def _leaves(params: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


def _evaluate(loss_of: Loss, theta: Params, way: str) -> Tensor:
    """The loss with its graph."""
    if way == "lean":
        if not isinstance(loss_of, ChainedLoss):
            what = f"{type(loss_of).__name__} {getattr(loss_of, '__name__', '')}".strip()
            raise MCNError(
                f"the lean way takes a loss that is a chain of blocks, not {what}: "
                "give it blocks(), or choose --method balanced or fast"
            )
        loss_of = partial(run_lightly, loss_of.blocks())
    with torch.enable_grad():
        loss = loss_of(theta)
    if loss.dim():
        raise ValueError(f"a loss returns a scalar, got shape {tuple(loss.shape)}")
    return loss


def _gradient(loss: Tensor, theta: Params, *, create_graph: bool = False) -> Params:
    """The gradient of a loss; a parameter that it does not use has gradient zero."""
    parts = torch.autograd.grad(
        loss, tuple(theta.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(theta, parts, strict=True))


def _product(way: str, support_loss: Loss, gradient: Params, theta: Params) -> Product:
    """H_s at ``theta`` times a vector, not computed yet."""
    if way == "fast":
        return _product_of_kept_graph(gradient, theta)
    if not isinstance(support_loss, ChainedLoss):  # balanced, which takes any loss
        return _product_by_forward_mode(support_loss, theta)
    return lambda v: hessian_product(support_loss.blocks(), theta, v, keep=way == "balanced")


def _product_of_kept_graph(gradient: Params, theta: Params) -> Product:
    """Reverse over reverse: differentiate <g_s, v> through the graph that made g_s."""

    def product(v: Params) -> Params:
        curved = [name for name, g in gradient.items() if g.requires_grad]
        if not curved:  # a loss linear in its parameters has no curvature
            return {name: torch.zeros_like(p) for name, p in theta.items()}
        parts = torch.autograd.grad(
            [gradient[name] for name in curved],
            tuple(theta.values()),
            grad_outputs=[v[name] for name in curved],
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(theta, parts, strict=True))

    return product


def _product_by_forward_mode(loss_of: Loss, theta: Params) -> Product:
    """Forward over reverse: the directional derivative of g_s along v; no graph is kept."""

    def gradient(p: Params) -> Params:
        loss, pull_back = torch.func.vjp(loss_of, p)  # type: ignore[misc]  # three with has_aux
        return pull_back(torch.ones_like(loss))[0]

    def product(v: Params) -> Params:
        at = {name: p.detach() for name, p in theta.items()}
        with torch.no_grad():
            return torch.func.jvp(gradient, (at,), (v,))[1]  # the derivative; [0] is the gradient itself

    return product
