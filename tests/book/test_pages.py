"""What the book's own extension does to a page."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
EXTENSION = Path(__file__).parents[2] / "book/_ext/book_pages.py"
spec = importlib.util.spec_from_file_location("book_pages", EXTENSION)
book_pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(book_pages)
HELD = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("from 79.2 % on", f"from 79.2{HELD}% on"),
        ("at τ = .07 and α₁ = .5", f"at τ{HELD}={HELD}.07 and α₁{HELD}={HELD}.5"),
        ("a = b, 100 per cent", "a = b, 100 per cent"),
    ],
)
def test_numbers_stay_with_their_sign_and_their_name(text: str, held: str):
    assert book_pages.held_together(text) == held
