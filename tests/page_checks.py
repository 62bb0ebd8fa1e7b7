"""What a reader's browser finds wrong with a page: one list of sentences, empty for a good page.

The page is opened from disk in headless Chromium, driven by Playwright, which is imported only where a
browser is wanted. Folded parts are opened first, so that what is looked at is all that can be seen.
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1400, "height": 900}
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
NO_CHROMIUM = (
    "no Chromium: install your system's (Debian: apt-get install chromium), or run "
    "`.venv/bin/playwright install chromium`, or name one: CHROMIUM=/path/to/chromium"
)

#: Unfolds everything, waits for formulas and pictures; true when the page is as a reader ends up seeing it.
SETTLE = r"""async () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  document.querySelectorAll(".toggle-hidden").forEach(e => e.classList.remove("toggle-hidden"));
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  const loaded = i => { i.loading = "eager"; return i.decode().catch(() => 0); };
  await Promise.all([...document.images].map(loaded));
  await document.fonts.ready;
}"""

#: Sentences about one page at the width it has.
LOOK = r"""() => {
  const found = [], say = (what, where) => found.push(what + ": " + String(where).trim().slice(0, 120));
  const shown = e => e.checkVisibility() && e.getBoundingClientRect().width > 1
    && e.getBoundingClientRect().height > 1;
  const source = e => (e.getAttribute("src") || "").slice(-60);
  const name = e => `${e.tagName.toLowerCase()}${e.id && "#" + e.id} ${source(e)}`;

  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) say("missing image", name(image));
    if (!(image.getAttribute("alt") || "").trim()) say("no alternative text", name(image));
    if (/\.(png|svg|jpe?g)$/.test(image.alt)) say("the alternative text is a file's name", image.alt);
  }
  for (const figure of document.querySelectorAll("figure"))
    if (!figure.querySelector("img, svg, video, canvas, table, pre"))
      say("figure without a picture", name(figure));

  // A widget of a stored notebook is a script that shows nothing without a kernel: a picture must be there.
  for (const script of document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']"))
    if (![...(script.closest(".cell_output") || script.parentElement).querySelectorAll("img, canvas, svg")]
      .some(shown)) say("blank widget", script.textContent);
  for (const output of document.querySelectorAll(".cell_output"))
    if (!shown(output)) say("blank output", output.textContent);
  for (const player of document.querySelectorAll(".animation img"))
    if (!shown(player)) say("blank animation", name(player));

  const skip = "code, pre, script, style, noscript, textarea, mjx-container, .highlight, .sig";
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const raw = /\\[a-zA-Z]{2,}|\\[()[\]]|\$[^\s$][^$]*\$|\{(eq|numref|cite|ref|py:\w+)\}|\[missing /;
  while (texts.nextNode()) {
    const node = texts.currentNode;
    if (raw.test(node.data) && !node.parentElement.closest(skip)) say("raw markup", node.data);
  }
  for (const error of document.querySelectorAll("mjx-merror, .mjx-merror"))
    say("formula that could not be set", error.textContent);
  for (const waiting of document.querySelectorAll(".math"))
    if (!waiting.querySelector("mjx-container")) say("formula not set", waiting.textContent);

  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width)
    say(`page wider than the screen of ${width}`, document.documentElement.scrollWidth);
  const held = e => { // within something that scrolls sideways, or is not on the page
    for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
      if (/auto|scroll/.test(getComputedStyle(p).overflowX)) return true;
    return false;
  };
  const out = e => shown(e) && e.getBoundingClientRect().right > width + 1;
  for (const part of document.querySelectorAll("article *"))
    if (out(part) && !out(part.parentElement) && !part.closest("mjx-assistive-mml") && !held(part))
      say("runs out of the page", name(part) + part.textContent);
  return found;
}"""


def chromium():
    """Path of a Chromium: ``$CHROMIUM``, one of the system's, or one that Playwright downloaded; or None."""
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        if name and (found := shutil.which(name)):
            return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        own = driver.chromium.executable_path
    return own if Path(own).is_file() else None


@contextmanager
def browser(path):
    """A headless Chromium for the length of a ``with``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, timeout=120_000)
        yield started
        started.close()


def faults(started, path):
    """All that is wrong with the page at ``path`` on a desk and on a phone, each thing once."""
    context = started.new_context(viewport=DESK, offline=True)
    page, found = context.new_page(), []
    page.on("console", lambda said: said.type == "error" and found.append(f"console: {said.text}"))
    page.on("pageerror", lambda error: found.append(f"script: {error}"))
    page.on("requestfailed", lambda asked: found.append(f"did not load: {asked.url[:160]}"))
    page.on("request", lambda asked: foreign(asked.url) and found.append(f"another host: {asked.url[:160]}"))
    page.set_default_timeout(120_000)  # a busy machine is no fault of the page
    page.goto(path.as_uri())
    if 'http-equiv="Refresh"' in path.read_text(encoding="utf-8"):
        page.wait_for_url(lambda url: url != path.as_uri())
    for size in (DESK, PHONE):
        page.set_viewport_size(size)
        page.evaluate(SETTLE)
        found += page.evaluate(LOOK)
    context.close()
    return list(dict.fromkeys(found))


def foreign(url):
    """Whether an address is not on this disk or in the page itself."""
    return url.split(":")[0] not in {"file", "data", "blob", "about"}
