"""One video -> the same frames, small: as an H.264 file that is quick to jump in, or as raw planes.

Frame ``i`` of what is written is frame ``i`` of the source's sequential decode. Times are stamped
anew and evenly, so that odd times in a source cannot lose a frame. Frames stay as they are stored: a
rotation in the header is not applied, as in :mod:`mcn.data.readers`. Colours keep the source's matrix
and range and are marked with them.

The functions here run in supervised children, so they import no torch.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from mcn.data._prepared import Prepared, plane_of
from mcn.data.manifest import Entry, checksums_of
from mcn.data.packed import PackedVideo, frame_bytes, write_frames
from mcn.data.prepared import GOP, PreparedVideo, even_rate
from mcn.data.readers import ONE_THREAD, open_video
from mcn.data.videoinfo import Tick, VideoError, VideoInfo, opened, probe
from mcn.errors import MCNError
from mcn.files import write_atomically

# The usual colours of YUV, for what comes as RGB (swscale's and libav's numbers).
_FROM_RGB = {"dst_colorspace": 5, "dst_color_range": 1}
_BRIGHTNESS = 8.0  # levels of 255 by which coding may move the mean of a quarter of a frame


@dataclass(frozen=True)
class Target:
    """How a video is to be prepared: pixels of the short side, and the quantiser of H.264."""

    short_side: int
    qp: int


def small_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of the prepared frames: even, and never larger than the source's.

    >>> small_size(240, 320, 128), small_size(65, 99, 128)
    ((128, 170), (64, 98))
    """
    scale = min(1.0, short_side / min(height, width))
    tall, wide = (max(2, 2 * round(side * scale / 2 - 1e-9)) for side in (height, width))
    return min(tall, max(2, height // 2 * 2)), min(wide, max(2, width // 2 * 2))


def encode(source: str, name: str, target: Target, folder: str, file: str, *, tick: Tick) -> Entry:
    """Write ``file`` in ``folder``, the H.264 form of a video; gives its line of the manifest.

    What was written is decoded and compared before it gets its name. Raises
    :class:`~mcn.data.videoinfo.VideoError` for a source of which nothing can be read and
    :class:`~mcn.errors.MCNError` where nothing can be written.
    """
    entry, frames = _begin(source, name, target, file, tick)

    def write(out: IO[bytes]) -> None:
        nonlocal entry
        seen = _Seen(frames)
        entry = _write_h264(out, seen, entry, target.qp)
        out.flush()
        path = Path(out.name)
        entry = replace(entry, size=path.stat().st_size, checksums=checksums_of(path))
        seen.compare(PreparedVideo(entry, Path(folder), path), tick)

    write_atomically(Path(folder) / file, write)
    return entry


def pack(source: str, name: str, target: Target, shard: str, file: str, offset: int, *, tick: Tick) -> Entry:
    """Append a video to the shard that is being written at ``shard``, from ``offset`` on.

    ``file`` is the name that the shard will get. What is there beyond ``offset`` (an attempt that
    failed) is cut off. Raises as :func:`encode` does.
    """
    entry, frames = _begin(source, name, target, file, tick)
    seen = _Seen(frames)
    try:
        with open(shard, "r+b") as out:
            out.truncate(offset)
            out.seek(offset)
            table = write_frames(out, seen)
    except OSError as error:
        raise MCNError(f"cannot write {shard}: {error.strerror} (free some space)") from error
    size = entry.frames * (frame_bytes(entry.height, entry.width) + 4)
    entry = replace(entry, offset=offset, size=size, checksums=(table,), **seen.colours)
    with PackedVideo(entry, Path(), Path(shard)) as written:
        seen.compare(written, tick)
    return entry


def check(path: str, entry: Entry, *, tick: Tick) -> bool:
    """Whether the prepared file at ``path`` still holds what the manifest says of a video."""
    try:
        if not entry.packed:
            return os.path.getsize(path) == entry.size and checksums_of(Path(path)) == entry.checksums
        with PackedVideo(entry, Path(), Path(path)) as video:
            for _ in video.everything():
                tick()
    except (VideoError, OSError):
        return False
    return True


def outline(path: str, *, tick: Tick) -> VideoInfo:
    """What the header says, without decoding; frames are estimated where it does not count them."""
    with opened(path) as (container, stream):
        fps = float(stream.average_rate or 25)
        seconds = float((container.duration or 0) / av.time_base)
        return VideoInfo(stream.frames or round(seconds * fps), fps, stream.height, stream.width, decord="")


def _begin(source: str, name: str, target: Target, file: str, tick: Tick) -> tuple[Entry, Iterator[Any]]:
    """What is known before the first frame, and the scaled frames."""
    info = probe(source, tick=tick)
    height, width = small_size(info.height, info.width, target.short_side)
    bytes_ = os.path.getsize(source)
    entry = Entry(name, bytes_, info.damage, info.num_frames, info.fps, height, width, file=file)
    return entry, _scaled(source, info, height, width, tick)


def _scaled(source: str, info: VideoInfo, height: int, width: int, tick: Tick) -> Iterator[Any]:
    """The frames of a video as ``yuv420p`` of the size wanted, one at a time."""
    reformatter = VideoReformatter()
    with open_video(source, "pyav", info, tick) as video:
        for frame in video.stream():
            colours = _FROM_RGB if frame.format.is_rgb else {}
            try:
                yield reformatter.reformat(
                    frame, width, height, "yuv420p", interpolation="BICUBIC", **colours, **ONE_THREAD
                )
            except av.error.FFmpegError as error:
                what = f"frames of {frame.format.name} cannot be scaled"
                raise VideoError(f"{source}: {what} ({error.strerror})") from None


class _Seen:
    """Frames on their way to a writer; what was written is compared with what is noted of them here."""

    def __init__(self, frames: Iterator[Any]) -> None:
        self._frames = frames
        self._notes: list[np.ndarray] = []
        self.colours: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        for frame in self._frames:
            self.colours = self.colours or {"matrix": int(frame.colorspace), "levels": int(frame.color_range)}
            self._notes.append(_brightness(frame))
            yield frame

    def compare(self, written: Prepared, tick: Tick) -> None:
        """Raise :class:`~mcn.data.videoinfo.VideoError` unless ``written`` has the same frames."""
        frames: Iterable[Any] = written.everything()
        for index, (frame, note) in enumerate(zip(frames, self._notes, strict=True)):
            if np.abs(_brightness(frame) - note).max() > _BRIGHTNESS:
                raise VideoError(f"{written.path}: frame {index} came out wrong (is the disk or memory bad?)")
            tick()


def _brightness(frame: Any) -> np.ndarray:
    """Mean luma of the quarters of a frame, ``float32 (4,)``."""
    halves = np.array_split(plane_of(frame, 0), 2)
    return np.array([part.mean() for half in halves for part in np.array_split(half, 2, axis=1)], np.float32)


def _write_h264(out: IO[bytes], frames: "_Seen", entry: Entry, qp: int) -> Entry:
    """Code frames into an MP4 file; gives the entry with their colours."""
    rate = even_rate(entry.fps)
    # The file's unit of time is 1 / numerator seconds: frame i is at i * denominator exactly.
    options = {"video_track_timescale": str(rate.numerator), "fflags": "+bitexact"}
    with av.open(out, "w", format="mp4", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = entry.width, entry.height, "yuv420p"
        stream.time_base = 1 / rate
        stream.codec_context.thread_count = 1
        stream.options = _x264(qp)
        for index, frame in enumerate(frames):
            if not index:
                stream.codec_context.colorspace = frame.colorspace
                stream.codec_context.color_range = frame.color_range
            frame.pts, frame.time_base, frame.pict_type = index, 1 / rate, PictureType.NONE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return replace(entry, **frames.colours)


def _x264(qp: int) -> dict[str, str]:
    """Options of the encoder, chosen by what a clip of 33 frames costs to read.

    A fixed quantiser gives every frame of every video the same quality (42 to 46 dB at 20).
    ``fastdecode`` (no CABAC, no loop filter) halves the time of a read for a tenth of the size.
    """
    fixed = {"preset": "veryfast", "tune": "fastdecode", "bf": "0", "sc_threshold": "0", "threads": "1"}
    return {**fixed, "qp": str(qp), "g": str(GOP), "keyint_min": str(GOP)}
