"""Pictures of how a representation is judged: intervals, decision regions, clips that play on a page.

Like :mod:`mcn.plots`, numbers and arrays in and a figure out; :class:`ClipPlayer` is the one that moves.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from mcn.errors import MCNError
from mcn.plots import COLOURS, Picture, colours_of, image_axis

# matplotlib's buttons are letters of a font on somebody's server: these are in every reader's.
_BUTTONS = {
    "fa-minus": "−", "fa-fast-backward": "|◀", "fa-step-backward": "◁", "fa-play fa-flip-horizontal": "◀",
    "fa-pause": "||", "fa-play": "▶", "fa-step-forward": "▷", "fa-fast-forward": "▶|", "fa-plus": "+",
}  # fmt: skip


def intervals(
    bars: Mapping[str, tuple[float, float, float]],
    *,
    x_label: str,
    levels: Mapping[str, float] | None = None,
    groups: Sequence[str] = (),
) -> Figure:
    """A point and its interval ``(mean, low, high)`` a line, the first at the top.

    ``levels`` draws dashed lines upright, named above the axes. ``groups`` says for each line what it belongs
    to: lines of one group have one colour, and without groups all have. Raises
    :class:`~mcn.errors.MCNError` for no bars, for groups of another number, and for an interval that its mean
    is not in.

    >>> len(intervals({"a": (1.0, 0.5, 2.0)}, x_label="lift").axes[0].containers)
    1
    """
    wrong = [name for name, (mean, low, high) in bars.items() if not low <= mean <= high]
    if wrong or not bars:
        raise MCNError(f"intervals are (mean, low, high) with low <= mean <= high: look at {wrong or bars}")
    figure = Picture(figsize=(6.4, 1.0 + 0.34 * len(bars)), layout="constrained")
    axis = figure.subplots()
    groups = groups or [""] * len(bars)
    if len(groups) != len(bars):
        raise MCNError(f"{len(bars)} intervals, but groups of {len(groups)}: give one a line")
    names = list(dict.fromkeys(groups))
    colour = dict(zip(names, colours_of(names), strict=True))
    for place, ((mean, low, high), group) in enumerate(zip(bars.values(), groups, strict=True)):
        ends = [[mean - low], [high - mean]]
        axis.errorbar(mean, -place, xerr=ends, fmt="o", capsize=3, color=colour[group])
    for name, level in (levels or {}).items():
        axis.axvline(level, color="0.4", linestyle="--", linewidth=1)
        where: dict[str, Any] = {
            "xytext": (0, 3),
            "textcoords": "offset points",
            "xycoords": ("data", "axes fraction"),
        }
        axis.annotate(name, (level, 1), fontsize=9, ha=_ha(level, axis), va="bottom", **where)
    axis.set_yticks([-place for place in range(len(bars))], list(bars), fontsize=9)
    axis.set_ylim(0.6 - len(bars), 0.6)
    axis.set_xlabel(x_label)
    axis.grid(alpha=0.25, axis="x")
    return figure


def _ha(level: float, axis: Axes) -> str:
    """To which side of a line upright its name stands, so that it stays over the axes."""
    low, high = axis.get_xlim()
    share = (level - low) / (high - low)
    return "left" if share < 0.15 else "right" if share > 0.85 else "center"


def decision_plane(
    points: Tensor,
    labels: Tensor,
    answer: Callable[[Tensor], Tensor],
    *,
    names: Sequence[str],
    title: str = "",
) -> Figure:
    """Points ``(N, 2)`` of several classes, on the regions in which a classifier answers each of them.

    ``answer`` takes points ``(M, 2)`` and gives classes ``(M,)``. Raises :class:`~mcn.errors.MCNError` for
    points that are not in a plane.

    >>> plane = decision_plane(torch.eye(2), torch.tensor([0, 1]), lambda x: x.argmax(1), names="ab")
    >>> len(plane.axes[0].lines)
    2
    """
    if points.dim() != 2 or points.shape[1] != 2:
        raise MCNError(f"points of a plane are (N, 2), got {tuple(points.shape)}")
    low, high = points.min(0).values, points.max(0).values
    low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    x, y = torch.meshgrid(
        *(torch.linspace(float(a), float(b), 160) for a, b in zip(low, high, strict=True)), indexing="xy"
    )
    with torch.no_grad():
        regions = answer(torch.stack([x.ravel(), y.ravel()], dim=1)).view(x.shape)
    figure = Picture(figsize=(5.4, 3.9), layout="constrained")
    axis = figure.subplots()
    colours, last = ListedColormap(COLOURS[: len(names)]), len(names) - 0.5
    axis.pcolormesh(
        x.numpy(), y.numpy(), regions.numpy(), cmap=colours, vmin=-0.5, vmax=last, alpha=0.22, rasterized=True
    )
    for number, name in enumerate(names):
        own = points[labels == number].numpy()
        axis.plot(own[:, 0], own[:, 1], "os^vDP"[number % 6], color=COLOURS[number], markersize=5, label=name)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axis.set(xlabel="first direction", ylabel="second direction")
    if title:
        axis.set_title(title, fontsize=10)
    return figure


class ClipPlayer:
    """Clips side by side that play in a page, without a kernel and without a network.

    ``clips`` maps a title to images ``(T, H, W, 3)``, uint8 or floating point in [0, 1], all of one length;
    ``fps`` is frames a second. As the last line of a cell it shows itself. Raises
    :class:`~mcn.errors.MCNError` for no clips and for clips of several lengths.

    >>> player = ClipPlayer({"black": np.zeros((2, 4, 4, 3))})
    >>> player
    ClipPlayer(black: 2 frames)
    >>> "https://" in player._repr_html_()
    False
    """

    def __init__(self, clips: Mapping[str, ArrayLike], fps: float = 6.0) -> None:
        self.clips = {name: np.asarray(clip) for name, clip in clips.items()}
        lengths = {len(clip) for clip in self.clips.values()}
        if len(lengths) != 1:
            raise MCNError(f"clips that play together have one length, got {sorted(lengths)} frames")
        self.frames, self.fps = lengths.pop(), fps

    def __repr__(self) -> str:
        return f"ClipPlayer({', '.join(self.clips)}: {self.frames} frames)"

    def _repr_html_(self) -> str:
        figure = Picture(figsize=(2.2 * len(self.clips), 2.5), dpi=72, layout="constrained")
        axes = figure.subplots(1, len(self.clips), squeeze=False)[0]
        shown = []
        for axis, (name, clip) in zip(axes, self.clips.items(), strict=True):
            image_axis(axis, clip[0]).set_title(name, fontsize=12)
            shown.append((axis.images[0], clip))

        def draw(n: int) -> list[Any]:
            for image, clip in shown:
                image.set_data(clip[n])
            return [image for image, _ in shown]

        movie = FuncAnimation(figure, draw, frames=self.frames, interval=1000 / self.fps)
        with rc_context({"animation.embed_limit": 2}):
            return _alone(movie.to_jshtml(default_mode="loop"))


def _alone(html: str) -> str:
    """A player's page without anything from elsewhere, and with names that follow from what it shows."""
    html = re.sub(r"<link[^>]*>", "", html)
    for name, letter in _BUTTONS.items():
        html = html.replace(f'<i class="fa {name}"></i>', letter)
    html = html.replace("width: 374px", "width: 100%; max-width: 374px")
    html = html.replace('<img id="', '<img style="max-width: 100%" alt="A clip, frame by frame" id="')
    given = re.findall(r"_anim_img([0-9a-f]{32})", html)[0]
    return html.replace(given, blake2b(html.replace(given, "").encode(), digest_size=8).hexdigest())
