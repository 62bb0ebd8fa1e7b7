"""The picture of a step benchmark: what each way to the gradient takes of time and of memory."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from mcn.errors import MCNError
from mcn.plots import COLOURS, Picture

#: Colour and mark of each way, the same in every panel. Other libraries' ways are hollow.
_LOOKS = {
    "plain": ("#000000", "s"), "first": (COLOURS[3], "^"), "textbook": ("#777777", "X"),
    "fast": (COLOURS[0], "o"), "balanced": (COLOURS[1], "D"), "lean": (COLOURS[2], "v"),
    "learn2learn": (COLOURS[4], "<"), "higher": (COLOURS[4], ">"), "torchopt": (COLOURS[4], "p"),
}  # fmt: skip
_OF_OTHERS = ("learn2learn", "higher", "torchopt")


def trade_off(records: Sequence[dict[str, Any]]) -> Figure:
    """Time of a step against memory per clip, both as shares of the textbook's, one panel per record.

    ``records`` are those of :func:`mcn.bench_records.load_steps`. A way looks the same in every panel;
    those that a record did not measure are left out of its panel. Marks of other libraries are hollow.
    One legend below names all. Raises :class:`~mcn.errors.MCNError` where there is nothing to draw.
    """
    if not records:
        raise MCNError("no records of mcn bench step to draw: measure some")
    figure = Picture(figsize=(max(4.6, 2.2 * len(records) + 0.6), 3.9), layout="constrained")
    marks: dict[str, Any] = {}  # of the legend
    panels = figure.subplots(1, len(records), squeeze=False, sharex=True, sharey=True)[0]
    for axis, made in zip(panels, records, strict=True):
        setting = made["setting"]
        for way, row in made["ways"].items():
            if row.get("time_to_textbook") is None or row.get("memory_to_textbook") is None:
                continue
            colour, mark = _LOOKS[way]
            (marks[way],) = axis.plot(
                row["time_to_textbook"], row["memory_to_textbook"], mark, label=way, markersize=8,
                color=colour, markerfacecolor="none" if way in _OF_OTHERS else colour,
            )  # fmt: skip
        axis.axhline(1, color="0.8", zorder=0)
        axis.axvline(1, color="0.8", zorder=0)
        width = f", width {setting['width']}" if setting["width"] else ""
        clip = f"{setting['frames']} × {setting['size']} × {setting['size']}"
        axis.set_title(f"{setting['backbone']}{width}\n{clip}, {made['device']}", fontsize=9)
        axis.set_xlabel("time of a step / textbook", fontsize=9)
    rows = [row for made in records for row in made["ways"].values()]
    panels[0].set_xlim(0, 1.1 * max(row.get("time_to_textbook") or 0 for row in rows))  # panels share them
    panels[0].set_ylim(0, 1.1 * max(row.get("memory_to_textbook") or 0 for row in rows))
    panels[0].set_ylabel("memory per clip / textbook", fontsize=9)
    named = {way: marks[way] for way in _LOOKS if way in marks}
    figure.legend(named.values(), list(named), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure
