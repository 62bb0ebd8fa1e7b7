"""Videos read through a supervised child: what trains and evaluates opens files this way.

The interface is that of :mod:`mcn.data.readers`; a crash, a hang or a flood of memory in the decoder
is a :class:`~mcn.data.videoinfo.VideoError` like any other.
"""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from mcn.data.index import VideoIndex
from mcn.data.readers import check_reader, read
from mcn.data.supervise import TIMEOUT, supervised
from mcn.data.videoinfo import VideoInfo, distinct, probe, state_of


class OpenVideo(Protocol):
    """What everything that reads frames asks of an open video, whatever is behind it."""

    @property
    def path(self) -> str:
        """Where it comes from, for messages."""

    @property
    def info(self) -> VideoInfo:
        """What is known of it."""

    def __len__(self) -> int: ...

    def __enter__(self) -> "OpenVideo": ...

    def __exit__(self, *error: Any) -> None: ...

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames asked for, ``uint8 (T, H, W, 3)``."""


class SafeVideo:
    """A video file as :class:`mcn.data.readers.Video`, decoded in a supervised child."""

    def __init__(self, path: str, info: VideoInfo, reader: str, timeout: float) -> None:
        self.path, self.info, self.reader, self._timeout = path, info, reader, timeout

    def __len__(self) -> int:
        return self.info.num_frames

    @property
    def fps(self) -> float:
        """Frames a second as the file declares; 0 where it does not."""
        return self.info.fps

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames asked for, ``uint8 (T, H, W, 3)`` RGB; any order, repeats allowed.

        Raises :class:`~mcn.data.videoinfo.VideoError` for an index that is no frame's, and for a file
        that cannot be read within the time limit.
        """
        distinct(self.path, indices, len(self))
        wanted = [int(i) for i in indices]
        return supervised(read, self.path, self.reader, self.info, wanted, timeout=self._timeout)

    def __enter__(self) -> "SafeVideo":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is kept open between calls."""


def open_safely(
    path: str | os.PathLike[str],
    reader: str = "auto",
    *,
    index: VideoIndex | None = None,
    name: str = "",
    timeout: float = TIMEOUT,
) -> SafeVideo:
    """Open a video file whose decoding may crash or hang; else as :func:`mcn.data.readers.open_video`.

    ``index`` is asked for what is known of the file, under ``name``, and told what is found out.
    ``timeout`` is the longest silence of the decoder, in seconds. ``info.damage`` of the result says
    what is wrong with a file of which only a part can be read.
    """
    check_reader(reader)
    full = os.path.abspath(path)
    state = state_of(full)
    info = index.get(name, state) if index else None
    if info is None:
        info = supervised(probe, full, timeout=timeout)
        if index:
            index.add(name, state, info)
    return SafeVideo(full, info, reader, timeout)
