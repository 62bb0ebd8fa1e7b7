"""Every page of the built book in headless Chromium, from disk, without a network: ``make browser-test``."""

import base64
from pathlib import Path

import page_checks
import pytest

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "_build" / "html"
PAGES = [path for path in sorted(BUILT.rglob("*.html")) if "_static" not in path.relative_to(BUILT).parts]

DOT = "data:image/png;base64," + base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
        "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
    )
).decode("ascii")
GOOD = f"""<article><p>It costs $5, and <code>$x$ \\frac</code> is code.</p>
<figure><img src="{DOT}" alt="a dot" width="9" height="9"></figure>
<div style="overflow-x: auto"><div style="width: 900px">wide, in a part that scrolls</div></div>
<details><summary>folded</summary><img src="{DOT}" alt="a dot"></details></article>"""
WIDGET = '<script type="application/vnd.jupyter.widget-view+json">{"model_id": "1"}</script>'
BROKEN = {
    "raw markup": "<p>So $\\theta$ moves.</p>",
    "raw markup: \\frac": "<p>\\frac{1}{2}</p>",
    "raw markup: \\(": "<p>\\(x\\)</p>",
    "raw markup: See {eq}": "<p>See {eq}`eq-cls`.</p>",
    "missing image": '<img src="gone.png" alt="gone">',
    "did not load": '<img src="gone.png" alt="gone">',
    "no alternative text: img": f'<img src="{DOT}">',
    "no alternative text: img#blank": f'<img id="blank" src="{DOT}" alt=" ">',
    "the alternative text is a file's name": f'<img src="{DOT}" alt="../_images/a.png">',
    "figure without a picture": "<figure><figcaption>Nothing.</figcaption></figure>",
    "console": "<script>console.error('no')</script>",
    "script: no": "<script>throw new Error('no')</script>",
    "blank widget": f'<div class="cell_output">text{WIDGET}</div>',
    "blank output": '<div class="cell_output"></div>',
    "blank animation": f'<div class="animation"><img src="{DOT}" alt="a dot" style="display: none"></div>',
    "formula that could not be set": "<mjx-merror>Undefined control sequence</mjx-merror>",
    "formula not set": '<span class="math">x</span>',
    "page wider than the screen of 390": '<div style="width: 900px">wide</div>',
    "runs out of the page": '<div style="overflow: hidden"><p style="width: 900px">cut off</p></div>',
    "runs out of the page: img": f'<details><img src="{DOT}" alt="a dot" width="900"></details>',
    "another host": '<link rel="stylesheet" href="https://example.org/font.css">',
}


@pytest.fixture(scope="module")
def chromium():
    try:
        path = page_checks.chromium()
        if path is None:
            pytest.fail(page_checks.NO_CHROMIUM, pytrace=False)
        with page_checks.browser(path) as started:
            yield started
    except ImportError:
        pytest.fail("no Playwright: pip install --constraint constraints.txt '.[browser]'", pytrace=False)


def test_the_book_is_built():
    assert PAGES, f"no page in {BUILT}: run `make book`"
    names = {path.relative_to(BUILT).with_suffix("").as_posix() for path in PAGES}
    wanted = {"index", "search", "genindex"}
    for source in [*(ROOT / "book").rglob("*.md"), *(ROOT / "book").glob("*.ipynb")]:
        wanted.add(source.relative_to(ROOT).with_suffix("").as_posix())
    assert wanted <= names


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(BUILT).as_posix())
def test_a_reader_finds_nothing_wrong_with(path, chromium):
    assert page_checks.faults(chromium, path) == []


def page_of(folder, body):
    path = folder / "page.html"
    path.write_text(f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><body>{body}', encoding="utf-8")
    return path


def test_nothing_is_wrong_with_a_good_page(tmp_path, chromium):
    assert page_checks.faults(chromium, page_of(tmp_path, GOOD)) == []


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_broken_is_found(fault, tmp_path, chromium):
    body = GOOD.replace("</article>", BROKEN[fault] + "</article>")
    found = page_checks.faults(chromium, page_of(tmp_path, body))
    assert any(sentence.startswith(fault) for sentence in found), found
