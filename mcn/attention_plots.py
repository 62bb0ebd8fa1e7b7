"""Activation maps drawn on the frames they come from: grid (Fig. 5), map over bars (Fig. 1), video file.

All maps of one clip share one colour scale, in multiples of each map's mean over the clip, so that neither
a network's scale nor the frame chosen makes a map look stronger. Where a map is weak the grey
frame shows; the stronger it is, the more it covers the frame, from dark violet to pale yellow, which
people who do not tell red from green see alike.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mcn._h264 import encode
from mcn.attention import times_mean
from mcn.errors import MCNError
from mcn.files import write_atomically
from mcn.plots import COLOURS, Picture

#: The frames that the paper's Fig. 5 shows, counted from 1.
SHOWN = (1, 4, 8, 12)
_COLOURS = "inferno"
_SCALE = "map / its mean over\nthe clip (one scale)"
_MARGIN, _HEADER = 8, 24  # pixels of the video file
_TILE = 256


@dataclass(frozen=True)
class Example:
    """A clip and what networks make of it.

    ``frames`` is ``(3, T, H, W)`` in [0, 1]. ``maps`` has a map ``(T, H, W)``, in any unit, for each
    network's name, in the order of rows; ``notes`` may have a line or two to stand under a row. ``moving`` is
    ``(T, H, W)`` bool and gets a row of its own where given.
    """

    title: str
    frames: Tensor
    maps: Mapping[str, Tensor]
    notes: Mapping[str, str] = field(default_factory=dict)
    moving: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise :class:`~mcn.errors.MCNError` for maps that are not of these frames."""
        for name, each in self.maps.items():
            if each.shape != self.frames.shape[1:]:
                raise MCNError(
                    f"map {name!r} is {tuple(each.shape)}, its frames are {tuple(self.frames.shape)}: "
                    "give (T, H, W) and (3, T, H, W)"
                )

    @property
    def images(self) -> NDArray[np.float32]:
        """The frames as ``(T, H, W, 3)``."""
        return self.frames.detach().cpu().permute(1, 2, 3, 0).clamp(0, 1).float().numpy()

    @property
    def scaled(self) -> dict[str, NDArray[np.float32]]:
        """The maps in multiples of their mean."""
        return {name: times_mean(each.detach().cpu().float()).numpy() for name, each in self.maps.items()}


def frames_shown(frames: int) -> tuple[int, ...]:
    """Frames 1, 4, 8 and 12, or up to four evenly spaced ones of a shorter clip; counted from 1.

    >>> frames_shown(32), frames_shown(8), frames_shown(2)
    ((1, 4, 8, 12), (1, 3, 6, 8), (1, 2))
    """
    if frames >= max(SHOWN):
        return SHOWN
    return tuple(int(n) for n in np.linspace(1, frames, min(frames, len(SHOWN))).round())


def overlay(images: NDArray[Any], scaled: NDArray[Any], top: float) -> NDArray[np.float32]:
    """Colour maps ``(T, H, W)`` over the grey of images ``(T, H, W, 3)`` in [0, 1]: the same shape.

    ``top`` is the map's value with the strongest colour; zero leaves the grey frame.

    >>> overlay(np.full((1, 1, 1, 3), 0.5), np.zeros((1, 1, 1)), 1.0).ravel().round(2)
    array([0.5, 0.5, 0.5], dtype=float32)
    """
    strength = np.clip(scaled / top, 0, 1)
    colour = matplotlib.colormaps[_COLOURS](strength)[..., :3]
    grey = images @ np.array([0.299, 0.587, 0.114])
    alpha = 0.85 * strength[..., None]
    return ((1 - alpha) * grey[..., None] + alpha * colour).astype(np.float32)


