"""The committed chapters: outputs that belong to the code, nothing private in them, links that hold."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
SOURCES = sorted((ROOT / "mcn").rglob("*.py"))


def load_runner():
    spec = importlib.util.spec_from_file_location("run_notebooks", BOOK / "run_notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = load_runner()


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def text_of(output):
    return output.get("text", "") + output.get("data", {}).get("text/plain", "")


def pages():
    """Markdown of every page: (name, text)."""
    for path in sorted(BOOK.rglob("*.md")):
        yield path.name, path.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        yield path.name, "\n\n".join(c.source for c in cells if c.cell_type == "markdown")


def resolves(target):
    """Whether a dotted name is a module of mcn, or something in one."""
    parts = target.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            fields = getattr(found, "__dataclass_fields__", {})
            if not hasattr(found, name) and name not in fields:
                return False
            found = getattr(found, name, fields.get(name))
        return True
    return False


def test_there_is_a_notebook_for_each_step_of_the_method():
    names = {path.stem for path in NOTEBOOKS}
    assert {"residual_views", "contrastive_loss", "fcm_pairing", "two_stage_update"} <= names


def test_outputs_belong_to_the_code_and_the_library_as_they_are(notebook):
    assert runner.is_fresh(notebook), "stale: run `python book/run_notebooks.py --stale`"
    assert notebook.metadata.mcn_fresh.profile in ("laptop", "paper")


def test_every_cell_ran_in_order_without_failing(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]


def test_outputs_hold_no_warnings_and_no_private_paths(notebook):
    assert not [o for o in outputs(notebook) if o.get("name") == "stderr"]
    private = re.compile(r"(?:^|[\s'\"(=])(/(?:home|root|Users|tmp|work|mnt|opt|usr)\b|[A-Za-z]:\\)")
    for output in outputs(notebook):
        assert not private.search(text_of(output)), text_of(output)


def test_every_chapter_shows_pictures_and_checks_itself(notebook):
    pictures = [o for o in outputs(notebook) if "image/png" in o.get("data", {})]
    assert pictures
    figures = [cell.metadata.get("mystnb", {}).get("figure", {}) for cell in code_cells(notebook)]
    assert len([figure for figure in figures if figure.get("caption")]) == len(pictures)
    headings = re.findall(r"^## (.+)$", "\n".join(c.source for c in notebook.cells), flags=re.M)
    assert "Check yourself" in headings
    assert headings[-1] == "What we did not show, and where it breaks"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_files_stay_small(path):
    assert path.stat().st_size < 2_000_000


def test_every_role_on_every_page_names_something_that_exists():
    roles = [
        (page, target)
        for page, text in pages()
        for target in re.findall(r"\{py:(?:func|class|mod|meth|attr|data)\}`~?([\w.]+)`", text)
    ]
    assert len(roles) > 10
    assert not [role for role in roles if not resolves(role[1])]


def test_every_role_in_a_docstring_names_something_that_exists():
    role = re.compile(r":(?:func|class|mod|meth|attr|data):`~?([\w.]+)`")
    broken = []
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [f"{module}.{node.name}" for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        for node in (node for node in ast.walk(tree) if isinstance(node, documented)):
            for target in role.findall(ast.get_docstring(node) or ""):
                tries = [target, *(f"{scope}.{target}" for scope in [module, "mcn.errors", *classes])]
                if not any(map(resolves, tries)):
                    broken.append((path.name, target))
    assert not broken


def test_every_equation_that_is_cited_is_labelled_once():
    text = "\n".join(text for _, text in pages())
    labels = re.findall(r"^\$\$ \(([\w-]+)\)$", text, flags=re.M)
    assert len(labels) == len(set(labels))
    numbered = ["eq-residual", "eq-contrast", "eq-similarity", "eq-cls", "eq-meta", "eq-inner", "eq-outer"]
    assert set(numbered) <= set(labels)
    cited = {label for path in SOURCES for label in re.findall(r":eq:`([\w-]+)`", path.read_text())}
    cited |= set(re.findall(r"\{eq\}`([\w-]+)`", text))
    assert cited <= set(labels)


def test_the_stamp_follows_code_and_imported_sources_but_not_text_or_outputs(tmp_path, monkeypatch):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("from mcn.losses import meta_loss")])
    before = runner.stamp_of(notebook)
    notebook.cells.append(nbformat.v4.new_markdown_cell("text"))
    notebook.cells[0].execution_count = 7
    assert runner.stamp_of(notebook) == before

    package = tmp_path / "mcn"
    package.mkdir()
    for name, source in {
        "__init__": "",
        "losses": "def f():\n    import mcn.deep\n",
        "deep": "x = 1\n",
    }.items():
        (package / f"{name}.py").write_text(source)
    monkeypatch.setattr(runner, "PACKAGE", package)
    copied = runner.stamp_of(notebook)
    (package / "other.py").write_text("y = 1\n")
    assert runner.stamp_of(notebook) == copied
    (package / "deep.py").write_text('"""What\nit is."""\nx = 1\n')
    assert runner.stamp_of(notebook) == copied  # said of it
    (package / "deep.py").write_text("x = 2\n")
    assert runner.stamp_of(notebook) != copied


@pytest.mark.parametrize(
    ("code", "stamps_to_be"),
    [
        ("from mcn.results import own_records", 2),
        ("from mcn.tables import render\nprint(render(5, 'html'))", 2),
        ('folder = Path("results")', 2),
        ("curve = json.loads(open('results/deeper/b.json').read())", 3),
        ("results = retrieve(test, train)", 1),
        ("from mcn.losses import meta_loss", 1),
    ],
)
def test_the_stamp_follows_the_records_that_a_chapter_reads(code, stamps_to_be, tmp_path, monkeypatch):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    (tmp_path / "a.json").write_text("1")
    stamps = [runner.stamp_of(notebook)]
    (tmp_path / "a.json").write_text("2")
    stamps.append(runner.stamp_of(notebook))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "b.json").write_text("1")
    stamps.append(runner.stamp_of(notebook))
    (tmp_path / "README.md").write_text("not a record")
    stamps.append(runner.stamp_of(notebook))
    assert len(set(stamps)) == stamps_to_be


def test_the_page_of_timings_is_what_the_notebooks_say():
    page = (BOOK / "timings.md").read_text(encoding="utf-8")
    assert page == runner.timings(), "run `python book/run_notebooks.py --timings`"


def test_a_row_of_timings_is_a_notebooks_metadata(tmp_path):
    took = {"hash": "0", "profile": "laptop", "seconds": 81, "device": "a GPU", "cores": 3}
    for name, metadata in {"transfer": {"mcn_fresh": took}, "residual_views": {}, "zebra": {}}.items():
        cells = [nbformat.v4.new_markdown_cell(f"# About {name}\n\nText.")]
        nbformat.write(nbformat.v4.new_notebook(metadata=metadata, cells=cells), tmp_path / f"{name}.ipynb")
    rows = runner.timings(tmp_path).splitlines()[-3:]
    assert [row.split("(")[1].split(")")[0] for row in rows] == [  # as in _toc.yml, then the others
        "residual_views.ipynb", "transfer.ipynb", "zebra.ipynb",
    ]  # fmt: skip
    assert rows[1] == "| [About transfer](transfer.ipynb) | laptop | 81 | a GPU | 3 |"
    assert "not recorded" in rows[0]


def test_every_page_is_in_the_table_of_contents():
    toc = (ROOT / "_toc.yml").read_text()
    files = [p.relative_to(ROOT).with_suffix("").as_posix() for p in [*BOOK.rglob("*.md"), *NOTEBOOKS]]
    assert not [name for name in files if name not in toc]


def test_every_public_module_is_in_the_api_reference():
    shown = set(re.findall(r"automodule:: ([\w.]+)", "\n".join(text for _, text in pages())))
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES}
    assert shown == {name for name in names if not name.rsplit(".", 1)[-1].startswith("_")}
