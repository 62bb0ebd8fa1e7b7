"""A small document of tables and lists, written as plain text, Markdown, HTML or LaTeX."""

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import zip_longest

_GAP = "   "
_NARROWEST = 8  # columns of text are not wrapped below this


@dataclass(frozen=True)
class Grid:
    """One table; its first column names a row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()  #: columns that are aligned to the right


@dataclass(frozen=True)
class Part:
    """A heading with paragraphs, tables and a list; a part that is ``apart`` is set off from the others."""

    heading: str
    paragraphs: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    bullets: tuple[str, ...] = ()
    apart: bool = False


@dataclass(frozen=True)
class Document:
    """A title and its parts."""

    title: str
    parts: tuple[Part, ...]


def to_text(document: Document, width: int = 100) -> str:
    """Lines of at most ``width`` columns where the tables allow it."""
    lines = [*textwrap.wrap(document.title, width), "═" * width]
    for part in document.parts:
        bar = "┃ " if part.apart else "  "
        lines += ["", ("┃ " if part.apart else "") + part.heading]
        lines += [(bar + line).rstrip() for line in _text_part(part, width - len(bar))]
    return "\n".join(lines) + "\n"


def _text_part(part: Part, width: int) -> Iterator[str]:
    for paragraph in part.paragraphs:
        yield from textwrap.wrap(paragraph, width)
    for grid in part.grids:
        yield ""
        yield from textwrap.wrap(grid.caption, width)
        yield from _text_grid(grid, width)
    for bullet in part.bullets:
        yield from textwrap.wrap(bullet, width, initial_indent="• ", subsequent_indent="  ")


def _text_grid(grid: Grid, width: int) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(grid.columns, *grid.rows, strict=True)]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    yield from _text_row(grid.columns, widths, grid.right)
    yield _GAP.join("─" * each for each in widths)
    for row in grid.rows:
        yield from _text_row(row, widths, grid.right)


def _text_row(row: tuple[str, ...], widths: list[int], right: frozenset[int]) -> Iterator[str]:
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
    for pieces in zip_longest(*wrapped, fillvalue=""):
        aligned = [
            piece.rjust(width) if column in right else piece.ljust(width)
            for column, (piece, width) in enumerate(zip(pieces, widths, strict=True))
        ]
        yield _GAP.join(aligned).rstrip()


def to_markdown(document: Document) -> str:
    """GitHub's and MyST's Markdown; parts that are apart are block quotes."""
    blocks = [f"**{_md(document.title)}**"]
    for part in document.parts:
        inner = [f"**{_md(part.heading)}**", *map(_md, part.paragraphs)]
        for grid in part.grids:
            inner += [f"*{_md(grid.caption)}*", _md_grid(grid)]
        inner += ["\n".join(f"* {_md(bullet)}" for bullet in part.bullets)] if part.bullets else []
        text = "\n\n".join(inner)
        blocks.append(textwrap.indent(text, "> ", lambda _: True) if part.apart else text)
    return "\n\n".join(re.sub(r"(?m)^> $", ">", block) for block in blocks) + "\n"


def _md_grid(grid: Grid) -> str:
    rule = ["---:" if column in grid.right else ":---" for column in range(len(grid.columns))]
    rows = [[_md(cell) for cell in row] for row in (grid.columns, *grid.rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def _md(text: str) -> str:
    """Characters that Markdown would take for markup, escaped."""
    return re.sub(r"([\\`*|$<\[\]])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)


def to_html(document: Document) -> str:
    """A ``section`` with one captioned ``table`` each; column and row headers are told to a screen reader."""
    lines = [f'<section class="mcn-table" aria-label="{escape(document.title)}">']
    lines.append(f"<p><strong>{escape(document.title)}</strong></p>")
    for part in document.parts:
        mark = ' class="mcn-measured" style="border-left: 4px solid; padding-left: 1em"' if part.apart else ""
        lines.append(f"<div{mark}>\n<p><strong>{escape(part.heading)}</strong></p>")
        lines += [f"<p>{escape(paragraph)}</p>" for paragraph in part.paragraphs]
        for grid in part.grids:
            lines += _html_grid(grid)
        if part.bullets:
            lines += ["<ul>", *(f"<li>{escape(bullet)}</li>" for bullet in part.bullets), "</ul>"]
        lines.append("</div>")
    return "\n".join([*lines, "</section>"]) + "\n"


def _html_grid(grid: Grid) -> Iterator[str]:
    caption = f'<caption style="caption-side: top">{escape(grid.caption)}</caption>'
    yield f'<table class="table">\n{caption}\n<thead>'
    yield _html_row([("th", ' scope="col"', cell) for cell in grid.columns], grid.right)
    yield "</thead>\n<tbody>"
    for row in grid.rows:
        cells = [("td", "", cell) for cell in row]
        yield _html_row([("th", ' scope="row"', row[0]), *cells[1:]], grid.right)
    yield "</tbody>\n</table>"


def _html_row(cells: list[tuple[str, str, str]], right: frozenset[int]) -> str:
    shown = []
    for column, (tag, scope, cell) in enumerate(cells):
        style = f' style="text-align: {"right" if column in right else "left"}"'
        text = '<span role="img" aria-label="yes">✓</span>' if cell == "✓" else escape(cell)
        shown.append(f"<{tag}{scope}{style}>{text}</{tag}>")
    return "<tr>" + "".join(shown) + "</tr>"


# What LaTeX would take for a command, and what its fonts lack as a character.
_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "✓": r"$\checkmark$", "α": r"$\alpha$", "τ": r"$\tau$", "θ": r"$\theta$", "×": r"$\times$",
    "±": r"$\pm$", "·": r"$\cdot$", "−": r"$-$", "→": r"$\rightarrow$", "–": "--", "…": r"\ldots{}",
}  # fmt: skip


def to_latex(document: Document) -> str:
    """One ``table`` environment each, lists behind; needs the package amssymb for the ticks."""
    lines = [f"% {document.title}", r"% needs \usepackage{amssymb}", ""]
    for part in document.parts:
        lines.append(rf"\paragraph{{{_latex(part.heading)}}}")
        lines += [_latex(paragraph) + "\n" for paragraph in part.paragraphs]
        for grid in part.grids:
            lines += _latex_grid(grid, f"{document.title}. {grid.caption}.")
        if part.bullets:
            items = [rf"  \item {_latex(bullet)}" for bullet in part.bullets]
            lines += [r"\begin{itemize}", *items, r"\end{itemize}"]
        lines.append("")
    return "\n".join(lines)


def _latex_grid(grid: Grid, caption: str) -> Iterator[str]:
    kinds = "".join("r" if column in grid.right else "l" for column in range(len(grid.columns)))
    yield r"\begin{table}[htbp]" + "\n" + r"  \centering"
    yield rf"  \caption{{{_latex(caption)}}}"
    yield rf"  \begin{{tabular}}{{{kinds}}}" + "\n" + r"    \hline"
    for number, row in enumerate((grid.columns, *grid.rows)):
        yield "    " + " & ".join(map(_latex, row)) + r" \\" + (r" \hline" if number == 0 else "")
    yield r"    \hline" + "\n" + r"  \end{tabular}" + "\n" + r"\end{table}"


def _latex(text: str) -> str:
    quoted = re.sub(r'"([^"]*)"', r"``\1''", text)
    return "".join(_LATEX.get(character, character) for character in quoted)


FORMATS: dict[str, Callable[[Document], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "html": to_html,
    "latex": to_latex,
}
