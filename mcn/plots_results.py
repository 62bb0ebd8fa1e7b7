"""Pictures of results: the paper's numbers beside measured ones, right answers by seed and video, intervals.

Like :mod:`mcn.plots`, values in and a matplotlib figure out.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mcn.errors import MCNError
from mcn.plots import COLOURS, Picture
from mcn.results import TEST, Record, by_group, summary
from mcn.tables import PaperTable, metric_name, paper_table

_PAPER, _HERE = COLOURS[0], COLOURS[1]


def paper_and_measured(number: int, records: Sequence[Record], metric: str = "") -> Figure:
    """Table ``number`` as dots: left the paper's numbers, right what ``records`` say, each with its own axis.

    ``metric`` is what is drawn of the records (default: what the paper's first result column measures; the
    left side is that column, whatever the metric). Measured are a small dot a seed and, from two seeds on,
    their mean with its 95 % interval; records that differ in data, profile, protocol or device have panels of
    their own, and protocols that alone tell two panels apart are numbered; without records there is no such
    panel. Rows without a record, and rows
    that the paper does not have, say so. Raises :class:`~mcn.errors.MCNError` for a table that the paper does
    not have.

    >>> [axis.get_title(loc="left") for axis in paper_and_measured(5, []).axes]
    ["the paper's; measured here: none"]
    """
    table = paper_table(number)
    column, measures = next(iter(table.results.items()))
    metric = metric or measures
    having = [r for r in records if r.table == str(number) and r.data.subset == TEST and metric in r.metrics]
    blocks: dict[tuple[Any, ...], list[Record]] = {}
    for record in having:
        known = (record.data, record.profile, record.protocol, record.device)
        blocks.setdefault(known, []).append(record)
    rows = list(dict.fromkeys([*table.rows, *(record.row for record in having)]))
    panels = 1 + len(blocks)
    wide = (5.6, 7.2)[min(len(blocks), 1)] + 1.6 * max(0, panels - 3)  # more would be shrunk by a page
    figure = Picture(figsize=(wide, 1.3 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    _papers(axes[0], table, column, rows)
    for axis, block in zip(axes[1:], blocks.values(), strict=False):
        _block(axis, rows, block, metric, other=metric != measures, note=_protocol(block[0], blocks))
    if not blocks:
        axes[0].set_title("the paper's; measured here: none", fontsize=9, loc="left", color=_PAPER)
    labels = [table.label(row).removesuffix(" (not in the paper)") for row in rows]
    axes[0].set_yticks([-place for place in range(len(rows))], labels, fontsize=8)
    axes[0].set_ylim(0.6 - len(rows), 0.6)
    return figure


def _papers(axis: Axes, table: PaperTable, column: str, rows: Sequence[str]) -> None:
    for place, row in enumerate(rows):
        cell = table.rows[row][table.columns.index(column)] if row in table.rows else None
        if isinstance(cell, int | float):
            axis.plot(cell, -place, "s", color=_PAPER, markersize=5)
            axis.annotate(
                f"{cell:.1f}", (cell, -place), (6, -3), textcoords="offset points", fontsize=8, color=_PAPER
            )
        else:
            _said(axis, place, "not in the paper")
    axis.set_title("the paper's", fontsize=9, loc="left", color=_PAPER)
    axis.set_xlabel(f"{column.removesuffix('(%)')}, per cent", fontsize=8)
    axis.margins(x=0.4)
    axis.locator_params(axis="x", nbins=5)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)


def _protocol(of: Record, blocks: Iterable[tuple[Any, ...]]) -> str:
    """Which protocol a panel is about, where several have all but that in common."""
    same = [key[2] for key in blocks if (key[0], key[1], key[3]) == (of.data, of.profile, of.device)]
    return f"\nprotocol {same.index(of.protocol) + 1} of {len(same)}" if len(same) > 1 else ""


def _block(
    axis: Axes, rows: Sequence[str], block: Sequence[Record], metric: str, *, other: bool, note: str
) -> None:
    """What can be compared, of one list, protocol and device."""
    data = block[0].data
    groups = by_group(block)
    for place, row in enumerate(rows):
        same = [group for group in groups if group[0].row == row]
        if not same:
            _said(axis, place, "no record")
        for group, shift in zip(same, np.linspace(-0.2, 0.2, len(same)) * (len(same) > 1), strict=True):
            height, found = -place + float(shift), summary(group, metric)
            values = [record.metrics[metric] for record in group]
            axis.plot(values, [height] * len(values), "o", color=_HERE, markersize=3, alpha=0.55)
            if found.low is not None and found.high is not None:
                ends = [[found.mean - found.low], [found.high - found.mean]]
                axis.errorbar(found.mean, height, xerr=ends, fmt="D", color=_HERE, markersize=4, capsize=2)
    name = textwrap.fill(data.name, 26)
    title = f"here: {data.test} test videos\n{name}\n{block[0].profile}, {block[0].device}{note}"
    axis.set_title(title, fontsize=8, loc="left", color=_HERE)
    words = f"{metric_name(metric)}, per cent" + ("\n(not the paper's measure)" if other else "")
    axis.set_xlabel(words, fontsize=8)
    axis.margins(x=0.3)
    axis.locator_params(axis="x", nbins=4)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)


def _said(axis: Axes, place: int, words: str) -> None:
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "center", "va": "center"}
    axis.annotate(words, (0.5, -place), fontsize=8, color="0.45", **where)


def hit_map(rows: Mapping[str, ArrayLike], sources: ArrayLike) -> Figure:
    """Which videos each seed of each row had right: dark is right, a line a seed, a block a row.

    ``rows`` are hits ``(seeds, videos)``, ``sources`` ``(videos,)`` the number of each video's source; thin
    upright lines part the sources. Raises :class:`~mcn.errors.MCNError` for rows of different lengths.

    >>> len(hit_map({"a": [[1, 0]], "b": [[1, 1]]}, [0, 1]).axes)
    2
    """
    hits = {name: np.asarray(each, dtype=float) for name, each in rows.items()}
    source = np.asarray(sources)
    if not hits or any(each.ndim != 2 or each.shape[1] != len(source) for each in hits.values()):
        raise MCNError(f"hit_map takes hits (seeds, videos) of the {len(source)} videos that sources names")
    order = np.argsort(source, kind="stable")
    edges = np.flatnonzero(np.diff(source[order])) + 0.5
    heights = [len(each) for each in hits.values()]
    figure = Picture(figsize=(7.0, 1.0 + 0.22 * sum(heights) + 0.25 * len(hits)), layout="constrained")
    axes = figure.subplots(len(hits), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (name, each) in zip(axes, hits.items(), strict=True):
        axis.imshow(
            each[:, order], cmap="Blues", vmin=-0.35, vmax=1.25, aspect="auto", interpolation="nearest"
        )
        for edge in edges:
            axis.axvline(edge, color="white", linewidth=1.6)
        axis.set_yticks(range(len(each)), [f"seed {seed}" for seed in range(len(each))], fontsize=8)
        axis.set_title(f"{name}: {100 * each.mean():.1f} per cent right (dark)", fontsize=9, loc="left")
        axis.set_xticks([])
    axes[-1].set_xlabel("videos, one source after the other")
    return figure


def coverage(found: ArrayLike, truth: float, *, x_label: str) -> Figure:
    """Many experiments' intervals ``(mean, low, high)``, ``(N, 3)``, and what each of them was after.

    Intervals that miss ``truth`` are drawn in another colour and thicker. Raises
    :class:`~mcn.errors.MCNError` for another shape.

    >>> coverage([[1.0, 0.0, 2.0], [3.0, 2.5, 3.5]], 1.0, x_label="x").axes[0].get_title(loc="left")
    '1 of 2 intervals miss the truth'
    """
    values = np.asarray(found, dtype=float)
    if values.ndim != 2 or values.shape[1] != 3:
        raise MCNError(f"coverage takes intervals (N, 3): mean, low, high; got {values.shape}")
    figure = Picture(figsize=(6.4, 0.9 + 0.085 * len(values)), layout="constrained")
    axis = figure.subplots()
    missed = (values[:, 1] > truth) | (values[:, 2] < truth)
    for place, ((mean, low, high), miss) in enumerate(zip(values, missed, strict=True)):
        colour, width = (COLOURS[1], 2.4) if miss else (COLOURS[0], 1.2)
        axis.plot([low, high], [-place, -place], color=colour, linewidth=width)
        axis.plot(mean, -place, "o", color=colour, markersize=2.5)
    axis.axvline(truth, color="0.3", linestyle="--", linewidth=1)
    axis.set_yticks([])
    axis.set_xlabel(x_label)
    axis.set_title(f"{missed.sum()} of {len(values)} intervals miss the truth", fontsize=9, loc="left")
    axis.grid(alpha=0.25, axis="x")
    return figure
