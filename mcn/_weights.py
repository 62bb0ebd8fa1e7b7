"""Reads files of weights without running code from them, and says in plain words what is none."""

import re
import string
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mcn.errors import MCNError
from mcn.files import first_line

_RIGHT = "give a run folder of mcn, a checkpoint (.pt) in it, or weights by name (.pt, .pth, .safetensors)"


def read_weights(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """What is in a file of torch or safetensors: a dict, empty where the file holds something else.

    Raises :class:`~mcn.errors.MCNError` for a file that is damaged, of another kind, or holds more than data.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        contents = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # both libraries raise many types for a damaged file
        raise MCNError(f"{path} is not a readable checkpoint: {_what(path, error)}; {_RIGHT}") from error
    return contents if isinstance(contents, dict) else {}


def look_into(path: Path) -> dict[str, Any]:
    """What :func:`read_weights` gives, of a checkpoint of ours, without reading a tensor from the disk.

    The tensors are on the disk until they are used, so use none. Empty for another file.
    """
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return {}
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # who reads it whole says what is wrong with it
        return {}
    return contents if isinstance(contents, dict) and "network" in contents else {}


def require(state: dict[str, Any], names: Iterable[str], where: str | Path) -> None:
    """Raise :class:`~mcn.errors.MCNError` for a checkpoint of ours that is too old to have these entries."""
    if missing := [name for name in names if name not in state]:
        raise MCNError(
            f"{where} was made by an earlier version of mcn (it has no {', '.join(missing)}): train again"
        )


def _what(path: Path, error: Exception) -> str:
    """What a file is that could not be read."""
    if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError):
        return getattr(error, "strerror", None) or first_line(error)
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty"
    if known := re.search(r"GLOBAL ([\w.]+)", str(error)):  # torch's name for what it will not call
        return f"it holds more than data ({known[1]}), and reading that would run code from it"
    if path.suffix == ".safetensors":
        return "it is damaged, or no file of safetensors"
    if head[8:10] == b'{"':
        return "it is a file of safetensors, whose name should end in .safetensors"
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            return "its end is missing, as of a copy or a download that was cut off"
        return "it is damaged, or an archive of something else"
    if all(chr(byte) in string.printable for byte in head):
        return "it is a text file"
    return "it is damaged, or of another kind"
