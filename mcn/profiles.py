"""How large the book's notebooks compute: the one place that reads the environment variable MCN_PROFILE.

``smoke`` checks that every cell runs, ``laptop`` is what the committed outputs were made with, and
``paper`` is for a GPU. A profile changes sizes only: no cell is skipped.
"""

import os
from typing import TypeVar

from mcn.errors import MCNError

PROFILES = ("smoke", "laptop", "paper")

T = TypeVar("T")


def profile() -> str:
    """The profile in force: ``smoke``, ``laptop`` (where nothing is set) or ``paper``.

    Raises :class:`mcn.errors.MCNError` for any other value of MCN_PROFILE.
    """
    name = os.environ.get("MCN_PROFILE") or "laptop"
    if name not in PROFILES:
        raise MCNError(f"MCN_PROFILE is {name!r}: give one of {', '.join(PROFILES)}")
    return name


def size_for(*, smoke: T, laptop: T, paper: T) -> T:
    """The value that belongs to the profile in force.

    >>> size_for(smoke=1, laptop=20, paper=500) in (1, 20, 500)
    True
    """
    return {"smoke": smoke, "laptop": laptop, "paper": paper}[profile()]
