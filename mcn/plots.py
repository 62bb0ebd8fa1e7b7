"""Every picture the book shows: tensors or arrays in, a matplotlib figure out.

Nothing here touches pyplot or a global setting. A figure is a value: a notebook shows it as the
last line of a cell, a script calls ``figure.savefig(path)``. Colours are told apart by people who
do not see red and green alike; where red and green are used, a word says the same.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mcn.views import residual_view

#: Colours of lines and arrows, in order (Okabe and Ito's set, without yellow).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
RIGHT, WRONG = "#1a7f37", "#cf222e"
#: Rows of the ablations keep their colour from figure to figure: its place in :data:`COLOURS`.
_OWN = {
    "contrast": 0,
    "contrast-binary": 1,
    "mcn-first-order": 2,
    "mcn": 3,
    "untrained": 4,
    "random picks": 5,
}
_PANELS = {
    "contrast": "contrast (Eq. 2)",
    "classification": "binary loss (Eq. 4)",
}


class Picture(Figure):
    """A matplotlib figure that shows itself in a notebook, whichever backend is in use."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
        return buffer.getvalue()


def residual_strip(clip: Tensor, title: str = "", *, columns: int = 6, scale: float | None = None) -> Figure:
    """A row of RGB frames over the row of their residual frames (:eq:`eq-residual`).

    ``clip`` is floating point ``(3, T + 1, H, W)`` in [0, 1]. At most ``columns`` frames are shown,
    evenly spaced; below frame n is the residual of n and n + 1, averaged over the three channels.
    ``scale`` is the residual shown brightest (default: the clip's largest): give two strips the
    same one to compare them. Raises ``ValueError`` for another shape.
    """
    if clip.dim() != 4 or clip.shape[0] != 3:
        raise ValueError(f"residual_strip takes one clip (3, T + 1, H, W), got {tuple(clip.shape)}")
    residual = residual_view(clip).mean(dim=0).detach().cpu().numpy()  # (T, H, W)
    frames = clip.detach().cpu().permute(1, 2, 3, 0).clamp(0, 1).numpy()
    shown = np.linspace(0, len(residual) - 1, min(columns, len(residual))).round().astype(int)
    top = float(residual.max()) if scale is None else scale
    side = min(1.25, 6.2 / len(shown))  # no wider than a page, which would shrink the words
    figure = Picture(figsize=(side * len(shown) + 0.8, 2 * side + 0.6), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False)
    heat: Any = None
    for column, n in enumerate(shown):
        image_axis(axes[0, column], frames[n]).set_title(f"n = {n}", fontsize=9)
        heat = axes[1, column].imshow(residual[n], cmap="magma", vmin=0.0, vmax=top or 1.0)
        _bare(axes[1, column])
    axes[0, 0].set_ylabel("RGB")
    axes[1, 0].set_ylabel("residual")
    bar = figure.colorbar(heat, ax=list(axes[1]), shrink=0.9)
    bar.set_label("|difference|", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    note = f"one colour scale: 0 to {top:.2f}" if top else "every residual is exactly 0"
    figure.suptitle(f"{title} ({note})" if title else note, fontsize=10)
    return figure


def image_grid(
    images: ArrayLike, row_titles: Sequence[str] = (), column_titles: Sequence[str] = (), title: str = ""
) -> Figure:
    """Images ``(rows, columns, H, W, 3)``, uint8 or floating point in [0, 1], as a labelled grid."""
    array = np.asarray(images)
    rows, columns = array.shape[:2]
    side = min(1.3, 6.4 / columns)
    figure = Picture(figsize=(side * columns + 0.6, side * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        for column in range(columns):
            image_axis(axes[row, column], array[row, column])
    for row, name in enumerate(row_titles):
        axes[row, 0].set_ylabel(name, fontsize=9)
    for column, name in enumerate(column_titles):
        axes[0, column].set_title(name, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    keys: Sequence[str] = ("loss", "contrast", "classification"),
    smooth: float = 0.9,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    title: str = "",
) -> Figure:
    """Training curves, one panel a quantity, one colour a run: smooth line over the faint raw one.

    ``runs`` maps a run's name to its metrics, as :func:`mcn.run.read_metrics` gives them; lines
    without a quantity are passed over, and a quantity that no run has gets no panel. ``smooth`` in
    [0, 1) is the weight of the past in the running mean; it needs no warm-up. ``levels`` draws
    dashed lines, e.g. ``{"classification": {"constant answer": 8.997}}``. Raises ``ValueError``
    where there is nothing to draw.
    """
    panels = [key for key in keys if any(key in line for run in runs.values() for line in run)]
    if not panels:
        raise ValueError(f"no run has any of {', '.join(keys)}")
    figure = Picture(figsize=(max(4.0, 3.4 * len(panels)), 3.0), layout="constrained")
    for axis, key in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for colour, (name, run) in zip(colours_of(runs), runs.items(), strict=True):
            if points := [(line["step"], line[key]) for line in run if key in line]:
                step, value = np.asarray(points, dtype=float).T
                axis.plot(step, value, color=colour, alpha=0.25, linewidth=0.8)
                axis.plot(step, running_mean(value, smooth), color=colour, linewidth=1.8, label=name)
        _levels(axis, (levels or {}).get(key) or {}, "beside")
        axis.set_xlabel("step")
        axis.set_title(_panel_title(key, runs), fontsize=10)
        axis.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _panel_title(key: str, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """What a panel shows; a loss is Eq. 5 where the contrast that it is made of is logged with it."""
    having = [line for run in runs.values() for line in run if key in line]
    if key == "loss" and all("contrast" in line for line in having):
        return "meta loss (Eq. 5)"
    return _PANELS.get(key, key.replace("_", " "))


def running_mean(values: ArrayLike, weight: float) -> NDArray[np.float64]:
    """Exponential running mean, divided by its total weight, so that it starts at the first value.

    >>> running_mean([1.0, 1.0, 4.0], 0.5).round(2)
    array([1.  , 1.  , 2.71])
    """
    if not 0.0 <= weight < 1.0:
        raise ValueError(f"the weight of the past must be in [0, 1), got {weight}")
    mean = np.zeros(len(np.atleast_1d(values)))
    total, weights = 0.0, 0.0
    for i, value in enumerate(np.atleast_1d(np.asarray(values, dtype=float))):
        total, weights = weight * total + (1 - weight) * value, weight * weights + (1 - weight)
        mean[i] = total / weights
    return mean


def similarity_matrix(
    matrix: Tensor | ArrayLike,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    *,
    title: str = "",
    low: float = -1.0,
    high: float = 1.0,
) -> Figure:
    """A matrix of similarities as a heat map; the numbers are written in it up to 8 x 8.

    ``matrix`` is ``(R, C)``, NaN where there is nothing; ``low`` and ``high`` end the colour scale, which has
    a neutral middle unless ``low`` is 0 or more.
    """
    values = _array(matrix)
    rows, columns = values.shape
    figure = Picture(figsize=(1.6 + 0.55 * max(columns, 4), 0.9 + 0.55 * max(rows, 2)), layout="constrained")
    axis = figure.subplots()
    middle, far = (low, 0.6) if low >= 0 else ((low + high) / 2, 0.35)
    heat = axis.imshow(values, cmap="Blues" if low >= 0 else "RdBu_r", vmin=low, vmax=high)
    _ticks(axis, row_labels, column_labels)
    if max(rows, columns) <= 8:
        for (i, j), value in np.ndenumerate(values):
            dark = abs(value - middle) > far * (high - low)
            said = "none" if np.isnan(value) else f"{value:.2f}".replace("-", "−")
            axis.text(j, i, said, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    figure.colorbar(heat, cax=axis.inset_axes((1.04, 0.0, 0.05, 1.0)))
    if title:
        axis.set_title(title, fontsize=10)
    return figure


def pair_matrix(
    probabilities: Tensor | ArrayLike,
    labels: Tensor | ArrayLike,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """FCM's pairs of one group as a grid: row i is RGB of video i, column j the residual of video j.

    ``probabilities`` and ``labels`` are ``(n, n)`` or ``(n * n,)`` row by row, as
    :func:`mcn.pairing.combine_features` orders the pairs of a group. True pairs have a thick frame;
    a number is red where thresholding at one half gives the wrong answer. Raises ``ValueError``
    unless both are square and equal in size.
    """
    p, y = _array(probabilities).ravel(), _array(labels).ravel()
    n = round(p.size**0.5)
    if p.size != y.size or n * n != p.size:
        raise ValueError(f"a group of n videos has n * n pairs, got {p.size} probabilities, {y.size} labels")
    figure = Picture(figsize=(1.9 + 0.6 * n, 1.2 + 0.6 * n), layout="constrained")
    axis = figure.subplots()
    heat = axis.imshow(p.reshape(n, n), cmap="Greys", vmin=0.0, vmax=1.0, alpha=0.4)
    for (i, j), value in np.ndenumerate(p.reshape(n, n)):
        true = bool(y.reshape(n, n)[i, j])
        colour = "black" if (value > 0.5) == true else WRONG
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
        if true:
            axis.add_patch(
                Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor=RIGHT, linewidth=2.5)
            )
    rows = row_labels or [f"RGB {i + 1}" for i in range(n)]
    _ticks(axis, rows, column_labels or [f"res {j + 1}" for j in range(n)])
    figure.colorbar(heat, ax=axis, shrink=0.85, label="P(same video)")
    if title:
        axis.set_title(title, fontsize=10)
    return figure


def toy_surface(
    loss: Callable[[Tensor], Tensor],
    *,
    points: Mapping[str, Sequence[float]] | None = None,
    arrows: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    extent: tuple[float, float, float, float] = (-2.0, 2.0, -2.0, 2.0),
    title: str = "",
    axis: Axes | None = None,
) -> Figure:
    """Level lines of a loss on the plane, with named points and arrows.

    ``loss`` takes points ``(N, 2)`` and gives ``(N,)``. ``points`` maps a name to (x, y);
    ``arrows`` maps a name to (start, vector), both in the plane's units. ``extent`` is (left,
    right, bottom, top). ``axis`` draws into an existing one, and gives its figure.
    """
    import torch

    left, right, bottom, top = extent
    x, y = torch.meshgrid(torch.linspace(left, right, 81), torch.linspace(bottom, top, 81), indexing="xy")
    with torch.no_grad():
        z = loss(torch.stack([x.ravel(), y.ravel()], dim=1)).reshape(x.shape).numpy()
    figure: Any = Picture(figsize=(5.2, 4.6), layout="constrained") if axis is None else axis.figure
    axis = figure.subplots() if axis is None else axis
    axis.contourf(x, y, z, levels=24, cmap="Blues", alpha=0.55)
    axis.contour(x, y, z, levels=24, colors="0.45", linewidths=0.4)
    for name, point in (points or {}).items():
        axis.plot(*point, "o", color="black", markersize=5)
        axis.annotate(name, (point[0], point[1]), textcoords="offset points", xytext=(6, -12), fontsize=10)
    arrows = arrows or {}
    for colour, (name, (start, vector)) in zip(colours_of(arrows), arrows.items(), strict=True):
        units: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1}
        axis.quiver(*start, *vector, color=colour, width=0.011, label=name, zorder=3, **units)
    if arrows:
        axis.legend(fontsize=8, loc="best", framealpha=0.9)
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)
    axis.set_aspect("equal")
    if title:
        axis.set_title(title, fontsize=10)
    return figure


def lines(
    x: Tensor | ArrayLike,
    series: Mapping[str, Tensor | ArrayLike],
    *,
    x_label: str,
    y_label: str,
    levels: Mapping[str, float] | None = None,
    log_x: bool = False,
    title: str = "",
) -> Figure:
    """Curves over one axis: each entry of ``series`` has as many values as ``x``.

    ``levels`` draws named dashed lines across; beside several curves their names are in the legend.
    """
    figure = Picture(figsize=(6.8 if len(series) > 1 else 5.6, 3.2), layout="constrained")
    axis = figure.subplots()
    marker = "o" if np.size(_array(x)) <= 12 else ""
    for colour, (name, values) in zip(colours_of(series), series.items(), strict=True):
        style: dict[str, Any] = {"color": colour, "linewidth": 1.8, "marker": marker, "markersize": 4}
        axis.plot(_array(x), _array(values), label=name, **style)
    _levels(axis, levels or {}, "legend" if len(series) > 1 else "inside")
    if log_x:
        axis.set_xscale("log")
    elif np.array_equal(_array(x), np.round(_array(x))):  # no half epochs
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.25)
    if len(series) > 1:
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if title:
        axis.set_title(title, fontsize=10)
    return figure


def _array(values: Tensor | ArrayLike) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def colours_of(names: Iterable[str]) -> list[str]:
    """A colour for each name: a row's own, before any bracket, and for others what these leave, in order.

    >>> colours_of(["here", "mcn (5 seeds)", "there"]) == [COLOURS[0], COLOURS[3], COLOURS[1]]
    True
    """
    own = [_OWN.get(name.split(" (")[0]) for name in names]
    free = cycle([c for i, c in enumerate(COLOURS) if i not in own] or COLOURS)
    return [next(free) if place is None else COLOURS[place] for place in own]


def _levels(axis: Axes, levels: Mapping[str, float], names: str) -> None:
    """Dashed lines across, named at the right end inside the frame, "beside" it or in the "legend"."""
    for (name, level), dashes in zip(levels.items(), cycle(("--", ":", "-.")), strict=False):
        line = axis.axhline(level, color="0.35", linestyle=dashes, linewidth=1)
        if names == "legend":
            line.set_label(name)
        else:
            at, ha, va = (1.02, "left", "center") if names == "beside" else (0.99, "right", "bottom")
            where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": ha, "va": va}
            axis.annotate(name, (at, level), fontsize=8, **where)


def _bare(axis: Axes) -> Axes:
    """Take ticks away, keep the frame and the labels."""
    axis.set_xticks([])
    axis.set_yticks([])
    return axis


def image_axis(axis: Axes, image: Tensor | ArrayLike) -> Axes:
    """Draw an image ``(H, W, 3)`` without ticks."""
    axis.imshow(_array(image), interpolation="nearest")
    return _bare(axis)


def _ticks(axis: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    _bare(axis)
    if rows:
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
    if columns:
        turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if max(map(len, columns)) > 6 else {}
        axis.set_xticks(range(len(columns)), columns, fontsize=8, **turned)