def activation_grid(examples: Sequence[Example], *, title: str = "") -> Figure:
    """The paper's Fig. 5: a row of frames, then a row for each network's maps, for each example.

    Frames 1, 4, 8 and 12 (see :func:`frames_shown`); the networks of an example share its colour scale.
    Raises :class:`~mcn.errors.MCNError` for no examples.
    """
    _some(examples)
    shown = frames_shown(min(example.frames.shape[1] for example in examples))
    rows = [row for example in examples for row in _rows(example, shown)]
    heights = [h for row in rows for h in (1.0, 0.19 if row.note else 0.03)]
    width, height = 1.35 * len(shown) + 1.6, 1.35 * sum(heights) + 0.55
    figure = Picture(figsize=(width, height))
    grid = figure.add_gridspec(
        len(heights), len(shown), height_ratios=heights, wspace=0.03, hspace=0.03,
        left=0.55 / width, right=1 - 1.05 / width, bottom=0.08 / height, top=1 - 0.47 / height,
    )  # fmt: skip
    for place, row in enumerate(rows):
        axes = [figure.add_subplot(grid[2 * place, column]) for column in range(len(shown))]
        for n, axis in zip(shown, axes, strict=True):
            axis.imshow(row.images[n - 1], interpolation="nearest", cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if place == 0:
                axis.set_title(f"frame {n}", fontsize=9)
        axes[0].set_ylabel(row.title, fontsize=8)
        if row.note:
            axis = figure.add_subplot(grid[2 * place + 1, :])
            axis.axis("off")
            axis.text(0, 0.95, row.note.replace("\n", ": "), fontsize=8, va="top", transform=axis.transAxes)
        if row.top is not None:
            box = axes[-1].get_position()
            _scale_bar(figure, row.top, (1 - 0.95 / width, box.y0, 0.15 / width, box.height))
    figure.suptitle(title, fontsize=10, y=1 - 0.05 / height, va="top")
    return figure


@dataclass(frozen=True)
class _Row:
    title: str
    images: NDArray[Any]
    note: str = ""
    top: float | None = None  #: of the scale, for a row of maps


def _rows(example: Example, shown: Sequence[int]) -> list[_Row]:
    """All rows of one example in a grid."""
    top = _top(example, shown)
    rows = [_Row("frames", example.images, example.title)]
    for name, scaled in example.scaled.items():
        rows.append(_Row(name, overlay(example.images, scaled, top), example.notes.get(name, ""), top))
    if example.moving is not None:
        rows.append(_Row("moving", example.moving.cpu().float().numpy(), example.notes.get("moving", "")))
    return rows


def _some(examples: Sequence[Example]) -> None:
    if not examples:
        raise MCNError("activation maps of no video: give at least one")


def _top(example: Example, shown: Sequence[int] | None = None) -> float:
    """The largest value of any map in the frames shown (default: all): the top of the common scale.

    At least twice the mean: a map without focus should look like one.
    """
    frames = slice(None) if shown is None else [n - 1 for n in shown]
    return max(2.0, *(float(scaled[frames].max()) for scaled in example.scaled.values()))


def _scale_bar(figure: Figure, top: float, where: tuple[float, float, float, float]) -> None:
    axis = figure.add_axes(where)
    scale = ScalarMappable(Normalize(0, top), matplotlib.colormaps[_COLOURS])
    figure.colorbar(scale, cax=axis).set_label(_SCALE, fontsize=7.5)
    axis.tick_params(labelsize=7)


def activation_bars(
    example: Example, accuracy: Mapping[str, float], *, source: str, frame: int | None = None
) -> Figure:
    """The paper's Fig. 1: one frame's map by each network, and below it a bar of that network's accuracy.

    ``accuracy`` is in per cent and has a number for each of the example's maps; where the numbers come from
    is ``source``, and stands under the bars. ``frame`` counts from 1 (default: the middle one). Raises
    :class:`~mcn.errors.MCNError` unless there is one number between 0 and 100 a map.
    """
    if set(accuracy) != set(example.maps):
        raise MCNError(f"accuracies are of {sorted(accuracy)}, maps of {sorted(example.maps)}: give one each")
    check_accuracies(accuracy.values())
    n = frame or (example.frames.shape[1] + 1) // 2
    top = _top(example, [n])
    count = len(example.maps)
    width = 2.1 * count + 1.7
    figure = Picture(figsize=(width, 4.6))
    grid = figure.add_gridspec(
        2, count, height_ratios=[1.9, 1.5], hspace=0.1, wspace=0.06,
        left=0.6 / width, right=1 - 1.1 / width, bottom=0.13, top=0.86,
    )  # fmt: skip
    maps = [figure.add_subplot(grid[0, column]) for column in range(count)]
    for axis, (name, scaled) in zip(maps, example.scaled.items(), strict=True):
        axis.imshow(overlay(example.images, scaled, top)[n - 1], interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_title(_wrapped(example.notes.get(name, "")), fontsize=7)
    _scale_bar(figure, top, (1 - 1.0 / width, 0.47, 0.13 / width, 0.38))
    bars = figure.add_subplot(grid[1, :])
    heights = [accuracy[name] for name in example.maps]
    # Along the figure's width, in its own units: each bar stands under the middle of its map.
    places = [axis.get_position(original=True) for axis in maps]
    middles = [(place.x0 + place.x1) / 2 for place in places]
    colours = [COLOURS[i % 5] for i in range(count)]
    drawn = bars.bar(middles, heights, width=0.5 * places[0].width, color=colours)
    bars.bar_label(drawn, fmt="%.1f", fontsize=9)
    bars.set_xticks(middles, list(example.maps))
    bars.set(xlim=(places[0].x0, places[-1].x1), ylim=(0, min(115, max(heights) * 1.2 + 5)))
    bars.set_ylabel("top-1 accuracy (%)", fontsize=8)
    bars.tick_params(labelsize=8)
    bars.spines[["top", "right"]].set_visible(False)
    figure.text(0.5, 0.03, f"accuracies: {source}", ha="center", fontsize=7)
    figure.suptitle(f"{example.title}, frame {n}", fontsize=10)
    return figure


def check_accuracies(values: Iterable[float]) -> None:
    """Raise :class:`~mcn.errors.MCNError` for an accuracy that is not per cent."""
    if wrong := [value for value in values if not 0 <= value <= 100]:
        raise MCNError(f"an accuracy is {wrong[0]}: it should be per cent, from 0 to 100")


def _wrapped(note: str) -> str:
    """A note that is no wider than a map; a long path is broken where it must be."""
    return "\n".join(textwrap.fill(line, 38) for line in note.splitlines())


def activation_video(examples: Sequence[Example], path: Path, fps: float = 25.0) -> None:
    """Write maps over frames as H.264: a row for each example, a column for frames and for each network.

    Clips end together: a shorter one waits on its last frame. ``fps`` is frames a second.
    Raises :class:`~mcn.errors.MCNError` for no examples, or a path that cannot be written.
    """
    _some(examples)
    rows = [_Strip(example) for example in examples]
    size = (max(row.width for row in rows), sum(row.height for row in rows))
    frames = []
    for n in range(max(len(row) for row in rows)):
        canvas = Image.new("RGB", size, "white")
        above = 0
        for row in rows:
            canvas.paste(row.image(min(n, len(row) - 1)), (0, above))
            above += row.height
        frames.append(np.asarray(canvas))
    encoded = encode(frames, max(1, round(fps)), crf="18")
    write_atomically(path, lambda file: file.write(encoded))


class _Strip:
    """One example's row of a video file: titles, images side by side, notes."""

    def __init__(self, example: Example) -> None:
        top = _top(example)
        self._columns = {"frames": example.images}
        for name, scaled in example.scaled.items():
            self._columns[name] = overlay(example.images, scaled, top)
        height, width = example.images.shape[1:3]
        enlarge = max(1, round(_TILE / max(height, width)))
        self._tile = (width * enlarge, height * enlarge)
        self._notes = {
            "frames": f"{example.title}\nbrightest: {top:.1f} x a map's mean",
            **example.notes,
        }
        font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        self._title_font, self._note_font = (ImageFont.truetype(str(font), size) for size in (14, 10))
        step = self._tile[0] + _MARGIN
        self._step = step
        # H.264 with 4:2:0 colour needs even sides.
        self.width = (_MARGIN + step * len(self._columns) + 1) // 2 * 2
        self._notes = {name: _wrapped(note) for name, note in self._notes.items()}
        self._lines = max(note.count("\n") + 1 for note in self._notes.values())
        self.height = (_HEADER + self._tile[1] + 14 * self._lines + _MARGIN + 1) // 2 * 2

    def __len__(self) -> int:
        return len(self._columns["frames"])

    def image(self, n: int) -> Image.Image:
        """The strip at frame ``n``, counted from 0."""
        canvas = Image.new("RGB", (self.width, self.height), "white")
        draw = ImageDraw.Draw(canvas)
        for column, (name, images) in enumerate(self._columns.items()):
            left = _MARGIN + column * self._step
            pixels = Image.fromarray((images[n] * 255).round().astype(np.uint8))
            canvas.paste(pixels.resize(self._tile, Image.Resampling.BILINEAR), (left, _HEADER))
            draw.text((left, 4), name, fill="black", font=self._title_font)
            note = self._notes.get(name, "")
            draw.text((left, _HEADER + self._tile[1] + 2), note, fill="black", font=self._note_font)
        return canvas
