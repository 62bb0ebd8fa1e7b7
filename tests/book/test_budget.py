"""Every chapter has its whole form: counts of words, cells, figures, drawings, equations, exercises."""

import re
import statistics
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).resolve().parents[2] / "book"
#: Chapters that are not in their full form yet. This set only ever shrinks.
NOT_YET: set[str] = set()

#: Notebooks that report and do not teach: they have no budget.
REPORTS = {"outcome"}

CHAPTERS = {path.stem: path for path in sorted(BOOK.glob("*.ipynb")) if path.stem not in REPORTS}
DRAWINGS = sorted((BOOK / "drawings").glob("*.svg"))
FIGURE = re.compile(r"```\{figure\} (\S+)\n((?::[^\n]*\n)*)\n?([^`]*(?:`[^`]+`[^`]*)*)\n```")
HEADER = re.compile(r"^\| *symbol *\| *name in the code *\| *shape *\|$", flags=re.M)


class Chapter:
    """What there is to count in a notebook."""

    def __init__(self, path):
        cells = nbformat.read(path, as_version=4).cells
        self.markdown = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        self.code = [cell for cell in cells if cell.cell_type == "code"]
        self.cells = cells
        self.drawn = FIGURE.findall(self.markdown)
        self.shown = [cell.metadata.get("mystnb", {}).get("figure") for cell in self.code]
        self.shown = [figure for figure in self.shown if figure]
        self.equations = re.findall(r"^\$\$ \(([\w-]+)\)$", self.markdown, flags=re.M)
        self.tags = [cell.metadata.get("tags", []) for cell in self.code]

    def words(self):
        """Words that are read, captions too: no formulas, tables, options of directives or addresses."""
        text = "\n\n".join([self.markdown, *(figure["caption"] for figure in self.shown)])
        text = re.sub(r"^\$\$.*?^\$\$.*?$", " ", text, flags=re.M | re.S)
        text = re.sub(r"^(\|.*|:{3,}.*|:[\w-]+:.*|```.*)$", " ", text, flags=re.M)
        text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"\$[^$]*\$", " ", text))
        return len(re.findall(r"\w[\w'’-]*", text))

    def rows(self):
        """Rows of tables that say what a symbol is called in the code."""
        lines = self.markdown.splitlines()
        found = []
        for start in (i for i, line in enumerate(lines) if HEADER.match(line)):
            for line in lines[start + 2 :]:
                if not line.startswith("|"):
                    break
                found.append(line)
        return found


@pytest.fixture(params=sorted(set(CHAPTERS) - NOT_YET))
def chapter(request):
    return Chapter(CHAPTERS[request.param])


def test_what_is_not_yet_in_full_form_exists():
    assert set(CHAPTERS) >= NOT_YET


def test_words(chapter):
    assert 1_800 <= chapter.words() <= 3_000


def test_code_cells_are_many_and_short(chapter):
    assert 15 <= len(chapter.code) <= 25
    assert statistics.median(len(cell.source.splitlines()) for cell in chapter.code) <= 12


def test_figures_are_numbered_and_have_captions_and_text_for_who_cannot_see_them(chapter):
    assert 6 <= len(chapter.drawn) + len(chapter.shown) <= 12
    assert len([path for path, _, _ in chapter.drawn if path.startswith("drawings/")]) >= 3
    for path, options, caption in chapter.drawn:
        assert (BOOK / path).is_file()
        assert ":name: fig-" in options
        assert ":alt: " in options
        assert not path.startswith("drawings/") or ":class: dark-light" in options  # see book.css
        assert caption.strip(), path
    assert all(figure["name"].startswith("fig-") and figure["caption"] for figure in chapter.shown)
    alts = [cell.metadata["mystnb"]["image"]["alt"] for cell in chapter.code if "mystnb" in cell.metadata
            and "figure" in cell.metadata["mystnb"]]  # fmt: skip
    assert len(alts) == len(chapter.shown)
    assert all(alts)


def test_every_equation_has_a_label_and_a_row_that_names_its_code(chapter):
    assert 4 <= len(chapter.equations) <= 10
    displayed = len(re.findall(r"^\$\$", chapter.markdown, flags=re.M))
    assert displayed == 2 * len(chapter.equations), "a displayed equation has no label"
    rows = chapter.rows()
    for label in chapter.equations:
        row = [line for line in rows if f"{{eq}}`{label}`" in line]
        assert row, f"no row says what {label} is called in the code"


def test_one_or_two_sliders_each_with_its_still(chapter):
    sliders = [cell for cell in chapter.code if re.search(r"^Slider\(", cell.source, flags=re.M)]
    assert 1 <= len(sliders) <= 2
    for cell in sliders:
        data = [output.get("data", {}) for output in cell.outputs]
        assert any({"image/png", "application/vnd.jupyter.widget-view+json"} <= set(d) for d in data)


def test_every_exercise_has_its_solution_folded_under_it(chapter):
    boxes = re.findall(r"\{admonition\} (Exercise|Solution) (\d)\b.*\n:class: (\w+)", chapter.markdown)
    numbers = range(1, len(boxes) // 2 + 1)
    wanted = [(kind, str(n), look) for n in numbers
              for kind, look in (("Exercise", "exercise"), ("Solution", "dropdown"))]  # fmt: skip
    assert boxes == wanted
    assert 3 <= len(numbers) <= 5
    assert any("self-check" in tags for tags in chapter.tags)
    hidden = [cell for cell in chapter.code if "hide-cell" in cell.metadata.get("tags", [])]
    assert any("check_" in cell.source for cell in hidden), "no solution runs the self-check"


def test_the_first_screen_says_what_for_what_it_needs_and_what_it_costs(chapter):
    first = chapter.cells[0].source
    for word in ("**What for.**", "**Needs.**", "**Runs.**", "CPU", "GPU", "memory"):
        assert word in first.split("\n\n## ")[0], word


def test_pages_refer_to_each_other(chapter):
    others = set(re.findall(r"\]\((\w+)\.ipynb\)", chapter.markdown))
    assert len(others) >= 2
    assert "protocol.md" in chapter.markdown
    assert "{numref}`fig-" in chapter.markdown
    assert chapter.code[-1].source.count("assert") >= 4  # check yourself


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)
def test_drawings_are_shapes_that_can_be_read_in_the_dark(path):
    text = path.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "<image" not in text
    assert "<title>" in text
    assert "<desc>" in text
    assert len(text) < 40_000


def test_every_drawing_is_used():
    pages = "".join(Chapter(path).markdown for path in CHAPTERS.values())
    pages += "".join(path.read_text(encoding="utf-8") for path in BOOK.rglob("*.md"))
    assert not [path.name for path in DRAWINGS if f"drawings/{path.name}" not in pages]
