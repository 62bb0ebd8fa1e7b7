"""The paper's Tables 1 to 10 as data, and beside them what was measured here.

The numbers of the paper (Lin et al., ICCV 2021) are in ``paper_tables.yaml``, every row and cell as printed.
:func:`render` shows a table with what this project measured for it (:mod:`mcn.results`) set apart, and says
what the paper's protocol is and what differs here.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import Any

import yaml

from mcn._table_formats import FORMATS, Document, Grid, Part, to_html
from mcn.errors import MCNError
from mcn.results import TEST, Record, by_group, comparable, own_records, seeds_in_words, summary

NOT_MEASURED = "Not measured here yet."
_PROTOCOL = "The paper's protocol, as far as stated"
_PRESETS = "What the paper presets of mcn do (rows of the appendix: what the paper leaves open)"

Cell = str | float | int | bool | None


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: its numbers as printed, the rest in this project's words."""

    number: int
    caption: str
    unit: str
    columns: tuple[str, ...]
    results: dict[str, str]  #: result columns and the metric of a record that measures the same
    rows: dict[str, tuple[Cell, ...]]  #: by the name that a record's ``row`` gives; ``True`` is a tick
    paper: tuple[str, ...]  #: the paper's protocol, as far as stated
    here: tuple[str, ...]  #: what differs here
    notes: tuple[str, ...]  #: oddities of the table

    def label(self, row: str) -> str:
        """A row in words, for a table in which it stands alone.

        >>> paper_table(5).label("contrast-binary"), paper_table(4).label("mcn-16")
        ('CL + BL', 'MCN, 16 Input Frames')
        """
        if row not in self.rows:
            return f"{row} (not in the paper)"
        named = [
            pair for pair in zip(self.columns, self.rows[row], strict=True) if pair[0] not in self.results
        ]
        ticked = [column for column, cell in named if cell is True]
        words = [
            cell if isinstance(cell, str) else f"{cell} {column}"
            for column, cell in named
            if cell is not None and cell is not True
        ]
        return ", ".join([*([" + ".join(ticked)] if ticked else []), *words])


@cache
def _source() -> dict[str, Any]:
    text = (resources.files("mcn") / "paper_tables.yaml").read_text(encoding="utf-8")
    source: dict[str, Any] = yaml.safe_load(text)
    return source


def paper_table(number: int) -> PaperTable:
    """Table ``number`` of the paper.

    Raises :class:`~mcn.errors.MCNError` for a table that the paper does not have.

    >>> paper_table(5).rows["mcn"]
    (True, True, True, 84.8)
    """
    source = _source()
    if number not in source["tables"]:
        raise MCNError(f"the paper has no table {number}: give a number from 1 to {max(source['tables'])}")
    table = source["tables"][number]
    measure = source["measures"][table["measure"]]
    return PaperTable(
        number=number,
        caption=table["caption"],
        unit=measure["unit"],
        columns=tuple(table["columns"]),
        results=table["results"],
        rows={name: tuple(cells) for name, cells in table["rows"].items()},
        paper=tuple(measure["paper"]),
        here=(*measure["here"], *table["here"], *source["reporting"]),
        notes=tuple(table["notes"]),
    )


def render(number: int, format: str = "text", records: Sequence[Record] | None = None) -> str:
    """Table ``number`` as ``text`` (100 columns), ``markdown``, ``html`` or ``latex``.

    ``records`` are the measured results to show; by default those of ``book/results``. Those about held-out
    training videos are no results and are left out. In a notebook:
    ``display(HTML(render(5, "html")))``. Raises :class:`~mcn.errors.MCNError` for a table that the paper
    does not have and for another format.
    """
    if format not in FORMATS:
        raise MCNError(f"unknown format {format!r}: one of {', '.join(FORMATS)}")
    return FORMATS[format](_document(paper_table(number), records))


def folded(numbers: Iterable[int], records: Sequence[Record] | None = None) -> str:
    """Several tables as HTML, each folded under its title.

    Protocols and the presets' rules, most of which tables share, stand once below them, each with the tables
    that it is about. ``records`` and errors are those of :func:`render`.

    >>> shown = folded([1, 2, 5], records=[])
    >>> shown.count("<details>"), shown.count("the paper gives none"), shown.count("(Tables 1, 2, 5)")
    (5, 1, 2)
    """
    rules: dict[str, dict[str, list[int]]] = {_PROTOCOL: {}, _PRESETS: {}}
    shown = []
    for number in numbers:
        document = _document(paper_table(number), records)
        for part in document.parts:
            for rule in part.bullets if part.heading in rules else ():
                rules[part.heading].setdefault(rule, []).append(number)
        own = tuple(part for part in document.parts if part.heading not in rules)
        title = f"<p><strong>{escape(document.title)}</strong></p>\n"  # the fold has it
        shown.append((document.title, to_html(Document(document.title, own)).replace(title, "", 1)))
    for heading, found in rules.items():
        items = [
            f"<li>{escape(rule)} <em>(Table{'s'[: len(of) > 1]} {', '.join(map(str, of))})</em></li>"
            for rule, of in found.items()
        ]
        shown.append((heading, f"<ul>{''.join(items)}</ul>"))
    return "".join(f"<details><summary>{escape(head)}</summary>{body}</details>" for head, body in shown)


