"""Checkpoints: written whole or not at all, kept few, loaded without running code.

A checkpoint is one ``.pt`` file of tensors, numbers and strings, so that ``torch.load`` takes it
with ``weights_only=True``.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from mcn.errors import MCNError

_NAME = re.compile(r"step_(\d{8})\.pt")


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
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise MCNError(f"cannot write {path}: {reason} (free some space or choose another --out)") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write ``folder/step_<step>.pt`` and delete all but the newest ``keep`` checkpoints."""
    path = folder / f"step_{step:08d}.pt"
    write_atomically(path, lambda file: torch.save(state, file))
    for stale in [*_checkpoints(folder)[: -max(keep, 1)], *folder.glob(".*.partial")]:
        stale.unlink(missing_ok=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a folder, or ``None``."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))


def find_checkpoint(where: str | Path) -> Path:
    """A checkpoint from the path of a ``.pt`` file or of a run folder (its newest).

    Raises :class:`~mcn.errors.MCNError` where there is none.
    """
    path = Path(where)
    if path.is_file():
        return path
    found = latest_checkpoint(path / "checkpoints") if path.is_dir() else None
    if found is None:
        raise MCNError(f"no checkpoint at {path}: give a .pt file or a run folder with checkpoints/step_*.pt")
    return found


def load_checkpoint(where: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Load a checkpoint (a file or a run folder's newest) with ``weights_only=True``.

    Raises :class:`~mcn.errors.MCNError` for a file that is no checkpoint or holds more than data.
    """
    path = find_checkpoint(where)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise MCNError(f"{path} is not a readable checkpoint: {_first_line(error)}") from error
    if not isinstance(state, dict) or "network" not in state:
        raise MCNError(f"{path} is not a checkpoint of mcn: it has no entry 'network'")
    return state
