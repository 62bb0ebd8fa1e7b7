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

from mcn.data._containers import bytes_missing, stands_alone
from mcn.errors import MCNError

Tick = Callable[[], None]
"""Called again and again, so that who waits knows that decoding gets on."""

# Pixel formats that decord converts as PyAV does; 10 bits, for one, it does not.
_EIGHT_BIT = {f"{yuv}{layout}p" for yuv in ("yuv", "yuvj") for layout in (420, 422, 444)}
_UNREADABLE = (av.error.FFmpegError, OSError, ValueError)
_MISSING_PACKETS = 1  # a stream that reorders frames may have one packet more than frames (all of HMDB51)


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
    times: list[int | None] = []  # of the frames, in the order they come out
    keys: list[tuple[int, int | None, bool]] = []  # packet, its time, whether it stands alone
    shapes: list[tuple[int, int]] = []
    plain = in_order = True
    packets, damage = 0, ""
    with opened(path) as (container, stream):
        missing = bytes_missing(path)
        coder = stream.codec_context
        fps, declared = float(stream.average_rate or 0), stream.frames
        try:
            for packet in packets_of(container, stream, cut=missing > 0):
                if packet.is_keyframe:
                    keys.append((packets, packet.pts, stands_alone(coder, packet)))
                packets += packet.size > 0
                for frame in packet.decode():
                    times.append(frame.pts)
                    shapes.append((frame.height, frame.width))
                    plain = plain and frame.format.name in _EIGHT_BIT and not frame.rotation
                    in_order = in_order and frame.pict_type != PictureType.B
                    if frame.is_corrupt and not damage:
                        damage = f"frame {len(times) - 1} is damaged"
                tick()
        except _UNREADABLE as error:
            damage = f"breaks off at packet {packets} ({_reason(error)})"
        formats, codec = container.format.name, coder.name
    if not times:
        raise VideoError(f"{path}: no frame could be decoded ({damage or 'fetch the file again'})")
    if missing:
        damage = damage or f"cut short: {missing} bytes are missing at its end"
    damage = damage or _gaps(packets, len(times), declared if "mp4" in formats else 0)
    if damage:  # nothing but the way that has just been gone is safe
        return VideoInfo(len(times), fps, *shapes[0], decord="", damage=damage)
    known = [time for time in times if time is not None]
    rising = len(known) == len(times) and all(a < b for a, b in pairwise(known))
    frame_at = {time: index for index, time in enumerate(known)} if rising and in_order else {}
    restarts = tuple((number, frame_at[time]) for number, time, alone in keys if alone and time in frame_at)
    # decord's colours are off at the edge of odd sizes.
    plain = plain and len(set(shapes)) == 1 and not any(side % 2 for side in shapes[0])
    closed = rising and all(alone for *_, alone in keys) and (in_order or codec == "h264")
    way = _decord_way(formats, closed) if plain else ""
    return VideoInfo(len(times), fps, *shapes[0], decord=way, restarts=restarts)


def _gaps(packets: int, frames: int, declared: int) -> str:
    """What is missing from a file that decoded without an error, in words; empty for nothing."""
    if packets < declared:
        return f"cut short: {packets} of {declared} packets are there"
    if packets - frames > _MISSING_PACKETS:
        return f"{packets - frames} of its {packets} packets gave no frame"
    return ""


def _decord_way(container: str, closed: bool) -> str:
    """What decord may do in a container (libav's names), given closed groups of pictures or not."""
    names = container.split(",")
    if "mp4" in names or "matroska" in names:
        return "jump" if closed else "run"
    return "run" if "avi" in names else ""


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
