"""Pictures of how clips are cut from videos: which frames they take, and what augmentation does to one.

Like :mod:`mcn.plots`, arrays in and a matplotlib figure out; these show indices and matrices instead of
results.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mcn.errors import MCNError
from mcn.plots import COLOURS, Picture

_TAKEN, _REPEATED = COLOURS[0], COLOURS[1]


def clip_map(num_frames: int, clips: Mapping[str, Sequence[int]], title: str = "") -> Figure:
    """Which frames of a video of ``num_frames`` each clip takes: a row a clip, a square a frame.

    ``clips`` maps a name to indices as :mod:`mcn.data.sampling` gives them. Repeats of frame 0 (the
    padding of a short video) are drawn left of it, in another colour and hatched. Raises
    :class:`~mcn.errors.MCNError` for no clips and for an index that is no frame's.

    >>> len(clip_map(3, {"a clip": [0, 0, 0, 1, 2]}).axes[0].patches)  # the video and five frames
    6
    """
    taken = [index for clip in clips.values() for index in clip]
    if not taken or not 0 <= min(taken) <= max(taken) < num_frames:
        raise MCNError(f"clips {list(clips)} of a video of {num_frames} frames: give indices of its frames")
    figure = Picture(figsize=(7.0, 0.95 + 0.28 * len(clips)), layout="constrained")
    axis = figure.subplots()
    padding = max(map(_repeats, clips.values()))
    for row, clip in enumerate(clips.values()):
        axis.add_patch(Rectangle((-0.5, row - 0.36), num_frames, 0.72, facecolor="0.9", edgecolor="none"))
        repeats = _repeats(clip)
        for place, index in enumerate(clip):
            repeated = place < repeats
            left = (place - repeats if repeated else index) - 0.5
            style: dict[str, Any] = (
                {"facecolor": "white", "hatch": "////"} if repeated else {"facecolor": _TAKEN}
            )
            edge = _REPEATED if repeated else "white"
            axis.add_patch(Rectangle((left, row - 0.36), 1, 0.72, edgecolor=edge, linewidth=0.6, **style))
    axis.set_xlim(-padding - 0.8, num_frames - 0.2)
    axis.set_ylim(len(clips) - 0.4, -0.6)
    axis.set_yticks(range(len(clips)), list(clips), fontsize=8)
    axis.set_xlabel("frame" + " (hatched: frame 0 again)" * (padding > 0), fontsize=9)
    axis.spines[["left", "right", "top"]].set_visible(False)
    if title:
        axis.set_title(title, fontsize=10)
    return figure


def matrix_product(
    frame: ArrayLike | Tensor, rows: ArrayLike | Tensor, columns: ArrayLike | Tensor
) -> Figure:
    """``rows @ frame @ columns.T`` as pictures, pixel for pixel on one scale (:eq:`eq-clip-matrix`).

    ``frame`` is ``(H, W, 3)`` in [0, 1], ``rows`` is ``(S, H)`` and ``columns`` ``(S, W)``; weights are
    drawn from white (0) to black (the largest of their matrix). Raises :class:`~mcn.errors.MCNError` for
    shapes that do not fit.
    """
    image, high, wide = (np.asarray(values, dtype=np.float32) for values in (frame, rows, columns))
    if image.ndim != 3 or high.shape[1:] != image.shape[:1] or wide.shape[1:] != image.shape[1:2]:
        raise MCNError(f"shapes do not fit: rows {high.shape}, frame {image.shape}, columns {wide.shape}")
    out = np.einsum("oh,hwc,pw->opc", high, image, wide).clip(0, 1)
    panels: list[tuple[str, NDArray[np.float32]]] = [
        (r"$A_h$", high), (r"$X$", image), (r"$A_w^\top$", wide.T), (r"$Y = A_h X A_w^\top$", out),
    ]  # fmt: skip
    widths = [panel.shape[1] for _, panel in panels]
    tallest = max(panel.shape[0] for _, panel in panels)
    figure = Picture(figsize=(8.2, 8.2 * tallest / sum(widths) + 0.6), layout="constrained")
    for axis, (name, panel) in zip(
        figure.subplots(1, 4, gridspec_kw={"width_ratios": widths}), panels, strict=True
    ):
        axis.imshow(panel, cmap="Greys", vmin=0.0, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(name, fontsize=11)
        axis.set_xlabel(f"{panel.shape[0]} × {panel.shape[1]}", fontsize=9)
    return figure


def _repeats(clip: Sequence[int]) -> int:
    """How many of the leading zeros are padding: all but the last."""
    zeros = next((place for place, index in enumerate(clip) if index), len(clip))
    return max(0, zeros - 1)
