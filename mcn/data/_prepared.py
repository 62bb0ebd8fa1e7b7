"""What the two forms of prepared videos share; :func:`mcn.data.prepared.open_prepared` opens either."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from mcn.data.manifest import Entry
from mcn.data.readers import ONE_THREAD
from mcn.data.videoinfo import VideoInfo, distinct

#: What an error about bytes that have changed ends with.
MEND = "copy the file again, or run prepare again, which mends it"


def plane_of(frame: Any, number: int, pixel: int = 1) -> np.ndarray:
    """Pixels of a plane of a frame, ``uint8 (rows, pixel * columns)``: its own memory, without padding."""
    plane = frame.planes[number]
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : pixel * plane.width]


class Prepared(ABC):
    """An open prepared video, with the interface of :class:`mcn.data.readers.Video`.

    ``path`` is the file that holds it, where that is not the one that the entry names (yet).
    """

    def __init__(self, entry: Entry, folder: Path, path: Path | None = None) -> None:
        self.entry, self.path = entry, str(path or folder / entry.file)
        self.info = VideoInfo(
            entry.frames, entry.fps, entry.height, entry.width, decord="", damage=entry.damage
        )

    def __len__(self) -> int:
        return self.entry.frames

    @property
    def fps(self) -> float:
        """Frames a second as the source declares; 0 where it does not."""
        return self.entry.fps

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames asked for, ``uint8 (T, H, W, 3)`` RGB; any order, repeats allowed.

        Raises :class:`~mcn.data.videoinfo.VideoError` for an index that is no frame's, and for bytes that
        are not those that were written.
        """
        wanted = distinct(self.path, indices, len(self))
        height, width = self.entry.height, self.entry.width
        out = np.empty((len(wanted), height, width, 3), np.uint8)
        rows = out.reshape(len(wanted), height, 3 * width)
        reformatter = VideoReformatter()  # one for all frames keeps swscale's tables
        for slot, frame in enumerate(self._pick(wanted)):
            rgb = reformatter.reformat(frame, width, height, "rgb24", **ONE_THREAD)
            rows[slot] = plane_of(rgb, 0, 3)
        if wanted == list(indices):
            return out
        return out[np.searchsorted(wanted, np.asarray(indices))]

    @abstractmethod
    def _pick(self, wanted: list[int]) -> Iterator[Any]:
        """The frames ``wanted`` (ascending), as PyAV's ``VideoFrame``."""

    @abstractmethod
    def everything(self) -> Iterator[Any]:
        """All frames in order, one at a time, read and checked as by :meth:`frames`."""

    def close(self) -> None:  # noqa: B027 (not every form keeps something open)
        """Let the file go."""

    def __enter__(self) -> "Prepared":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
