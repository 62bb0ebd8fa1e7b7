"""The losses of the paper (Sec. 3.4): Eq. 2-3 contrast, Eq. 4 classification, Eq. 5 meta.

Shapes: ``B`` videos, ``D`` feature width, ``k`` negatives a video, ``M`` bank rows, ``N`` pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DIRECTIONS = ("sum", "mean", "one")
REDUCTIONS = ("sum", "mean")


def contrastive_loss(
    z: Tensor, positive: Tensor, negatives: Tensor, *, tau: float = 0.07, exclude: Tensor | None = None
) -> Tensor:
    r"""Contrast of one view with the other (:eq:`eq-contrast` and :eq:`eq-similarity`, Eq. 2 and 3).

    With :math:`s_j = \cos(z_i, z_j) / \tau` it is :math:`-s_+ + \log(e^{s_+} + \sum_j e^{s_j})`,
    averaged over the batch: the cross-entropy of picking the positive among ``k + 1`` rows.

    ``z`` ``(B, D)``: features of view 1. ``positive`` ``(B, D)``: the same videos in view 2.
    ``negatives``: ``(B, k, D)``, a set a video, or ``(M, D)``, one set for all, of which row
    ``exclude[i]`` (``(B,)`` int64) is left out for video ``i``; that is how the whole bank is used.
    Both sides are divided by their norms, so only directions count. A scalar.

    >>> z = torch.eye(2)
    >>> round(contrastive_loss(z, z, -z[:, None], tau=1.0).item(), 4)  # log(1 + e^-2)
    0.1269
    """
    z, positive, negatives = (F.normalize(x, dim=-1) for x in (z, positive, negatives))
    own = (z * positive).sum(-1, keepdim=True)  # (B, 1)
    if negatives.dim() == 3:
        others = torch.einsum("bd,bkd->bk", z, negatives)
    else:
        others = z @ negatives.T  # (B, M)
        if exclude is not None:
            taken = F.one_hot(exclude, len(negatives)).bool()
            others = others.masked_fill(taken, float("-inf"))
    logits = torch.cat([own, others], dim=1) / tau  # (B, 1 + k), the positive first
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def multiview_loss(
    z1: Tensor,
    z2: Tensor,
    bank: Tensor,
    index: Tensor,
    *,
    negatives: Tensor | None = None,
    tau: float = 0.07,
    positive: str = "bank",
    directions: str = "sum",
) -> Tensor:
    """Eq. 2 in both directions against a snapshot of the feature bank (CMC; protocol rows 6-12).

    ``z1, z2`` ``(B, D)``: features of the two views. ``bank`` ``(2, M, D)``: the bank's rows.
    ``index`` ``(B,)``: each video's row. ``negatives`` ``(B, k)``: rows to contrast with, never the
    own row (:func:`mcn.bank.draw_negatives`); ``None`` takes the whole bank. ``positive``: the other
    view's ``"bank"`` row, as CMC and IIC do, or its ``"current"`` feature. ``directions``: ``"sum"``
    of view 1 -> 2 and 2 -> 1, their ``"mean"``, or only the first (``"one"``).
    """
    if directions not in DIRECTIONS or positive not in ("bank", "current"):
        raise ValueError(
            f"directions is one of {DIRECTIONS}, positive is bank or current: "
            f"got {directions!r}, {positive!r}"
        )

    def one_way(z: Tensor, other: Tensor, rows: Tensor) -> Tensor:
        target = rows[index] if positive == "bank" else other
        if negatives is None:
            return contrastive_loss(z, target, rows, tau=tau, exclude=index)
        return contrastive_loss(z, target, rows[negatives], tau=tau)

    forth = one_way(z1, z2, bank[1])
    if directions == "one":
        return forth
    both = forth + one_way(z2, z1, bank[0])
    return both if directions == "sum" else both / 2


def classification_loss(
    logits: Tensor, labels: Tensor, group: Tensor | None = None, *, reduction: str = "sum"
) -> Tensor:
    r"""Same video or not: binary cross-entropy over FCM's pairs (:eq:`eq-cls`, Eq. 4).

    ``logits`` ``(N,)``: the meta head's answers before the sigmoid. ``labels`` ``(N,)``: 1 for two
    views of one video, else 0. ``group`` ``(N,)`` int64: the group of four videos a pair was made
    in (``None``: one group). The loss is the sum over a group's pairs, as Eq. 4 writes it, and the
    mean over groups, each weighted by its number of videos, so that losses of unequal groups add
    over ranks. ``reduction="mean"`` divides by the number of pairs in the group. A scalar.

    >>> round(classification_loss(torch.zeros(16), torch.eye(4).flatten()).item(), 3)  # 16 log 2
    11.09
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is one of {REDUCTIONS}, got {reduction!r}")
    group = torch.zeros_like(labels, dtype=torch.int64) if group is None else group
    each = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    member = F.one_hot(group).to(logits.dtype)  # (N, groups)
    per_group = each @ member
    if reduction == "mean":
        per_group = per_group / member.sum(0)
    videos = labels.to(logits.dtype) @ member  # each video makes exactly one true pair
    return (per_group * videos).sum() / videos.sum()


def meta_loss(classification: Tensor, contrast: Tensor, *, cls_weight: float = 0.2) -> Tensor:
    r""":math:`\alpha L_{cls} + (1 - \alpha) L_{contrast}` (:eq:`eq-meta`, Eq. 5).

    ``cls_weight`` is the paper's :math:`\alpha`, .2 there; 0 is the contrastive baseline.

    >>> meta_loss(torch.tensor(10.0), torch.tensor(5.0))
    tensor(6.)
    """
    return cls_weight * classification + (1 - cls_weight) * contrast
