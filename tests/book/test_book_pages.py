"""What the book's own extension does to a page."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import yaml

nodes = pytest.importorskip("docutils.nodes")
pytest.importorskip("sphinx")
PATH = Path(__file__).parents[2] / "book" / "_ext" / "book_pages.py"
spec = importlib.util.spec_from_file_location("book_pages", PATH)
book_pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(book_pages)


def kept(*parts):
    """A paragraph of these parts after the extension: spans in angle brackets."""
    page = nodes.paragraph("", "", *parts)
    book_pages.keep_together(None, page, "page")
    shown = (
        f"<{c.astext()}>" if "together" in c.get("classes", ()) else c.astext() for c in map(copied, page)
    )
    return "".join(shown)


def copied(node):
    return nodes.inline("", "", node) if isinstance(node, nodes.Text) else node


def code(text):
    return nodes.literal("", text)


def test_punctuation_stays_with_code_and_formulas():
    assert kept(nodes.Text("see "), code("mcn"), nodes.Text(". Then")) == "see <mcn.> Then"
    assert kept(nodes.Text("by ("), nodes.math("", "s - 1"), nodes.Text("); the")) == "by <(s - 1);> the"
    assert kept(code("a"), nodes.Text(", "), code("b")) == "<a,> b"


def test_code_in_a_link_is_kept_too_and_long_code_may_break():
    link = nodes.reference("", "", code("mcn.meta"))
    assert kept(nodes.Text("("), link, nodes.Text(")")) == "<(mcn.meta)>"
    assert kept(code("a " * 20), nodes.Text(".")) == "a " * 20 + "."


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("from 79.2 % on", "from 79.2\u00a0% on"),
        ("at τ = .07 and α₁ = .5", "at τ\u00a0=\u00a0.07 and α₁\u00a0=\u00a0.5"),
        ("a = b, 100 per cent", "a = b, 100 per cent"),
    ],
)
def test_numbers_stay_with_their_sign_and_their_name_but_code_is_left_as_it_is(text, held):
    assert kept(nodes.Text(text), code("5 % 2")) == held + "5 % 2"


@pytest.mark.parametrize("address", ["https://github.com/owner/name", ""])
def test_a_repository_address_gives_buttons_to_it_and_to_colab_and_binder(address, tmp_path):
    pytest.importorskip("sphinx_book_theme")
    app = pytest.importorskip("sphinx.application")
    (tmp_path / "book").mkdir()
    (tmp_path / "index.md").write_text("# A\n\n```{toctree}\nbook/outcome\n```\n")
    shutil.copy(PATH.parents[1] / "outcome.ipynb", tmp_path / "book" / "outcome.ipynb")
    where = {"repository_url": address, "repository_branch": "main"} if address else {}
    settings = {
        "extensions": ["myst_nb", "sphinx.ext.autodoc", "book_pages"],
        "html_theme": "sphinx_book_theme",
        "html_theme_options": where,
        "nb_execution_mode": "off",
        "suppress_warnings": ["*"],
    }
    folders = (tmp_path, None, tmp_path / "html", tmp_path / "trees")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PATH.parent))
        app.Sphinx(*folders, "html", confoverrides=settings, status=None, warning=None).build()
    page = (tmp_path / "html/book/outcome.html").read_text()
    for link in (
        "https://github.com/owner/name",
        "https://colab.research.google.com/github/owner/name/blob/main/book/outcome.ipynb",
        "https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/book/outcome.ipynb",
    ):
        assert (f'href="{link}"' in page) == bool(address), link


def test_the_book_never_takes_jupyter_books_own_address():
    config = yaml.safe_load((PATH.parents[2] / "_config.yml").read_text())
    assert isinstance(config["repository"]["url"], str)
