"""Features kept on disk, found again by what they were made of: weights, settings and the video's bytes.

A folder a network and settings; in it each process that adds features writes a file of its own, one
record a video: key, checksum, feature. A record that is torn (its writer was killed) or damaged does
not exist. So extraction goes on after a kill, several processes share the work, and a video that was
changed, or another network, is never answered with an old feature. Deleting the folder is harmless.
"""

import hashlib
import json
import os
import struct
import uuid
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mcn._version import __version__
from mcn.data.datasets import Videos
from mcn.data.flow import flow_state
from mcn.data.videoinfo import VideoError
from mcn.errors import MCNError

_RULES = 1  # raised whenever the same video and settings would give another feature than before
_HEADER = struct.Struct("<4sII4x")  # "MCNF", width of a feature, rules
_KEY, _CHECKSUM = 16, 4


class FeatureCache:
    """The features of one network under one set of settings, below ``folder``.

    ``key`` is :func:`cache_key`'s. Raises :class:`~mcn.errors.MCNError` where the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder / key
        self._place: dict[bytes, tuple[Path, int]] = {}
        self._file: IO[bytes] | None = None
        self.width = 0  #: of a feature; 0 while there is none
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self.folder.glob("*.bin")):
                self._index(path)
        except OSError as error:
            raise _cannot(self.folder, error) from error

    def _index(self, path: Path) -> None:
        """Find out where the records of one file are."""
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size or head[:4] != b"MCNF":
                return
            _, self.width, _ = _HEADER.unpack(head)
            size = self._record
            for number in range((os.fstat(file.fileno()).st_size - _HEADER.size) // size):
                at = _HEADER.size + number * size
                file.seek(at)
                self._place[file.read(_KEY)] = path, at

    @property
    def _record(self) -> int:
        return _KEY + _CHECKSUM + 4 * self.width

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """The feature ``(F,)`` of the video with this key, if it is here and undamaged."""
        if key not in self._place:
            return None
        path, at = self._place[key]
        try:
            with path.open("rb") as file:
                file.seek(at)
                record = file.read(self._record)
        except OSError as error:
            raise _cannot(path, error) from error
        content = record[_KEY + _CHECKSUM :]
        if len(record) < self._record or record[:_KEY] != key or _crc(key, content) != record[_KEY:][:4]:
            return None
        return np.frombuffer(content, dtype="<f4")

    def add(self, key: bytes, feature: NDArray[np.float32]) -> None:
        """Keep a feature ``(F,)``. Raises :class:`~mcn.errors.MCNError` where the disk is full."""
        content = np.ascontiguousarray(feature, dtype="<f4").tobytes()
        try:
            if self._file is None:
                self._file = (self.folder / f"{uuid.uuid4().hex}.bin").open("xb", buffering=0)
                self._file.write(_HEADER.pack(b"MCNF", len(feature), _RULES))
            self._file.write(key + _crc(key, content) + content)  # at once: it is whole or torn at the end
        except OSError as error:
            raise _cannot(self.folder, error) from error

    def close(self) -> None:
        """Nothing more is added."""
        if self._file is not None:
            self._file.close()


def _crc(key: bytes, content: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(content, zlib.crc32(key)))


def _cannot(path: Path, error: OSError) -> MCNError:
    return MCNError(
        f"cannot keep features in {path}: {error.strerror or error} "
        "(free some space, or give --cache another folder, or none)"
    )


def cache_key(weights: str, settings: dict[str, Any]) -> str:
    """Name of the folder for a network's :func:`weights_hash` and what else a feature depends on.

    >>> cache_key("ab", {"size": 128}) == cache_key("ab", {"size": 112})
    False
    """
    text = json.dumps([_RULES, __version__, weights, sorted(settings.items())])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def weights_hash(module: nn.Module) -> str:
    """Hash of every parameter and buffer of a module with its name, wherever it is kept."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        found.update(values.flatten().numpy().tobytes())
    return found.hexdigest()


def video_keys(videos: Videos, view: str = "rgb") -> list[bytes | None]:
    """For each video a key of 16 bytes that changes with its file (for flow views, its flow images).

    ``None`` for a video that is not there: it has no feature to be found.
    """
    keys: list[bytes | None] = []
    for index in range(len(videos)):
        try:
            state = videos.state(index)
            if view in ("flow_u", "flow_v"):
                state += flow_state(videos, index, view)
            keys.append(hashlib.blake2b(state.encode(), digest_size=_KEY).digest())
        except VideoError:
            keys.append(None)
    return keys