def against_untrained(metrics: Sequence[str], records: Sequence[Record] | None = None) -> list[str]:
    """What was measured of some ``metrics``, in lines: means over seeds, and their distance to no training.

    One row of a table takes a line with its means and one with what it was measured on; E is the epochs of
    pre-training that its table's rows had. Where the same table, data, protocol, profile, device and epochs
    have one row ``untrained``, a third line gives the means minus that row's, in points. ``records`` are by
    default those of ``book/results``; those about held-out training videos, and those that lack one of the
    metrics, are left out.

    >>> against_untrained(["motion_auc"], records=[])
    []
    """
    records = own_records() if records is None else records
    shown = [r for r in records if r.data.subset == TEST and set(metrics) <= set(r.metrics)]
    groups = by_group(shown)
    untrained = [group for group in groups if group[0].row == "untrained"]
    lines = []
    for group in groups:
        first, means = group[0], [summary(group, metric).mean for metric in metrics]
        lines.append(f"  {first.row:28}" + "".join(f"{mean:7.1f}" for mean in means))
        epochs = f"E = {_epochs(first)}, {seeds_in_words(len(group))}"
        where = f"{first.data.name}; {epochs}; {first.profile}, {first.device}; {first.commit[:7]}"
        lines.append(f"      {where}")
        bases = [group for group in untrained if _stage(group[0]) == _stage(first)]
        if len(bases) == 1 and first.row != "untrained":
            gaps = [
                mean - summary(bases[0], metric).mean for mean, metric in zip(means, metrics, strict=True)
            ]
            lines.append(f"      {'minus untrained':24}" + "".join(f"{gap:+7.1f}" for gap in gaps))
    return lines


def _epochs(record: Record) -> Any:
    return record.setting.get("pretrain", {}).get("epochs", "?")


def _stage(record: Record) -> tuple[Any, ...]:
    """What a row has in common with the untrained network that it is set against."""
    shared = (record.table, record.data, record.protocol, record.profile, record.paper, record.device)
    return (*shared, _epochs(record))


def _document(table: PaperTable, records: Sequence[Record] | None) -> Document:
    records = own_records() if records is None else records
    shown = [each for each in records if each.table == str(table.number) and each.data.subset == TEST]
    parts = [
        Part("The paper's numbers (Lin et al., ICCV 2021)", grids=(_paper_grid(table),)),
        *_measured(table, shown),
        Part(_PROTOCOL, bullets=table.paper),
        Part(_PRESETS, bullets=table.here),
    ]
    if table.notes:
        parts.append(Part("About the paper's table", bullets=table.notes))
    return Document(f"Table {table.number}. {table.caption}", tuple(parts))


def _paper_grid(table: PaperTable) -> Grid:
    rows = tuple(
        tuple(_show(cell, column in table.results) for column, cell in zip(table.columns, row, strict=True))
        for row in table.rows.values()
    )
    numbers = [
        column
        for column, cells in enumerate(zip(*table.rows.values(), strict=True))
        if any(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)
    ]
    return Grid(f"As printed: {table.unit}", table.columns, rows, frozenset(numbers))


def _show(cell: Cell, is_result: bool) -> str:
    if cell is None:
        return "–" if is_result else ""
    if cell is True:
        return "✓"
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)


def _measured(table: PaperTable, records: Sequence[Record]) -> list[Part]:
    """A part for each data set, protocol and device, so that only what can be compared stands together."""
    if not records:
        return [Part("Measured here", (NOT_MEASURED,), apart=True)]
    order = list(table.rows)

    def place(record: Record) -> tuple[bool, int, str]:
        return not record.paper, order.index(record.row) if record.row in order else len(order), record.row

    blocks: dict[tuple[Any, ...], list[Record]] = {}
    for record in sorted(records, key=place):
        key = (record.data, record.profile, record.protocol, record.units, record.paper, record.device)
        blocks.setdefault(key, []).append(record)
    return [_block(table, block) for block in blocks.values()]


