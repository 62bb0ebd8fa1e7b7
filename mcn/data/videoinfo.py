"""What a video file is: one sequential decode, and what it tells.

The truth about a file is libavcodec's sequential decode of it including the flush at the end,
whatever its header says. A file that is damaged, or ends too early, has the frames up to there, and
``VideoInfo.damage`` says what is wrong. A transport stream does not tell that its end is missing,
and counts as the shorter video that it is.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import av
from av.video.frame import PictureType

from mcn.data._containers import stands_alone, walk
from mcn.errors import MCNError

Tick = Callable[[], None]
"""Called again and again, so that who waits knows that decoding gets on."""

# Pixel formats that decord converts as PyAV does; 10 bits, for one, it does not.
_EIGHT_BIT = {f"{yuv}{layout}p" for yuv in ("yuv", "yuvj") for layout in (420, 422, 444)}
_UNREADABLE = (av.error.FFmpegError, OSError, ValueError)
_REORDER = 16  # frames that H.264 may hold back
_HIDDEN = ("vp8", "vp9", "libvpx", "libvpx-vp9")  # their packets may hold a picture that is not shown


class VideoError(MCNError):
    """A video file, or a frame of it, that cannot be read; one line: path, reason."""


@dataclass(frozen=True)
class VideoInfo:
    """What one sequential decode tells of a file.

    ``num_frames`` counts the frames that come out; ``fps`` is frames a second as the file declares
    (0 where it does not); ``height`` and ``width`` are pixels of the first frame; ``decord`` says
    what decord may do in it: ``jump`` to a keyframe, ``run`` through from frame 0, or nothing (the
    empty string); ``restarts`` are pairs (packet, frame) at which a decoder may begin and give the
    same frames as from the start, known only for streams without reordering; ``damage`` says what
    is wrong with the file, if anything: its frames are then those up to where it breaks, or have
    gaps, as the text says.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    decord: str
    restarts: tuple[tuple[int, int], ...] = ()
    damage: str = ""


