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
