"""Pictures of the losses: matrices side by side, shares of a softmax, what a head answers in the plane.

Like :mod:`mcn.plots`, tensors in and a matplotlib figure out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from mcn.errors import MCNError
from mcn.plots import COLOURS, RIGHT, Picture


def matrices(
    named: Mapping[str, Tensor | ArrayLike],
    *,
    labels: Sequence[str] = (),
    row_name: str = "",
    column_name: str = "",
    scale_name: str = "cosine",
    low: float = -1.0,
    high: float = 1.0,
) -> Figure:
    """Matrices ``(R, C)`` side by side as heat maps on one colour scale from ``low`` to ``high``.

    ``named`` maps a title to its matrix; ``labels`` name rows and columns alike, ``scale_name`` what
    the colours show. Raises :class:`~mcn.errors.MCNError` for no matrix.

    >>> len(matrices({"before": torch.eye(3), "after": torch.eye(3)}).axes)  # and the colour bar
    3
    """
    if not named:
        raise MCNError("no matrix to draw: give at least one")
    figure = Picture(figsize=(3.05 * len(named) + 0.9, 3.3), layout="constrained")
    axes = figure.subplots(1, len(named), squeeze=False)[0]
    heat: Any = None
    for axis, (title, matrix) in zip(axes, named.items(), strict=True):
        values = torch.as_tensor(matrix).detach().cpu().numpy()
        heat = axis.imshow(values, cmap="RdBu_r", vmin=low, vmax=high)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(labels)), labels, fontsize=8, rotation=60, ha="right")
        axis.set_yticks(range(len(labels)), labels if axis is axes[0] else [""] * len(labels), fontsize=8)
        axis.set_xlabel(column_name, fontsize=9)
    axes[0].set_ylabel(row_name, fontsize=9)
    bar = figure.colorbar(heat, ax=list(axes), shrink=0.85)
    bar.set_label(scale_name, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def candidate_shares(cosines: Tensor, tau: float, *, shown: int = 24) -> Figure:
    """What a softmax at temperature ``tau`` makes of a candidate set; the positive comes first.

    ``cosines`` ``(1 + k,)``: the positive's, then the negatives'. Left: the cosines of the positive
    and of the ``shown`` hardest negatives. Right: their shares of the softmax over all ``1 + k``,
    and the loss, minus the log of the positive's share (:eq:`eq-contrast`). Raises
    :class:`~mcn.errors.MCNError` for fewer than two candidates.

    >>> figure = candidate_shares(torch.tensor([1.0, 0.0]), tau=1.0)
    >>> figure.axes[1].get_title()  # log(1 + 1/e)
    'share at τ = 1: loss 0.31'
    """
    if cosines.dim() != 1 or len(cosines) < 2:
        raise MCNError(f"candidate_shares takes the cosines (1 + k,) of one set, got {tuple(cosines.shape)}")
    shares = torch.softmax(cosines / tau, dim=0)
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + cosines[1:].argsort(descending=True)])
    order = order[: shown + 1]
    figure = Picture(figsize=(7.0, 2.9), layout="constrained")
    loss = -shares[0].log().item()
    titles = ("cosine to the anchor", f"share at τ = {tau:g}: loss {loss:.2f}")
    panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
    for axis, title, values in zip(panels, titles, (cosines, shares), strict=True):
        colours = [COLOURS[1], *[COLOURS[4]] * (len(order) - 1)]
        axis.bar(range(len(order)), values[order].detach().cpu().numpy(), color=colours)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([0, (len(order) + 1) // 2], ["positive", "hardest negatives"], fontsize=8)
        axis.grid(axis="y", alpha=0.25)
    figure.axes[1].set_ylim(0, 1)
    return figure


def answers_in_the_plane(
    heads: Mapping[str, Callable[[Tensor], Tensor]],
    left: Tensor,
    right: Tensor,
    labels: Tensor,
    *,
    extent: float = 2.5,
) -> Figure:
    """What heads answer to pairs of *one-number* features: P(same video) over the plane (z1, z2).

    A head takes pairs ``(N, 2)`` and gives logits ``(N,)``. ``left``, ``right``, ``labels`` ``(N,)``
    are pairs to draw on it: filled dots are true. Both axes go from minus to plus ``extent``; pairs
    outside are left out. Raises :class:`~mcn.errors.MCNError` for no head.

    >>> pairs = torch.tensor([0.0, 1.0])
    >>> figure = answers_in_the_plane({"a": lambda x: x.sum(1)}, pairs, pairs, torch.ones(2))
    >>> figure.axes[0].get_title()
    'a'
    """
    if not heads:
        raise MCNError("no head to draw: give at least one")
    line = torch.linspace(-extent, extent, 101)
    grid = torch.cartesian_prod(line, line)  # z1 over rows
    figure = Picture(figsize=(3.1 * len(heads) + 0.8, 3.4), layout="constrained")
    axes = figure.subplots(1, len(heads), squeeze=False)[0]
    heat: Any = None
    shown = (left.abs() <= extent) & (right.abs() <= extent)
    true, false = labels.bool() & shown, ~labels.bool() & shown
    dots: dict[str, Any] = {"clip_on": False, "zorder": 3}  # whole, also on the frame
    for axis, (title, head) in zip(axes, heads.items(), strict=True):
        with torch.no_grad():
            p = head(grid).sigmoid().reshape(101, 101).T.numpy()  # z1 to the right, z2 upwards
        heat = axis.imshow(
            p, origin="lower", extent=(-extent, extent, -extent, extent), cmap="Greys", vmin=0, vmax=1
        )
        hollow: dict[str, Any] = {"facecolors": "white", "edgecolors": COLOURS[1], "linewidth": 1}
        axis.scatter(left[false], right[false], s=14, **hollow, **dots)
        axis.scatter(left[true], right[true], s=22, color=RIGHT, edgecolors="white", linewidth=0.6, **dots)
        axis.set_xlim(-extent, extent)
        axis.set_ylim(-extent, extent)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("RGB feature of the pair", fontsize=9)
    axes[0].set_ylabel("its residual feature", fontsize=9)
    figure.colorbar(heat, ax=list(axes), shrink=0.85, label="P(same video)")
    return figure
