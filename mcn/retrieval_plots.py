"""Pictures of retrieval: the paper's Fig. 4, and the videos nearest to a file as a contact sheet."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from mcn.config import RetrieveConfig
from mcn.data.datasets import Videos, load_videos
from mcn.data.safe import OpenVideo, open_safely
from mcn.errors import MCNError
from mcn.files import save_figure
from mcn.lookup import Neighbour
from mcn.plots import RIGHT, WRONG, Picture, image_axis
from mcn.retrieval import Retrieval, run_retrieval

_COLUMNS = 5  # of a contact sheet


def neighbour_sheet(
    query_frames: Sequence[ArrayLike],
    query_labels: Sequence[str],
    neighbour_frames: Mapping[str, Sequence[Sequence[ArrayLike]]],
    neighbour_labels: Mapping[str, Sequence[Sequence[str]]],
    title: str = "",
) -> Figure:
    """Retrieval as in the paper's Fig. 4: each row a query, then the nearest videos by each network.

    An image is one frame (say, the middle one) as ``(H, W, 3)``, uint8 or floating point in [0, 1].
    ``query_frames`` and ``query_labels`` have an entry a query. The other two map a network's name
    (``{"untrained": ..., "MCN": ...}``; drawn side by side, in this order) to, for each query, its
    nearest frames and their class names, the nearest first: an array ``(Q, K, H, W, 3)`` will do.
    Neighbours of the query's class are framed green and marked "ok", others red and marked "no".
    Raises ``ValueError`` where the numbers do not fit.
    """
    if set(neighbour_frames) != set(neighbour_labels):
        raise ValueError(f"frames are of {sorted(neighbour_frames)}, labels of {sorted(neighbour_labels)}")
    counts = [len(query_frames), len(query_labels)]
    counts += [len(of) for by_name in (neighbour_frames, neighbour_labels) for of in by_name.values()]
    if len(set(counts)) != 1:
        raise ValueError(f"every list has one entry a query, got lengths {counts}")
    nearest = max(len(row) for rows in neighbour_labels.values() for row in rows)
    columns = 1 + len(neighbour_frames) * nearest
    figure = Picture(figsize=(1.25 * columns + 0.3, 1.5 * len(query_frames) + 0.6), layout="constrained")
    # A narrow empty column sets each network's neighbours apart.
    widths = [1.0] + [w for _ in neighbour_frames for w in (0.12, *[1.0] * nearest)]
    grid = figure.add_gridspec(len(query_frames), len(widths), width_ratios=widths)
    for row, (frame, label) in enumerate(zip(query_frames, query_labels, strict=True)):
        axis = image_axis(figure.add_subplot(grid[row, 0]), frame)
        axis.set_xlabel(label, fontsize=8)
        if row == 0:
            axis.set_title("query", fontsize=10)
        for block, name in enumerate(neighbour_frames):
            start = 2 + block * (nearest + 1)
            pairs = zip(neighbour_frames[name][row], neighbour_labels[name][row], strict=True)
            for place, (image, found) in enumerate(pairs):
                axis = image_axis(figure.add_subplot(grid[row, start + place]), image)
                _mark(axis, found, found == label)
                if row == 0:
                    axis.set_title(f"{name}: {place + 1}" if place == 0 else str(place + 1), fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def retrieval_sheet(
    queries: Videos,
    gallery: Videos,
    found: Mapping[str, Retrieval],
    *,
    rows: int = 6,
    columns: int = 3,
    title: str = "",
) -> Figure:
    """The paper's Fig. 4 from results: ``rows`` evenly spaced queries, ``columns`` nearest by each network.

    Middle frames, opened from the videos. The queries are chosen by their place in the list alone, from
    those that every network has an answer to. Raises :class:`~mcn.errors.MCNError` where there is none.
    """
    answered = [q for q in range(len(queries)) if all(r.neighbours[q, 0] >= 0 for r in found.values())]
    if not answered:
        raise MCNError(f"no test video of {queries.folder} can be read: there is nothing to draw")
    chosen = answered[:: max(1, len(answered) // rows)][:rows]
    nearest = {name: [r.neighbours[q, :columns].tolist() for q in chosen] for name, r in found.items()}
    return neighbour_sheet(
        [middle_frame(queries, q) for q in chosen],
        [queries.classes[queries.labels[q]] for q in chosen],
        {name: [[middle_frame(gallery, g) for g in row] for row in rows] for name, rows in nearest.items()},
        {
            name: [[gallery.classes[gallery.labels[g]] for g in row] for row in rows]
            for name, rows in nearest.items()
        },
        title=title,
    )


def fig_4(config: RetrieveConfig, result: Retrieval, beside: str, path: Path) -> Path:
    """Draw and save queries and their nearest by this network, and by another one in front, as in Fig. 4.

    ``beside`` is the other's checkpoint, ``untrained``, or nothing.
    """
    found = {"this network": result}
    if beside:
        checkpoint = "" if beside == "untrained" else beside
        found = {beside: run_retrieval(dataclasses.replace(config, checkpoint=checkpoint)), **found}
    test, train = (load_videos(config.data, subset, config.split) for subset in ("test", "train"))
    return save_sheet(retrieval_sheet(test, train, found), path)


def contact_sheet(query: Path, videos: Videos, found: Sequence[Neighbour]) -> Figure:
    """The middle frame of a video file, and below it those of its neighbours with name and cosine.

    ``found`` are rows of ``videos``, as :func:`mcn.lookup.find` gives them.

    Raises :class:`~mcn.data.videoinfo.VideoError` for one that cannot be read.
    """
    rows = 1 + -(-len(found) // _COLUMNS)
    figure = Picture(figsize=(2.0 * _COLUMNS, 1.9 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, _COLUMNS)
    axis = image_axis(figure.add_subplot(grid[0, 0]), _middle(open_safely(query)))
    axis.set_xlabel(_short(query.name), fontsize=7)
    axis.set_title("query", fontsize=9)
    for place, each in enumerate(found):
        cell = grid[1 + place // _COLUMNS, place % _COLUMNS]
        axis = image_axis(figure.add_subplot(cell), middle_frame(videos, each.row))
        axis.set_xlabel(_short(each.name), fontsize=7)
        axis.set_title(f"{place + 1}: cosine {each.cosine:.3f}", fontsize=9)
    return figure


def _short(name: str, most: int = 32) -> str:
    """A name that fits under its picture: of a long one the beginning and the end."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def save_sheet(figure: Figure, path: Path) -> Path:
    """Write a picture, whole or not at all; its format is that of the path's suffix."""
    suffix = path.suffix[1:].lower()
    if suffix not in figure.canvas.get_supported_filetypes():
        raise MCNError(f"--sheet {path}: not a kind of picture that can be written (.png, .pdf, .svg, ...)")
    save_figure(figure, path, dpi=110, bbox_inches="tight")
    return path


def middle_frame(videos: Videos, index: int) -> NDArray[np.uint8]:
    """The frame in the middle of a video, ``(H, W, 3)``."""
    return _middle(videos.open(index))


def _middle(opened: OpenVideo) -> NDArray[np.uint8]:
    with opened as video:
        return video.frames([len(video) // 2])[0]


def _mark(axis: Axes, label: str, right: bool) -> None:
    colour = RIGHT if right else WRONG
    for spine in axis.spines.values():
        spine.set(edgecolor=colour, linewidth=3)
    axis.set_xlabel(f"{label} ({'ok' if right else 'no'})", fontsize=8, color=colour)
