"""The first page's figure of results shows the numbers of the README, to scale."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DRAWING = (ROOT / "book" / "drawings" / "start_result.svg").read_text(encoding="utf-8")
BARS = [
    (float(left), float(width), float(value))
    for left, width, value in re.findall(
        r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)".*? data-value="([\d.]+)"', DRAWING
    )
]
DOTS = [
    (float(centre), float(value))
    for centre, value in re.findall(r'<circle cx="([\d.]+)".*? data-value="([\d.]+)"', DRAWING)
]


def table_after(sentence):
    """Rows of the README's first table after a sentence: name -> numbers in per cent."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = readme[readme.index(sentence) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = [line.strip("| ").split(" | ") for line in lines[start + 2 :]]
    end = next((i for i, row in enumerate(rows) if len(row) == 1), len(rows))
    return {row[0]: [float(cell.removesuffix(" %")) for cell in row[1:]] for row in rows[:end]}


def test_bars_are_the_demos_table():
    table = table_after("`make demo` (seed 0")
    wanted = [table[name][column] for column in (0, 1) for name in ("untrained", "contrast only", "full MCN")]
    assert [value for _, _, value in BARS] == wanted
    assert all(f">{value} %</text>" in DRAWING for value in wanted)


def test_dots_are_the_table_of_seeds():
    seeds = table_after("`make learn` repeats")
    by_network = [value for column in range(4) for value in (row[column] for row in seeds.values())]
    assert [value for _, value in DOTS] == by_network


def test_lengths_and_places_are_to_one_scale():
    lefts = {left for left, _, _ in BARS}
    assert len(lefts) == 1
    scales = [width / value for _, width, value in BARS]
    scales += [(centre - lefts.copy().pop()) / value for centre, value in DOTS]
    assert max(scales) - min(scales) < 0.01
