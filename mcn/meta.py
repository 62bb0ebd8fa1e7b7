r"""MAML's two-stage update (paper, Sec. 3.4 and 3.5): the gradient of the meta update.

Inner update (:eq:`eq-inner`): :math:`\bar\theta = \theta - \alpha_1 g_s(\theta)` with the support
gradient :math:`g_s`. Meta update (:eq:`eq-outer`): the query loss at :math:`\bar\theta`,
differentiated with respect to :math:`\theta`,

.. math:: \nabla_\theta L_q(\bar\theta) = g_q(\bar\theta) - \alpha_1 H_s(\theta)\, g_q(\bar\theta).

So a step is three quantities: :math:`g_s`, :math:`g_q` and a Hessian-vector product. Each may be
averaged over processes (``reduce``); this module knows neither ranks, nor networks, nor devices.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mcn.errors import MCNError
from mcn.lean import ChainedLoss, Params, hessian_product, run_lightly
from mcn.memory import choose_way, counted, memory_of

Loss = Callable[[Params], Tensor]
Reduce = Callable[[Params], Params]
Product = Callable[[Params], Params]  # v -> H_s v

ORDERS = ("exact", "first")
METHODS = ("auto", "fast", "balanced", "lean")


class MetaGradient(NamedTuple):
    """What :func:`meta_gradient` gives; unpacks as ``gradients, support_loss, query_loss``."""

    gradients: Params  #: by parameter name, ready to be an optimiser's ``.grad``
    support_loss: Tensor | None  #: at the first inner step; ``None`` without inner steps
    query_loss: Tensor  #: at the adapted parameters

    def divided(self, by: float) -> "MetaGradient":
        """All of it divided by a number: of losses that were multiplied by it."""
        support = None if self.support_loss is None else self.support_loss / by
        return MetaGradient({n: g / by for n, g in self.gradients.items()}, support, self.query_loss / by)


def meta_gradient(
    support_loss: Loss | None,
    query_loss: Loss,
    params: Params,
    inner_lr: float,
    *,
    order: str = "exact",
    method: str = "auto",
    reduce: Reduce | None = None,
    inner_steps: int = 1,
) -> MetaGradient:
    r"""Gradient of the query loss after ``inner_steps`` gradient steps on the support loss.

    Both losses are **pure** functions of a dict of parameters that return a scalar: called again
    with the same parameters they give the same value (bank snapshot, negatives, dropout and
    BatchNorm buffers are arguments they close over, not state they change). ``params`` is not
    modified. ``inner_lr`` is :math:`\alpha_1`.

    ``order="exact"`` differentiates through the inner update (second order, the paper's formula);
    ``"first"`` takes :math:`g_q(\bar\theta)` as it is (first-order MAML). ``method`` is the way to the
    Hessian product, a choice of time against memory:

    * ``"fast"`` keeps the graph of :math:`g_s`, through the query pass, and differentiates it again;
    * ``"balanced"`` keeps none: the forward derivative of the gradient along :math:`g_q`, by PyTorch;
    * ``"lean"`` is that derivative block by block (:mod:`mcn.lean`): the least memory, and mostly faster
      than ``"balanced"``, but both losses have to be chains of blocks (:class:`mcn.lean.ChainedLoss`);
    * ``"auto"`` is ``"fast"`` where that fits, by the rule of :func:`mcn.memory.choose_way`.

    ``reduce`` maps a dict of tensors to its average over processes. ``inner_steps=0`` is plain training
    on the query loss. Raises ``ValueError`` for an unknown order or method or a loss that is not a
    scalar, :class:`~mcn.errors.MCNError` for a loss that ``"lean"`` cannot take.

    >>> half = lambda target: lambda p: 0.5 * (p["w"] - target).square().sum()
    >>> gradients, _, query = meta_gradient(half(1.0), half(0.0), {"w": torch.tensor([3.0])}, 0.5)
    >>> gradients["w"], query  # w' = 3 - .5 * 2 = 2; dL/dw = (1 - .5) * 2
    (tensor([1.]), tensor(2.))
    """
    _check(order, method, inner_steps)
    reduce = reduce or (lambda tensors: tensors)
    way = method if order == "exact" else "first"

    products: list[Product] = []  # one for each inner step
    adapted, first_loss = params, None
    for _ in range(inner_steps):
        if support_loss is None:
            raise ValueError("an inner step needs a support loss: give one or set inner_steps=0")
        theta = _leaves(adapted)
        if way == "auto":
            loss, way = _evaluate_and_choose(support_loss, query_loss, theta, inner_steps)
        else:
            loss = _evaluate(support_loss, theta, way)
        first_loss = loss.detach() if first_loss is None else first_loss
        gradient = _gradient(loss, theta, create_graph=way == "fast")
        del loss  # its graph, which only "fast" needs any longer
        if way != "first":
            products.append(_product(way, support_loss, gradient, theta))
        step = reduce({name: g.detach() for name, g in gradient.items()})
        # \bar\theta = \theta - \alpha_1 g_s(\theta)
        adapted = {name: theta[name].detach() - inner_lr * step[name] for name in theta}

    theta_bar = _leaves(adapted)
    loss = _evaluate(query_loss, theta_bar, way)
    v = reduce(_gradient(loss, theta_bar))
    query = loss.detach()
    del loss
    for product in reversed(products):  # v <- (I - \alpha_1 H_s) v, the last inner step first
        h = reduce(product(v))
        v = {name: v[name] - inner_lr * h[name] for name in v}
    return MetaGradient(v, first_loss, query)


def _check(order: str, method: str, inner_steps: int) -> None:
    if order not in ORDERS:
        raise ValueError(f"order is one of {ORDERS}, got {order!r}")
    if method not in METHODS:
        raise ValueError(f"method is one of {METHODS}, got {method!r}")
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


def _evaluate_and_choose(support: Loss, query: Loss, theta: Params, inner_steps: int) -> tuple[Tensor, str]:
    """The support loss, and the way that what it keeps leaves open."""
    with counted() as kept:
        loss = _evaluate(support, theta, "auto")
    chained = isinstance(support, ChainedLoss) and isinstance(query, ChainedLoss)
    return loss, choose_way(kept.bytes, memory_of(loss.device), inner_steps=inner_steps, chained=chained)


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
    if way == "balanced":
        return _product_by_forward_mode(support_loss, theta)
    assert isinstance(support_loss, ChainedLoss)
    return lambda v: hessian_product(support_loss.blocks(), theta, v)


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
