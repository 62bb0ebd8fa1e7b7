"""Files that are written whole or not at all, whoever is killed when."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mcn.errors import MCNError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Fill a file beside ``path``, flush it to the disk, then rename it over ``path``.

    A process killed in between leaves ``path`` as it was. Raises :class:`~mcn.errors.MCNError` where the disk
    is full or not writable; what was there before is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError | RuntimeError):  # torch.save reports a full disk as RuntimeError
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise MCNError(f"cannot write {path}: {reason} (free some space or choose another --out)") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as :func:`write_atomically` does."""
    write_atomically(path, lambda file: file.write(text.encode()))


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, a line each.

    >>> print(csv_text([["name", "top1"], ["jump, high", 0.5]]), end="")
    name,top1
    "jump, high",0.5
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def save_figure(figure: "Figure", path: Path, **options: Any) -> None:
    """Write a figure in the format that the path's suffix names, whole or not at all.

    ``options`` are those of matplotlib's ``savefig``.
    """
    kind = path.suffix[1:].lower()
    write_atomically(path, lambda file: figure.savefig(file, format=kind, **options))


def printable(text: str) -> str:
    """Text that can be printed: a file name that is no UTF-8 must not keep the rest from being told.

    >>> print(printable("T\\udcfcrme.mp4"))
    T\\udcfcrme.mp4
    """
    return text.encode(errors="backslashreplace").decode()


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]
