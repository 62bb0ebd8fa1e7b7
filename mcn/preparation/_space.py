"""Room on the disk, asked for before it is used."""

import shutil
from pathlib import Path

from mcn.errors import MCNError


def need_space(folder: Path, needed: int, what: str) -> None:
    """Raise MCNError unless the disk of ``folder`` (which may not exist yet) has ``needed`` bytes free.

    ``what`` is the subject of the sentence, with "will" where it is one thing ("the rest of x will").
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise MCNError(
            f"{folder}: {what} need {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are free: "
            "free some space or choose another folder"
        )


def size_text(size: float) -> str:
    """Bytes as a person would say them.

    >>> size_text(6_932_971_618), size_text(87_600), size_text(12)
    ('6.93 GB', '87.6 kB', '12 bytes')
    """
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.9995 * one:
            return f"{size / one:.3g} {unit}"
    return f"{size:.0f} bytes"
