"""Pictures of retrieval: the paper's Fig. 4, and the videos nearest to a file as a contact sheet."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from mcn.data.datasets import Videos
from mcn.data.safe import OpenVideo, open_safely
from mcn.errors import MCNError
from mcn.files import save_figure
from mcn.holdout import source_of
from mcn.lookup import Neighbour
from mcn.plots import RIGHT, WRONG, Picture, image_axis
from mcn.retrieval import Retrieval

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
    tall = max(np.shape(frame)[0] / np.shape(frame)[1] for frame in query_frames)
    height = (1.2 * tall + 0.35) * len(query_frames) + 0.6  # a row of frames with words below each
    figure = Picture(figsize=(1.25 * columns + 0.3, height), layout="constrained")
    # A narrow empty column sets each network's neighbours apart.
    widths = [1.0] + [w for _ in neighbour_frames for w in (0.12, *[1.0] * nearest)]
    grid = figure.add_gridspec(len(query_frames), len(widths), width_ratios=widths)
    for row, (frame, label) in enumerate(zip(query_frames, query_labels, strict=True)):
        axis = image_axis(figure.add_subplot(grid[row, 0]), frame)
        axis.set_xlabel(label, fontsize=9)
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
    """The paper's Fig. 4 from results: ``rows`` queries, and ``columns`` nearest by each network.

    Middle frames, opened from the videos. The queries are chosen by :func:`spread_queries` from those that
    every network has an answer to. Raises :class:`~mcn.errors.MCNError` where there is none.
    """
    answered = [q for q in range(len(queries)) if all(r.neighbours[q, 0] >= 0 for r in found.values())]
    if not answered:
        raise MCNError(f"no test video of {queries.folder} can be read: there is nothing to draw")
    chosen = spread_queries(queries, answered, rows)
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


def spread_queries(videos: Videos, among: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of some of a list's videos, of as many classes as there are, by the list alone.

    Within a class another source video each time, and from class to class another place in the class:
    lists give the scenes of a data set in the same order in every class.

    >>> names = tuple(f"{a}/v_{a}_g{g:02d}_c01.avi" for a in "xyz" for g in (1, 2, 3))
    >>> videos = Videos(Path(), names, tuple(i // 3 for i in range(9)), ("x", "y", "z"))
    >>> [videos.names[row] for row in spread_queries(videos, range(9), 3)]
    ['x/v_x_g01_c01.avi', 'y/v_y_g02_c01.avi', 'z/v_z_g03_c01.avi']
    """
    classes: dict[int, dict[str, list[int]]] = {}
    for row in among:
        sources = classes.setdefault(videos.labels[row], {})
        sources.setdefault(source_of(videos.names[row]), []).append(row)
    # In each class the first clip of every source, then the second of every source, ...
    left = {
        label: [row for clips in zip_longest(*sources.values()) for row in clips if row is not None]
        for label, sources in classes.items()
    }
    kept, chosen = {label: len(sources) for label, sources in classes.items()}, []
    order = list(left)
    if len(order) > count:
        order = [order[i * len(order) // count] for i in range(count)]
    for number in range(min(count, len(among))):
        label = next(each for each in order[number % len(order) :] + order if left[each])
        fresh = max(1, kept[label])  # sources that have not been shown
        chosen.append(left[label].pop(number * fresh // count))
        kept[label] -= 1
    return sorted(chosen)


def contact_sheet(query: Path, videos: Videos, found: Sequence[Neighbour]) -> Figure:
    """The middle frame of a video file, and beside it those of its neighbours with name and cosine.

    ``found`` are rows of ``videos``, as :func:`mcn.lookup.find` gives them.

    Raises :class:`~mcn.data.videoinfo.VideoError` for one that cannot be read.
    """
    rows = max(1, -(-len(found) // _COLUMNS))
    figure = Picture(figsize=(1.3 * (_COLUMNS + 1) + 0.2, 1.9 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, _COLUMNS + 2, width_ratios=[1.0, 0.08, *[1.0] * _COLUMNS])
    axis = image_axis(figure.add_subplot(grid[0, 0]), _middle(open_safely(query)))
    axis.set_xlabel(_short(query.name), fontsize=7)
    axis.set_title("query", fontsize=9)
    for place, each in enumerate(found):
        cell = grid[place // _COLUMNS, 2 + place % _COLUMNS]
        axis = image_axis(figure.add_subplot(cell), middle_frame(videos, each.row))
        axis.set_xlabel(_short(each.name), fontsize=7)
        axis.set_title(f"{place + 1}: cosine {each.cosine:.3f}", fontsize=9)
    return figure


def _short(name: str, most: int = 21) -> str:
    """A name that fits under its picture, folders in a line of their own: of long ones the ends."""
    parts = [part for part in name.rpartition("/")[::2] if part]
    cut = [p if len(p) <= most else f"{p[: most // 2 - 1]}…{p[-(most // 2) :]}" for p in parts]
    return "/\n".join(cut)


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
    axis.set_xlabel(f"{label} ({'ok' if right else 'no'})", fontsize=9, color=colour)
