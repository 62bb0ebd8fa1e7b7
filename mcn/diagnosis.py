r"""Why a meta step helps or not, in numbers: the inner step against the curvature, the head, the bank.

With :math:`v = g_q(\bar\theta)` the exact meta-gradient is :math:`v - \alpha_1 H_s v`, the first-order one
:math:`v` (:mod:`mcn.meta`). How far they are apart is how much the exact order can matter:

.. math:: \frac{\|\alpha_1 H_s v\|}{\|v\|}, \qquad \cos(v,\; v - \alpha_1 H_s v).

Where the first is far below 1, the orders are one method; where it is far above, the step :math:`\alpha_1` is
too long for a gradient at :math:`\theta` to say much about the loss at :math:`\bar\theta`.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mcn.lean import Params
from mcn.losses import classification_loss
from mcn.meta import Shares, dot, inner_update, meta_gradient, norm_of
from mcn.shares import as_shares


class Orders(NamedTuple):
    """How far the exact meta-gradient is from the first-order one."""

    ratio: float  #: :math:`\|\alpha_1 H_s v\| / \|v\|`
    cosine: float  #: between the two
    curvature: (
        float  #: :math:`v^\top H_s v / v^\top v`; beyond :math:`2 / \alpha_1` a step overshoots along v
    )


class Answers(NamedTuple):
    """Per cent of the meta head's answers that are right, of pairs of one video and of two."""

    same: float
    other: float


class Mean(NamedTuple):
    """A mean over batches and its standard error, which one batch does not have."""

    mean: float
    error: float | None


def adapt(
    support: Shares, params: Params, inner_lr: float, *, inner_steps: int = 1, inner_clip: float | None = None
) -> Params:
    r""":math:`\bar\theta`: the parameters after the inner steps on the support loss (:eq:`eq-inner`).

    >>> adapt(lambda p: p["w"].square().sum(), {"w": torch.ones(2)}, 0.25)
    {'w': tensor([0.5000, 0.5000])}
    """
    for _ in range(inner_steps):
        gradient = meta_gradient(None, support, params, 0.0, inner_steps=0).gradients
        params = inner_update(params, gradient, inner_lr, inner_clip)
    return params


def compare_orders(
    support: Shares,
    query: Shares,
    params: Params,
    inner_lr: float,
    *,
    inner_steps: int = 1,
    inner_clip: float | None = None,
) -> Orders:
    r"""The first-order meta-gradient beside the exact one, at one :math:`\bar\theta`.

    Both come from one :math:`v`: in float32 another evaluation of the query's gradient may round
    :math:`\bar\theta` otherwise and flip ReLUs, which alone moves it by per cents. With several inner steps,
    or a clip, :math:`\alpha_1 H_s` stands for all that the exact order subtracts.

    Raises ``ValueError`` for an ``inner_lr`` of 0, with which there is nothing to compare.

    >>> support = lambda p: 2 * p["w"].square().sum()  # H = 4
    >>> query = lambda p: p["w"].sum()
    >>> compare_orders(support, query, {"w": torch.ones(4)}, 0.125)
    Orders(ratio=0.5, cosine=1.0, curvature=4.0)
    """
    if not inner_lr:
        raise ValueError("inner_lr is 0: without an inner step the two orders are the same")
    adapted = adapt(support, params, inner_lr, inner_steps=inner_steps, inner_clip=inner_clip)
    v = meta_gradient(None, query, adapted, 0.0, inner_steps=0).gradients

    def along_v(p: Params) -> Tensor:  # its gradient is v wherever it is evaluated
        return torch.stack([(v[name] * p[name]).sum() for name in v]).sum()

    exact = meta_gradient(
        support, along_v, params, inner_lr, inner_steps=inner_steps, inner_clip=inner_clip
    ).gradients
    subtracted = {name: v[name] - exact[name] for name in v}
    length = norm_of(v)
    return Orders(
        ratio=_over(norm_of(subtracted), length),
        cosine=_over(dot(v, exact), length * norm_of(exact)),
        curvature=_over(dot(v, subtracted), inner_lr * length**2),
    )


def loss_at(losses: Shares, params: Params) -> float:
    """The loss at ``params``, without a gradient: the weighted sum of its shares.

    >>> loss_at(lambda p: p["w"].sum(), {"w": torch.ones(3)})
    3.0
    """
    with torch.no_grad():
        return sum(share.weight * share.loss(params).item() for share in as_shares(losses))


def answers(logits: Tensor, labels: Tensor) -> Answers:
    """Right answers of the meta head, whose logits are above 0 for yes: both ``(N,)``.

    A head that always says no is right in all pairs of two videos, and in none of one.

    >>> answers(torch.tensor([1.0, -1.0, -1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    Answers(same=50.0, other=50.0)
    """
    said, same = logits > 0, labels > 0.5
    return Answers(_per_cent(said[same]), _per_cent(~said[~same]))


def constant_answer(labels: Tensor, group: Tensor, *, reduction: str = "sum") -> float:
    """The classification loss (:eq:`eq-cls`) of the best answer that is the same for all pairs.

    A head has learnt to tell pairs apart where its loss is below. In a group of four videos a quarter of the
    pairs are of one video:

    >>> round(constant_answer(torch.eye(4).flatten(), torch.zeros(16, dtype=torch.int64)), 3)
    8.997
    """
    share = labels.double().mean()
    logits = torch.logit(share).expand(len(labels))
    return classification_loss(logits, labels, group, reduction=reduction).item()


class Bank(NamedTuple):
    """Cosines ``(B,)`` of features with rows of the bank, mean of the two views."""

    own: Tensor  #: with the video's own row
    others: Tensor  #: with the rows of all other videos, on average


def bank_cosines(rows: Tensor, index: Tensor, z1: Tensor, z2: Tensor) -> Bank:
    """How near the bank is to what the present network says of the same videos.

    ``rows`` ``(2, N, D)``: the bank. ``index`` ``(B,)``: the videos. ``z1, z2`` ``(B, D)``: their features by
    the present network, of any length; each is compared with the rows of its own view.

    >>> rows = torch.eye(2).expand(2, 2, 2)
    >>> bank_cosines(rows, torch.tensor([0]), torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    Bank(own=tensor([0.5000]), others=tensor([0.5000]))
    """
    own, others = [], []
    for view, z in zip(F.normalize(rows, dim=-1), (z1, z2), strict=True):
        with_all = F.normalize(z, dim=-1) @ view.T  # (B, N)
        with_own = with_all.gather(1, index[:, None]).squeeze(1)
        own.append(with_own)
        others.append((with_all.sum(1) - with_own) / (len(view) - 1))
    return Bank(torch.stack(own).mean(0), torch.stack(others).mean(0))


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and standard error of numbers, one a batch.

    >>> mean_of([1.0, 3.0]), mean_of([2.0])
    (Mean(mean=2.0, error=1.0), Mean(mean=2.0, error=None))
    """
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(statistics.fmean(values), error)


def _over(a: float, b: float) -> float:
    return a / b if b else math.nan


def _per_cent(right: Tensor) -> float:
    return 100 * right.double().mean().item() if len(right) else math.nan
