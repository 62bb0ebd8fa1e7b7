"""What no setting of Jupyter Book mends in the pages it writes.

* It lists each script without a file twice, which is an error in the browser, and the scripts of live
  kernels, which this book does not have and which point to another host. They are left out.
* NumPy's ``ArrayLike`` is shown as the nine types it stands for. It gets its name back.
* A default that is made anew for each object, or is a function, is shown as Python prints it, which
  Sphinx cannot read: the whole signature then stands unformatted. It becomes ``...``.
* Two papers by the same people in one year are cited alike. Papers are labelled with names and year, and
  such years get a letter, 2020a and 2020b, in the text and in the bibliography.
* Browsers break a line between code, or a formula, and the bracket or full stop beside it, between a number
  and its per cent sign, and inside "τ = .07". They are kept together.
* Where ``_config.yml`` gives the repository's address, pages have a button to it, and chapters buttons that
  open them in Colab and Binder. Without an address such buttons would lead nowhere, and there are none.
"""

import re
from typing import Any

from docutils import nodes
from numpy.typing import ArrayLike
from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.alpha import Style
from pybtex.style.labels.alpha import LabelStyle
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

_SHORT = 34  #: letters of code that fit a line of a phone; longer code may break within
_EXPANDED = {
    stringify_annotation(ArrayLike, mode): "ArrayLike" for mode in ("smart", "fully-qualified-except-typing")
}


class AuthorYearLabels(LabelStyle):
    """Tao et al., 2020a: names and year; the letter comes from the base class."""

    def format_label(self, entry: Entry) -> str:
        """The label of one paper, without a letter."""
        names = [str(Text.from_latex(" ".join(each.last_names))) for each in entry.persons["author"]]
        who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        return f"{who}, {entry.fields['year']}"


class AuthorYear(Style):
    """The bibliography: ``bibtex_default_style: author_year``."""

    default_label_style = AuthorYearLabels


register_plugin("pybtex.style.formatting", "author_year", AuthorYear)


def one_of_each_script(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Keep the first of equal scripts, and none for live kernels."""
    kept: dict[Any, Any] = {}
    for script in context["script_files"]:
        attributes = getattr(script, "attributes", {})
        body = attributes.get("body", "")
        if "THEBE_JS_URL" not in body and "sphinx-thebe" not in str(getattr(script, "filename", script)):
            kept.setdefault(body or str(getattr(script, "filename", script)), script)
    context["script_files"] = list(kept.values())


def short_types(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """A signature with ``ArrayLike`` where autodoc wrote out what that is, and ``...`` for made defaults."""
    for long, short in _EXPANDED.items():
        signature = signature and signature.replace(long, short)
        returned = returned and returned.replace(long, short)
    return signature and re.sub(r"= ?<(?:[^<>]|<\w+>)*>", "= ...", signature), returned


_HELD = re.compile(r"(?<=\d) (?=%)|(?<=[A-Za-zα-ω₀-₉]) (?== [\d.−])|(?<==) (?=[\d.−])")


def held_together(text: str) -> str:
    """The text with spaces that do not break in "11 %" and in "τ = .07"."""
    return _HELD.sub("\N{NO-BREAK SPACE}", text)


def keep_together(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put code and formulas in a span with what opens before and closes after them; hold numbers."""
    for text in list(doctree.findall(nodes.Text)):
        fixed = isinstance(text.parent, nodes.literal | nodes.math | nodes.FixedTextElement | nodes.raw)
        held = held_together(str(text))
        if not fixed and held != text:
            text.parent.replace(text, nodes.Text(held))
    for piece in list(doctree.findall(lambda node: isinstance(node, nodes.literal | nodes.math))):
        while isinstance(piece.parent, nodes.reference | nodes.inline) and len(piece.parent) == 1:
            piece = piece.parent
        if len(piece.astext()) <= _SHORT and not isinstance(piece.parent, addnodes.desc_signature):
            _tie(piece, piece.parent)


def _tie(piece: Any, beside: Any) -> None:
    """Move a node into a span that has the opening brackets before it and the punctuation after it."""
    first, last = beside.index(piece), beside.index(piece) + 1
    before = after = ""
    if first and isinstance(beside[first - 1], nodes.Text):
        first, before = first - 1, str(beside[first - 1])
    if last < len(beside) and isinstance(beside[last], nodes.Text):
        last, after = last + 1, str(beside[last])
    start, opened = re.fullmatch(r"(.*?)([(\[“‘]*)", before, re.DOTALL).groups()  # type: ignore[union-attr]
    closed, end = re.fullmatch(r"([.,;:!?)\]”’]*)(.*)", after, re.DOTALL).groups()  # type: ignore[union-attr]
    if opened or closed:
        span = nodes.inline("", "", nodes.Text(opened), piece, nodes.Text(closed), classes=["together"])
        beside[first:last] = [nodes.Text(start), span, nodes.Text(end)]


def buttons(app: Sphinx, config: Any) -> None:
    """Buttons for the repository, Colab and Binder, where the repository's address is known."""
    if config.html_theme_options.get("repository_url"):
        config.html_theme_options |= {
            "use_repository_button": True,
            "launch_buttons": {
                "notebook_interface": "jupyterlab",
                "binderhub_url": "https://mybinder.org",
                "colab_url": "https://colab.research.google.com",
            },
        }


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", buttons)
    app.connect("html-page-context", one_of_each_script, priority=900)
    app.connect("autodoc-process-signature", short_types)
    app.connect("doctree-resolved", keep_together, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
