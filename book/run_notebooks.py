"""Execute the chapters and store their outputs: what ``make notebooks`` runs.

    MCN_PROFILE=laptop python book/run_notebooks.py              all chapters
    python book/run_notebooks.py --stale                         only those whose code has changed
    python book/run_notebooks.py book/fcm_pairing.ipynb          these
    python book/run_notebooks.py --timings                       none: only the page of how long each took

Each notebook gets a stamp in its metadata (``mcn_fresh``): a hash over its code cells and over the
sources (docstrings apart) of all modules of ``mcn`` that it imports, directly or through others, over the
records in ``book/results`` where it reads them, and the profile. A test compares the stamp, so
committed outputs cannot silently fall behind code or measurements. Beside the stamp stand the seconds
that it took, and on what; ``book/timings.md`` is written from these, and a test holds the two in agreement.
"""

import argparse
import ast
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parent
PACKAGE = BOOK.parent / "mcn"
RESULTS = BOOK / "results"
COLUMNS = ("profile", "seconds", "device", "cores")
TIMINGS = """# How long each chapter took

> **What for.** What to expect when you run a chapter: how long the outputs that you see took to make, and on what.
>
> **Needs.** Nothing. `python book/run_notebooks.py --timings` writes this page from the notebooks' metadata.
>
> **Runs.** Nothing runs on this page.

Seconds are wall time from an empty kernel to the last cell, each chapter executed once, on a machine that may have been busy with other work: a quiet one is faster, and nothing here is a benchmark. *Cores* are those that the process might use; most chapters use one. The *device* is the GPU's name where there was one, else the kind of processor. Where nothing is recorded, the outputs are older than this page. No chapter says anything about a GPU unless its name stands here.

| chapter | profile | seconds | device | cores |
|---|---|---:|---|---:|
"""  # noqa: E501


def module_file(name: str) -> Path | None:
    """The source of a module of ``mcn``, or ``None`` for any other name."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imported(source: str) -> Iterator[str]:
    """Names of ``mcn`` modules that a source may import, at any depth of its code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "mcn":
                yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def sources_of(code: str) -> list[Path]:
    """Every file of ``mcn`` that running ``code`` may import. The version alone does not count."""
    seen: set[Path] = set()
    waiting = [code]
    while waiting:
        for name in imported(waiting.pop()):
            path = module_file(name)
            if path and path not in seen and path.name != "_version.py":
                seen.add(path)
                waiting.append(path.read_text(encoding="utf-8"))
    return sorted(seen)


def without_docs(source: str) -> bytes:
    """A source without its docstrings, which no output depends on."""
    lines = source.splitlines(keepends=True)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            said = node.body[0]
            lines[said.lineno - 1 : said.end_lineno] = [""] * (said.end_lineno - said.lineno + 1)
    return "".join(lines).encode()


def reads_records(code: str) -> bool:
    """Whether code reads the measured results: by these functions, or by a path into their folder."""
    return bool(re.search(r"\b(own_records|load_records|read_record|render)\b|\bresults[/\"']", code))


def records_of(code: str) -> list[Path]:
    """The measured results that code may read: those in their folder, and in folders in it that it names."""
    if not reads_records(code):
        return []
    named = [path for path in RESULTS.rglob("*.json") if re.search(rf"[/\"']{path.parent.name}[/\"']", code)]
    return sorted({*RESULTS.glob("*.json"), *named})


def stamp_of(notebook: Any) -> str:
    """The hash that outputs belong to."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    code = "\n".join(cells)
    digest = hashlib.sha256(json.dumps(cells).encode())
    for path in sources_of(code):
        name = path.relative_to(PACKAGE).as_posix().encode()
        digest.update(name + b"\0" + without_docs(path.read_text(encoding="utf-8")))
    for path in records_of(code):
        digest.update(path.relative_to(RESULTS).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def is_fresh(notebook: Any) -> bool:
    """Whether the outputs in a notebook belong to its code and to the library as it is."""
    return notebook.metadata.get("mcn_fresh", {}).get("hash") == stamp_of(notebook)


def machine() -> dict[str, Any]:
    """What notebooks run on here: the GPU's name or the processor's kind, and how many cores may be used."""
    from mcn._cores import usable_cores
    from mcn.run import choose_device, environment

    return {"device": environment(choose_device("auto"))["device"], "cores": usable_cores()}


def in_order(names: list[str], toc: str) -> list[str]:
    """Names of notebooks in the order in which the table of contents has them; others at the end."""
    found = [line.split("/")[-1].strip() for line in toc.splitlines() if "file:" in line]
    return sorted(names, key=lambda name: (found.index(name) if name in found else len(found), name))


def timings(folder: Path = BOOK) -> str:
    """The page of how long each chapter took and on what, from what :func:`execute` left in the notebooks."""
    names = [path.stem for path in folder.glob("*.ipynb")]
    rows = []
    for name in in_order(names, (BOOK.parent / "_toc.yml").read_text(encoding="utf-8")):
        notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        heading = notebook.cells[0].source.splitlines()[0].removeprefix("# ") if notebook.cells else name
        took = notebook.metadata.get("mcn_fresh", {})
        known = {"profile": "", "seconds": "not recorded", "device": "", "cores": ""} | took
        cells = [f"[{heading}]({name}.ipynb)", *(f"{known[key]}" for key in COLUMNS)]
        rows.append(f"| {' | '.join(cells)} |")
    return TIMINGS + "\n".join(rows) + "\n"


def execute(path: Path, profile: str) -> float:
    """Run one notebook from a clean kernel and store it; gives the seconds it took.

    Raises nbclient's error at the first cell that fails; the file is then left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    started = time.perf_counter()
    where = {"metadata": {"path": str(BOOK)}}
    NotebookClient(notebook, timeout=1200, coalesce_streams=True, resources=where).execute()
    seconds = time.perf_counter() - started
    took = {"seconds": round(seconds), **machine()}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "mcn_fresh": {"hash": stamp_of(notebook), "profile": profile, **took},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return seconds


def main() -> int:
    """Run what the command line names."""
    sys.path.insert(0, str(PACKAGE.parent))
    from mcn.profiles import profile

    parser = argparse.ArgumentParser(description="Execute the chapters and store their outputs.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks (default: all of the book)")
    parser.add_argument("--stale", action="store_true", help="pass over those that are fresh")
    parser.add_argument("--timings", action="store_true", help="run none, write book/timings.md")
    arguments = parser.parse_args()
    chosen = [] if arguments.timings else arguments.notebooks or sorted(BOOK.glob("*.ipynb"))
    for path in chosen:
        if arguments.stale and is_fresh(nbformat.read(path, as_version=4)):
            print(f"{path.name}: fresh")
        else:
            print(f"{path.name}: {execute(path, profile()):.0f} s at the {profile()} profile", flush=True)
    (BOOK / "timings.md").write_text(timings(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
