"""What a command of ``mcn`` is: a function, a line of help, settings and arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its function of settings and arguments, its line of help, its settings and arguments."""

    run: Callable[[Any, Any], None]
    help: str
    config: type | None = None
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = ()


def argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """One argument of a command, as ``add_argument`` takes it."""
    return names, options
