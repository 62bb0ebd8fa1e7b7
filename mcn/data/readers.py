"""Frames of a video file by index, exactly: frame ``i`` is the ``i``-th that a decoder puts out.

The truth is libavcodec's sequential decode including the flush at the end, whatever the header
says (:mod:`mcn.data.videoinfo`). Two readers give it:

``pyav``
    decodes from the start up to the last frame wanted, and converts only the frames wanted.
``decord``
    jumps to a keyframe, which is faster in long files. decord 0.6 gives wrong frames after a jump
    in AVI files (MPEG-4 with B-frames, as in HMDB51; H.264 even without) and in any file with open
    groups of pictures; those are run through from frame 0. What it gets wrong even so (transport
    streams, 10 bits, ...) is refused.
``auto``
    decord where it is installed, its jumps are safe and the file is not tiny, PyAV otherwise: to
    open a small file with decord costs more than to decode it. Where decord gives up on a file (it
    cannot convert some widths, 48 and 72 pixels among them), PyAV takes over.

Both convert with swscale to 8-bit RGB. The libraries bundle different builds of libavcodec, whose
MPEG-4 inverse transforms may differ by up to 2 of 255 levels in XviD files; H.264 is bit-equal. A
rotation in the header (phones) is not applied: frames come as they are stored, as in the data
sets' usual pipelines. The colour range is the one the file declares; limited range where it is
silent.

These functions decode in the calling process: for files that nobody has looked at
use :func:`mcn.data.safe.open_safely`, which a crash or a hang of the decoder cannot take down.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from mcn.data.videoinfo import (
    Tick,
    VideoError,
    VideoInfo,
    distinct,
    nothing,
    opened,
    packets_of,
    probe_video,
)
from mcn.errors import MCNError

try:
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # its reports reach us as exceptions
except (ImportError, OSError):  # no wheel for macOS, ARM or Windows
    decord = None

__all__ = [
    "READERS",
    "Video",
    "VideoError",
    "VideoInfo",
    "check_reader",
    "open_video",
    "probe_video",
    "read",
    "read_clip",
]

#: Names of the readers that :func:`open_video` takes.
READERS = ("auto", "decord", "pyav")
# Frames x height x width of a file below which PyAV is faster (128 x 128: 5 seconds at 25 a second).
_TINY = 2**21
# PyAV before 16 has no such switch. Threads cost more than they bring at the size of our frames.
ONE_THREAD: dict[str, Any] = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}


class Video:
    """An open video; made by :func:`open_video`, used in a ``with`` block."""

    def __init__(
        self, path: str, info: VideoInfo, reader: str, may_change: bool = False, tick: Tick = nothing
    ) -> None:
        self.path, self.info, self.reader, self._may_change = path, info, reader, may_change
        self._tick = tick
        self._decord: Any = None

    def __len__(self) -> int:
        return self.info.num_frames

    @property
    def fps(self) -> float:
        """Frames a second as the file declares; 0 where it does not."""
        return self.info.fps

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """The frames asked for, ``uint8 (T, H, W, 3)`` RGB; any order, repeats allowed.

        Raises :class:`VideoError` for an index below 0 or beyond the last frame.
        """
        wanted = distinct(self.path, indices, len(self))
        frames = self._read_decord(wanted) if self.reader == "decord" else self._read_pyav(wanted)
        if wanted == list(indices):  # the usual clip: nothing to reorder
            return frames
        return frames[np.searchsorted(wanted, np.asarray(indices))]

    def _read_pyav(self, wanted: list[int]) -> np.ndarray:
        """Decode up to the last of ``wanted`` (ascending), convert only those."""
        height, width = self.info.height, self.info.width
        out = np.empty((len(wanted), height, width, 3), np.uint8)
        reformatter = VideoReformatter()  # one for all frames keeps swscale's tables
        filled = 0
        with opened(self.path) as (container, stream):
            for index, frame in self._decode_from(wanted[0], container, stream):
                self._tick()
                if index == wanted[filled]:
                    out[filled] = to_rgb(reformatter, frame, height, width)
                    filled += 1
                    if filled == len(wanted):
                        return out
        raise VideoError(f"{self.path}: changed while it was read (ended before {wanted[filled]})")

    def _decode_from(self, first: int, container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
        """Numbered frames from ``first``, or a little before it, to the end."""
        # Packets are still read one by one: only counting them is exact in an AVI file.
        starts = [(packet, frame) for packet, frame in self.info.restarts if frame <= first]
        begin, index = starts[-1] if starts else (0, 0)
        for number, packet in enumerate(packets_of(container, stream)):
            if number >= begin:
                for frame in packet.decode():
                    yield index, frame
                    index += 1

    def stream(self) -> Iterator[Any]:
        """All frames in order, as PyAV's ``VideoFrame``, decoded one at a time in constant memory.

        Raises :class:`VideoError` where the file ends before its last frame.
        """
        index = -1
        with opened(self.path) as (container, stream):
            for index, frame in self._decode_from(0, container, stream):
                self._tick()
                yield frame
                if index == len(self) - 1:
                    return
        raise VideoError(f"{self.path}: changed while it was read (ended before {index + 1})")

    def _read_decord(self, wanted: list[int]) -> np.ndarray:
        """The same through decord: jumping where that is safe, from frame 0 where it is not."""
        try:
            if self._decord is None or self.info.decord != "jump":
                # Opened here, after any fork; with its own threads decord may hang in a worker.
                self._decord = decord.VideoReader(self.path, num_threads=1)
            if self.info.decord == "jump":
                return self._decord.get_batch(wanted).asnumpy()
            return _run_through(self._decord, wanted)
        except (decord.DECORDError, StopIteration) as error:
            if self._may_change:
                self.reader = "pyav"
                return self._read_pyav(wanted)
            raise VideoError(f"{self.path}: decord failed ({str(error).splitlines()[0]})") from None

    def close(self) -> None:
        """Let the file go."""
        self._decord = None

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def to_rgb(reformatter: VideoReformatter, frame: Any, height: int, width: int) -> np.ndarray:
    """A decoded frame as ``uint8 (height, width, 3)``, on one thread."""
    return reformatter.reformat(frame, width, height, "rgb24", **ONE_THREAD).to_ndarray()


def _run_through(reader: Any, wanted: list[int]) -> np.ndarray:
    """Frames ``wanted`` (ascending) of a freshly opened decord reader, without a jump."""
    frames: list[np.ndarray] = []
    for index in range(wanted[-1] + 1):  # not skip_frames: it jumps, to wrong frames
        frame = reader.next()
        if index == wanted[len(frames)]:
            frames.append(frame.asnumpy())
    return np.stack(frames)


def open_video(
    path: str | os.PathLike[str],
    reader: str = "auto",
    info: VideoInfo | None = None,
    tick: Tick = nothing,
) -> Video:
    """Open a video file for reading by frame index, in this process.

    ``reader`` is one of ``auto``, ``decord``, ``pyav``. The first look at a file decodes it once to
    count its frames; ``info``, kept from :func:`probe_video`, saves that. ``tick`` is called for
    each frame decoded. A damaged file is opened with a warning. Raises :class:`VideoError` for a
    file that cannot be read and ``MCNError`` for an unknown reader or one that is not installed.

    >>> open_video("no/such/clip.mp4")
    Traceback (most recent call last):
    ...
    mcn.data.videoinfo.VideoError: .../no/such/clip.mp4: No such file or directory
    """
    check_reader(reader)
    if info is None:
        info = probe_video(path)
        if info.damage:
            warnings.warn(f"{path}: {info.damage}; {info.num_frames} frames are read", stacklevel=2)
    automatic = reader == "auto"
    if automatic:
        tiny = info.num_frames * info.height * info.width < _TINY
        reader = "decord" if decord is not None and info.decord == "jump" and not tiny else "pyav"
    if reader == "decord" and not info.decord:
        why = info.damage or "decord is wrong on such files"
        raise VideoError(f"{os.path.abspath(path)}: {why} (use reader='auto')")
    return Video(os.path.abspath(path), info, reader, may_change=automatic, tick=tick)


def check_reader(reader: str) -> None:
    """Raise ``MCNError`` for a reader that does not exist or is not installed here."""
    if reader not in READERS:
        raise MCNError(f"reader={reader!r}: one of {', '.join(READERS)}")
    if reader == "decord" and decord is None:
        raise MCNError("reader='decord': not installed (pip install decord, or use reader='pyav')")


def read_clip(path: str | os.PathLike[str], indices: Sequence[int], reader: str = "auto") -> np.ndarray:
    """Frames of a file as ``uint8 (T, H, W, 3)`` RGB: :func:`open_video` and ``frames`` in one."""
    with open_video(path, reader) as video:
        return video.frames(indices)


def read(
    path: str, reader: str, info: VideoInfo, indices: Sequence[int], *, tick: Tick = nothing
) -> np.ndarray:
    """:func:`read_clip` of a file that has been looked at; what a supervised child is asked for."""
    with open_video(path, reader, info, tick) as video:
        return video.frames(indices)