def _block(table: PaperTable, records: Sequence[Record]) -> Part:
    first = records[0]
    data = first.data
    what = (
        f"Data: {data.name}, split {data.split}, {data.train} training and {data.test} test videos. "
        f"Profile: {first.profile}. Device: {first.device}."
    )
    kind = (
        "The paper's protocol at full size, but for what differs below."
        if first.paper
        else "Not the paper's protocol at full size: compare these with each other, not with the paper's."
    )
    groups = by_group(records)
    labels = _labels(table, groups)
    known = [*table.results.values(), *_source()["metrics"]]
    found = {metric for record in records for metric in record.metrics}
    metrics = [name for name in dict.fromkeys(known) if name in found] + sorted(found - set(known))
    grids = tuple(_metric_grid(table, metric, groups, labels) for metric in metrics)
    said = (what, f"Protocol: {first.protocol}.", *_made_with(records), kind)
    return Part("Measured here", said, grids, apart=True)


#: Settings that a number hangs on, as a record's flat setting names them, and how they are said.
_SAID = {
    "pretrain.backbone": "network {}", "pretrain.width": "width {}", "pretrain.frames": "{} frames",
    "pretrain.stride": "stride {}", "pretrain.size": "{} pixels",
    "pretrain.epochs": "{} epochs of pre-training",
    "pretrain.batch_size": "batches of {}", "pretrain.lr": "lr {}", "pretrain.inner_lr": "inner lr {}",
    "probe.clips": "probe: {} clips a video", "headline.clips": "headline probe: {} clips a video",
    "headline.epochs": "{} epochs", "retrieval.clips": "retrieval: {} clips a video",
    "finetune.clips": "fine-tuning: {} clips a video", "finetune.epochs": "{} epochs",
}  # fmt: skip


def _made_with(records: Sequence[Record]) -> tuple[str, ...]:
    """Sizes that all of some records have in common; where they differ, the rows' labels say how."""
    flat = [_flat(comparable(record.setting)) for record in records]
    said = []
    for name, words in _SAID.items():
        values = {
            each[name] for each in flat if name in each
        }  # a row without an evaluation says nothing of it
        if len(values) == 1:
            said.append(words.format(*values))
    return (f"With: {', '.join(said)}.",) if said else ()


def _metric_grid(
    table: PaperTable, metric: str, groups: Sequence[Sequence[Record]], labels: Sequence[str]
) -> Grid:
    """Rows of one metric, with how sure they are and where they come from."""
    rows = []
    for group, label in zip(groups, labels, strict=True):
        having = [record for record in group if metric in record.metrics]
        if not having:
            continue
        found = summary(having, metric)
        spread = "" if found.spread is None else f" ± {found.spread:.1f}"
        interval = "one seed" if found.low is None else f"{found.low:.1f} to {found.high:.1f}"
        commits = ", ".join(dict.fromkeys(record.commit for record in having))
        rows.append((label, str(found.n), f"{found.mean:.1f}{spread}", interval, commits))
    name = metric_name(metric)
    other = "" if metric in table.results.values() else "; not the measure of the paper's table"
    caption = f"Measured: {name}, {groups[0][0].units}{other}"
    columns = ("Row", "Seeds", "Mean ± sd", "95 % interval", "Commit")
    return Grid(caption, columns, tuple(rows), frozenset({1, 2, 3}))


def metric_name(metric: str) -> str:
    """A metric of a record in words.

    >>> metric_name("probe_top1"), metric_name("another_one")
    ('linear probe, top-1', 'another one')
    """
    return str(_source()["metrics"].get(metric, metric.replace("_", " ")))


def _labels(table: PaperTable, groups: Sequence[Sequence[Record]]) -> list[str]:
    """What each group is called; where two have the same row, the settings that tell them apart are added."""
    flat = [_flat(comparable(group[0].setting)) for group in groups]
    labels = []
    for group, mine in zip(groups, flat, strict=True):
        row = group[0].row
        same = [other for each, other in zip(groups, flat, strict=True) if each[0].row == row]
        names = dict.fromkeys(name for other in same for name in other)
        differing = [name for name in names if any(other.get(name) != mine.get(name) for other in same)]
        told = ", ".join(f"{name} {mine.get(name, 'not set')}" for name in differing)
        name = f"{row}: " if row in table.rows else ""  # what commands call it
        labels.append(name + table.label(row) + (f" [{told}]" if told else ""))
    return labels


def _flat(setting: Mapping[str, Any], within: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in setting.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{within}{name}.")
        else:
            found[within + name] = json.dumps(value).strip('"')
    return found
