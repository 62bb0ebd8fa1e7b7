"""What a command of ``mcn`` is: a function, a line of help, settings and arguments."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from mcn.errors import MCNError
from mcn.settings import DataConfig

D = TypeVar("D", bound=DataConfig)


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its function of settings and arguments, its line of help, its settings and arguments.

    ``presets`` says whether presets have settings for it, ``block`` in which of their blocks, where that
    is not the one of its own name.
    """

    run: Callable[[Any, Any], None]
    help: str
    config: type | None = None
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = ()
    presets: bool = True
    block: str = ""


def argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """One argument of a command, as ``add_argument`` takes it."""
    return names, options


def of_folder(config: D, folder: str) -> D:
    """The settings of a command that is given its data as an argument.

    Raises :class:`~mcn.errors.MCNError` where ``--data`` names another folder: one of them would be ignored.
    """
    if config.data not in ("", folder):
        raise MCNError(f"{folder} and --data {config.data}: this command takes its folder without --data")
    return dataclasses.replace(config, data=folder)