def nothing() -> None:
    """The tick of who does not listen."""


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Decode a file once, without colour conversion, and say what is in it.

    The answer is kept for the life of the process and asked anew when the file changes. Raises
    :class:`VideoError` for a file that is missing, empty or no video, or of which no frame can be
    decoded.
    """
    full = os.path.abspath(path)
    return _probe_once(full, *state_of(full))


@lru_cache(maxsize=1 << 19)  # more than Kinetics-400 has; an entry is a few kilobytes at most
def _probe_once(path: str, size: int, mtime_ns: int) -> VideoInfo:
    """:func:`probe_video` for one state of the file."""
    return probe(path)


def state_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Size in bytes and time of change in ns: what tells that a file has changed.

    Raises :class:`VideoError` for a file that is missing or empty, or no file.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror or error}") from None
    if not os.path.isfile(path):
        raise VideoError(f"{path}: not a file (give the path of one video)")
    if stat.st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes; fetch it again)")
    return stat.st_size, stat.st_mtime_ns


def probe(path: str, *, tick: Tick = nothing) -> VideoInfo:
    """:func:`probe_video` without memory, and with a ``tick`` for each packet."""
    state_of(path)
    with opened(path) as (container, stream):
        missing, broken = walk(path)
        seen = _Pass(stream.codec_context, container.format.name)
        try:
            for packet in packets_of(container, stream, cut=missing > 0):
                seen.take(packet)
                tick()
        except _UNREADABLE as error:
            seen.damage = f"breaks off at packet {seen.packets} ({_reason(error)})"
        fps, declared = float(stream.average_rate or 0), stream.frames
    if not seen.times:
        raise VideoError(f"{path}: no frame could be decoded ({seen.damage or 'fetch the file again'})")
    damage = seen.damage or seen.gaps(missing, broken, declared)
    size = (len(seen.times), fps, *seen.shapes[0])
    if damage:  # nothing but the way that has just been gone is safe
        return VideoInfo(*size, decord="", damage=damage)
    return VideoInfo(*size, decord=seen.decord_way(), restarts=seen.restarts())


class _Pass:
    """What one decode of a file shows, packet by packet."""

    def __init__(self, coder: Any, container: str) -> None:
        self.coder, self.codec, self.container = coder, coder.name, container.split(",")
        self.times: list[int | None] = []  # of the frames, in the order they come out
        self.shapes: list[tuple[int, int]] = []
        self.keys: list[tuple[int, int | None, bool]] = []  # packet, its time, whether it stands alone
        self.kept: list[int] = []  # numbers of packets that hold a picture
        self.left_out: list[int] = []  # and of those that an edit list cuts off
        self.packets = 0
        self.plain = self.in_order = True
        self.damage = ""

    def take(self, packet: Any) -> None:
        """Decode the next packet and look at what comes out."""
        if packet.is_keyframe:
            self.keys.append((self.packets, packet.pts, stands_alone(self.coder, packet)))
        if packet.size > 1:  # one byte is a filler (HMDB51 has them)
            (self.left_out if packet.is_discard else self.kept).append(self.packets)
        self.packets += packet.size > 0
        for frame in packet.decode():
            self.times.append(frame.pts)
            self.shapes.append((frame.height, frame.width))
            self.plain = self.plain and frame.format.name in _EIGHT_BIT and not frame.rotation
            self.in_order = self.in_order and frame.pict_type != PictureType.B
            if frame.is_corrupt and not self.damage:
                self.damage = f"frame {len(self.times) - 1} is damaged"

    @property
    def _known(self) -> list[int]:
        return [time for time in self.times if time is not None]

    @property
    def _rising(self) -> bool:
        return len(self._known) == len(self.times) and all(a < b for a, b in pairwise(self._known))

    def gaps(self, missing: int, broken: int, declared: int) -> str:
        """What is missing from a file that decoded without an error, in words; empty for nothing."""
        if missing:
            return f"cut short: {missing} bytes are missing at its end"
        if broken >= 0:
            return f"its parts do not fit together from byte {broken} on"
        if "mp4" in self.container and self.packets < declared:
            return f"cut short: {self.packets} of {declared} packets are there"
        # An edit list cuts off ends, a few reordered frames from each; it leaves nothing out in between.
        first, last = self.kept[0] + _REORDER, self.kept[-1] - _REORDER
        lost = len(self.kept) - len(self.times) + sum(first < number < last for number in self.left_out)
        if lost > 0 and self.codec not in _HIDDEN:
            return f"{lost} of its {self.packets} pictures did not come out"
        return ""

    def restarts(self) -> tuple[tuple[int, int], ...]:
        """Packets and frames at which a decoder may begin."""
        if not (self._rising and self.in_order):
            return ()
        frame_at = {time: index for index, time in enumerate(self._known)}
        return tuple(
            (packet, frame_at[time]) for packet, time, alone in self.keys if alone and time in frame_at
        )

    def decord_way(self) -> str:
        """What decord may do: ``jump``, ``run`` or nothing."""
        # Its colours are off at the edge of odd sizes.
        odd = any(side % 2 for side in self.shapes[0])
        if odd or not self.plain or len(set(self.shapes)) > 1:
            return ""
        closed = self._rising and all(alone for *_, alone in self.keys)
        if "mp4" in self.container or "matroska" in self.container:
            return "jump" if closed and (self.in_order or self.codec == "h264") else "run"
        return "run" if "avi" in self.container else ""


@contextmanager
def opened(path: str) -> Iterator[tuple[Any, Any]]:
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
        raise VideoError(f"{path}: not readable as a video ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _CutShort(ValueError):
    """A packet that the end of the file cuts."""


def packets_of(container: Any, stream: Any, cut: bool = False) -> Iterator[Any]:
    """Packets of the stream in file order; the last, empty one flushes the decoder.

    Of a file that is cut short the last packet may be a part of one, and what comes after it is not
    known: both are left out.
    """
    before = None
    for packet in container.demux(stream):
        if packet.is_corrupt:  # so the demuxer marks it, if it knows
            raise _CutShort("the file ends inside it")
        if not cut:
            yield packet
        elif packet.size:
            if before is not None:
                yield before
            before = packet


def distinct(path: str, indices: Sequence[int], num_frames: int) -> list[int]:
    """The indices asked for, ascending, each once.

    Raises :class:`VideoError` for none, and for one that the video does not have.
    """
    wanted = sorted(set(map(int, indices)))
    if not wanted:
        raise VideoError(f"{path}: asked for no frames (give at least one index)")
    bad = wanted[0] if wanted[0] < 0 else wanted[-1]
    if not 0 <= bad < num_frames:
        raise VideoError(f"{path}: frame {bad} does not exist (0 to {num_frames - 1} do)")
    return wanted
