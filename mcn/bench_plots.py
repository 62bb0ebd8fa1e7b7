"""The picture of a step benchmark: what each way to the gradient takes of time and of memory."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from mcn.errors import MCNError
from mcn.plots import COLOURS, Picture

_MARKS = {"plain": "s", "first": "^", "textbook": "X", "fast": "o", "balanced": "D", "lean": "v"}


def trade_off(records: Sequence[dict[str, Any]]) -> Figure:
    """Time of a step against memory of a clip, both as shares of the textbook's, a panel a record.

    ``records`` are those of :func:`mcn.bench_records.load_steps`. Ways that were not measured are left out.
    Raises :class:`~mcn.errors.MCNError` where there is nothing to draw.
    """
    if not records:
        raise MCNError("no records of mcn bench step to draw: measure some")
    figure = Picture(figsize=(3.6 * len(records) + 0.4, 3.4), layout="constrained")
    panels = figure.subplots(1, len(records), squeeze=False, sharex=True, sharey=True)[0]
    for axis, made in zip(panels, records, strict=True):
        setting = made["setting"]
        others = [way for way in made["ways"] if way not in _MARKS]
        for number, (way, row) in enumerate(made["ways"].items()):
            if row.get("time_to_textbook") is None or row.get("memory_to_textbook") is None:
                continue
            mark = _MARKS.get(way) or "<>*"[others.index(way) % 3]
            axis.plot(
                row["time_to_textbook"], row["memory_to_textbook"], mark,
                color=COLOURS[number % len(COLOURS)], markersize=8, label=way,
            )  # fmt: skip
        axis.axhline(1, color="0.8", zorder=0)
        axis.axvline(1, color="0.8", zorder=0)
        width = f", width {setting['width']}" if setting["width"] else ""
        clip = f"{setting['frames']} x {setting['size']} x {setting['size']}"
        axis.set_title(f"{setting['backbone']}{width}, {clip}\n{made['device']}", fontsize=9)
        axis.set_xlabel("time of a step / textbook")
        axis.margins(0.1)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7, loc="best")
    panels[0].set_ylabel("memory of a clip / textbook")
    return figure
