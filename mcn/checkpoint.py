"""Checkpoints: written whole or not at all, kept few, loaded without running code.

A checkpoint is one ``.pt`` file of tensors, numbers and strings, so that ``torch.load`` takes it
with ``weights_only=True``.
"""

import re
from pathlib import Path
from typing import Any

import torch

from mcn._weights import read_weights
from mcn.errors import MCNError
from mcn.files import write_atomically

_NAME = re.compile(r"step_(\d{8})\.pt")


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


def own_checkpoint(out: str | Path) -> Path | None:
    """The newest checkpoint of a run in the folder ``out``; ``None`` where none is named, or it has none."""
    return latest_checkpoint(Path(out) / "checkpoints") if out else None


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


def all_checkpoints(where: str | Path) -> list[Path]:
    """Every checkpoint of a run folder by step, or the one file.

    Raises :class:`~mcn.errors.MCNError` where there is none.
    """
    newest = find_checkpoint(where)
    return [newest] if Path(where).is_file() else _checkpoints(newest.parent)


def load_checkpoint(where: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Load a checkpoint (a file or a run folder's newest) with ``weights_only=True``.

    Raises :class:`~mcn.errors.MCNError` for a file that is no checkpoint or holds more than data.
    """
    path = find_checkpoint(where)
    state = read_weights(path, device)
    if "network" not in state:
        raise MCNError(
            f"{path} is not a checkpoint of mcn: it has no entry 'network' (give a run folder, or one in it)"
        )
    return state
