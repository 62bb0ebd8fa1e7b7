"""Frames of a video file by index, exactly: frame ``i`` is the ``i``-th that a decoder puts out.

The truth is libavcodec's sequential decode including the flush at the end, whatever the header
says. Two readers give it:

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
silent. A file that ends too early is refused where its container tells (AVI, MP4, MOV); a Matroska
file or transport stream does not, and counts as the shorter video that it is.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from mcn.errors import MCNError

try:
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # its reports reach us as exceptions
except (ImportError, OSError):  # no wheel for macOS, ARM or Windows
    decord = None

#: Names of the readers that :func:`open_video` takes.
READERS = ("auto", "decord", "pyav")
# Frames x height x width of a file below which PyAV is faster (128 x 128: 5 seconds at 25 a second).
_TINY = 2**21
_IDR = re.compile(rb"\x00\x00\x01[\x05\x25\x45\x65]")  # start code, NAL unit type 5
# PyAV before 16 has no such switch. Threads cost more than they bring at the size of our frames.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}
# Pixel formats that decord converts as PyAV does; 10 bits, for one, it does not.
_EIGHT_BIT = {f"{yuv}{layout}p" for yuv in ("yuv", "yuvj") for layout in (420, 422, 444)}
_UNREADABLE = (av.error.FFmpegError, OSError, ValueError)


class VideoError(MCNError):
    """A video file, or a frame of it, that cannot be read; one line: path, reason."""


@dataclass(frozen=True)
class VideoInfo:
    """What one sequential decode tells of a file.

    ``num_frames`` counts the frames that come out; ``fps`` is frames a second as the file declares
    (0 where it does not); ``height`` and ``width`` are pixels of the first frame; ``decord`` says
    what decord may do in it: ``jump`` to a keyframe, ``run`` through from frame 0, or nothing (the
    empty string); ``restarts`` are pairs (packet, frame) at which a decoder may begin and give the
    same frames as from the start, known only for streams without reordering.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    decord: str
    restarts: tuple[tuple[int, int], ...] = ()


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Decode a file once, without colour conversion, and say what is in it.

    The answer is kept for the life of the process and asked anew when the file changes. Raises
    :class:`VideoError` for a file that is missing, empty, no video, or cut short.
    """
    full = os.path.abspath(path)
    try:
        stat = os.stat(full)
    except OSError as error:
        raise VideoError(f"{full}: {error.strerror or error}") from None
    if not os.path.isfile(full):
        raise VideoError(f"{full}: not a file (give the path of one video)")
    if stat.st_size == 0:
        raise VideoError(f"{full}: the file is empty (0 bytes; fetch it again)")
    return _probe(full, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1 << 19)  # more than Kinetics-400 has; an entry is a few kilobytes at most
def _probe(path: str, mtime_ns: int, size: int) -> VideoInfo:
    """:func:`probe_video` for one state of the file."""
    times: list[int | None] = []  # of the frames, in the order they come out
    keys: list[tuple[int, int | None, bool]] = []  # packet, its time, whether it stands alone
    shapes: list[tuple[int, int]] = []
    plain = in_order = True
    with _opened(path) as (container, stream):
        coder = stream.codec_context
        for number, packet in enumerate(_packets(path, container, stream)):
            if packet.is_keyframe:
                keys.append((number, packet.pts, _stands_alone(coder, packet)))
            for frame in packet.decode():
                times.append(frame.pts)
                shapes.append((frame.height, frame.width))
                plain = plain and frame.format.name in _EIGHT_BIT and not frame.rotation
                in_order = in_order and frame.pict_type != PictureType.B
        fps = float(stream.average_rate or 0)
    if not times:
        raise VideoError(f"{path}: no frame could be decoded (fetch the file again)")
    known = [time for time in times if time is not None]
    rising = len(known) == len(times) and all(a < b for a, b in pairwise(known))
    frame_at = {time: index for index, time in enumerate(known)} if rising and in_order else {}
    restarts = tuple((number, frame_at[time]) for number, time, alone in keys if alone and time in frame_at)
    plain = plain and len(set(shapes)) == 1
    closed = rising and all(alone for *_, alone in keys) and (in_order or coder.name == "h264")
    way = _decord_way(container.format.name, closed) if plain else ""
    return VideoInfo(len(times), fps, *shapes[0], decord=way, restarts=restarts)


def _decord_way(container: str, closed: bool) -> str:
    """What decord may do in a container (libav's names), given closed groups of pictures or not."""
    names = container.split(",")
    if "mp4" in names or "matroska" in names:
        return "jump" if closed else "run"
    return "run" if "avi" in names else ""


def _stands_alone(coder: Any, packet: Any) -> bool:
    """Whether decoding may begin at this keyframe, as far as frames from it onwards are concerned.

    H.264 calls pictures keyframes after which earlier ones may still be used; an IDR picture (NAL
    unit type 5) rules that out. MPEG-4 and the VP codecs rule it out unless frames are reordered.
    """
    if coder.name != "h264":
        return coder.name in ("mpeg4", "vp8", "vp9", "libvpx", "libvpx-vp9")
    data, prefixed = bytes(packet), (coder.extradata or b"")[:1] == b"\x01"
    if not prefixed:
        return _IDR.search(data) is not None
    at = 0
    while at + 4 < len(data):  # units with their length in front, as in MP4
        if data[at + 4] & 31 == 5:
            return True
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    return False


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """A PyAV container and its first video stream; libav's errors become :class:`VideoError`."""
    try:
        # HMDB51 has a file whose metadata is not UTF-8; we do not read metadata.
        with av.open(path, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise VideoError(f"{path}: there is no video stream in it")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # loader workers are the parallelism
            yield container, stream
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path}: not readable as a video ({reason})") from None


def _packets(path: str, container: Any, stream: Any) -> Iterator[Any]:
    """Packets of the stream in file order; the last, empty one flushes the decoder."""
    for number, packet in enumerate(container.demux(stream)):
        if packet.is_corrupt:  # the demuxer marks a packet that the end of the file cuts
            raise VideoError(f"{path}: cut short at packet {number} (fetch the file again)")
        yield packet


class Video:
    """An open video; made by :func:`open_video`, used in a ``with`` block."""

    def __init__(self, path: str, info: VideoInfo, reader: str, may_change: bool = False) -> None:
        self.path, self.info, self.reader, self._may_change = path, info, reader, may_change
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
        wanted = sorted(set(map(int, indices)))
        if not wanted:
            raise VideoError(f"{self.path}: asked for no frames (give at least one index)")
        bad = wanted[0] if wanted[0] < 0 else wanted[-1]
        if not 0 <= bad < len(self):
            raise VideoError(f"{self.path}: frame {bad} does not exist (0 to {len(self) - 1} do)")
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
        with _opened(self.path) as (container, stream):
            for index, frame in self._decode_from(wanted[0], container, stream):
                if index == wanted[filled]:
                    rgb = reformatter.reformat(frame, width, height, "rgb24", **_ONE_THREAD)
                    out[filled] = rgb.to_ndarray()
                    filled += 1
                    if filled == len(wanted):
                        return out
        raise VideoError(f"{self.path}: changed while it was read (ended before {wanted[filled]})")

    def _decode_from(self, first: int, container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
        """Numbered frames from ``first``, or a little before it, to the end."""
        # Packets are still read one by one: only counting them is exact in an AVI file.
        starts = [(packet, frame) for packet, frame in self.info.restarts if frame <= first]
        begin, index = starts[-1] if starts else (0, 0)
        for number, packet in enumerate(_packets(self.path, container, stream)):
            if number >= begin:
                for frame in packet.decode():
                    yield index, frame
                    index += 1

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


def _run_through(reader: Any, wanted: list[int]) -> np.ndarray:
    """Frames ``wanted`` (ascending) of a freshly opened decord reader, without a jump."""
    frames: list[np.ndarray] = []
    for index in range(wanted[-1] + 1):  # not skip_frames: it jumps, to wrong frames
        frame = reader.next()
        if index == wanted[len(frames)]:
            frames.append(frame.asnumpy())
    return np.stack(frames)


def open_video(path: str | os.PathLike[str], reader: str = "auto", info: VideoInfo | None = None) -> Video:
    """Open a video file for reading by frame index.

    ``reader`` is one of ``auto``, ``decord``, ``pyav``. The first look at a file decodes it once to
    count its frames; ``info``, kept from :func:`probe_video`, saves that. Raises
    :class:`VideoError` for a file that cannot be read and ``MCNError`` for an unknown reader or one
    that is not installed.

    >>> open_video("no/such/clip.mp4")
    Traceback (most recent call last):
    ...
    mcn.data.readers.VideoError: .../no/such/clip.mp4: No such file or directory
    """
    if reader not in READERS:
        raise MCNError(f"reader={reader!r}: one of {', '.join(READERS)}")
    if reader == "decord" and decord is None:
        raise MCNError("reader='decord': not installed (pip install decord, or use reader='pyav')")
    info = info or probe_video(path)
    automatic = reader == "auto"
    if automatic:
        tiny = info.num_frames * info.height * info.width < _TINY
        reader = "decord" if decord is not None and info.decord == "jump" and not tiny else "pyav"
    if reader == "decord" and not info.decord:
        raise VideoError(f"{os.path.abspath(path)}: decord is wrong on such files (use reader='auto')")
    return Video(os.path.abspath(path), info, reader, may_change=automatic)


def read_clip(path: str | os.PathLike[str], indices: Sequence[int], reader: str = "auto") -> np.ndarray:
    """Frames of a file as ``uint8 (T, H, W, 3)`` RGB: :func:`open_video` and ``frames`` in one."""
    with open_video(path, reader) as video:
        return video.frames(indices)
