"""Reading prepared videos: nothing is decoded that has not been checked, and little that is not wanted.

A prepared file has its keyframes evenly spaced, no reordered frames and even times (frame ``i`` at
``i`` ticks), so a reader can jump to the keyframe before a frame and know by its time which frame
it has. The bytes are compared with the manifest's checksums on their way to the decoder. They are
those that were decoded once, when they were written, so no supervision is needed to decode them.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av

from mcn.data._prepared import MEND, Prepared
from mcn.data.manifest import BLOCK, Entry, checksum
from mcn.data.packed import PackedVideo
from mcn.data.videoinfo import VideoError

#: Frames from one keyframe to the next.
GOP = 12


def open_prepared(entry: Entry, folder: Path) -> Prepared:
    """Open a video of the prepared data set in ``folder``; use it in a ``with`` block.

    It has the interface of :class:`mcn.data.readers.Video`. Raises
    :class:`~mcn.data.videoinfo.VideoError` for a video that preparation could not read.
    """
    if not entry.file:
        raise VideoError(f"{folder}: {entry.name} could not be prepared ({entry.damage})")
    return PackedVideo(entry, folder) if entry.packed else PreparedVideo(entry, folder)


def even_rate(fps: float) -> Fraction:
    """The frame rate that a prepared file is stamped with: ``fps`` as a fraction, 25 where it makes no sense.

    >>> even_rate(29.97002997002997), even_rate(0)
    (Fraction(30000, 1001), Fraction(25, 1))
    """
    return Fraction(fps).limit_denominator(1001) if 0.01 <= fps <= 1000 else Fraction(25)


class PreparedVideo(Prepared):
    """An open prepared video file."""

    def _pick(self, wanted: list[int]) -> Iterator[Any]:
        with self._opened() as (container, stream):
            decoder: Iterator[tuple[int, Any]] = iter(())
            coming = -1  # the frame that the decoder would give next; none yet
            for target in wanted:
                if coming < 0 or target - target % GOP > coming:
                    decoder = self._numbered(target, container, stream)
                index, frame = next((pair for pair in decoder if pair[0] >= target), (-1, None))
                if index != target:
                    raise VideoError(f"{self.path}: frame {target} is not in it ({MEND})")
                coming = target + 1
                yield frame

    def everything(self) -> Iterator[Any]:
        """All frames in order, one at a time.

        Raises :class:`~mcn.data.videoinfo.VideoError` where they are not as many as the manifest says.
        """
        count = 0
        with self._opened() as (container, stream):
            for index, frame in self._numbered(0, container, stream):
                if index != count:
                    break
                yield frame
                count += 1
        if count != len(self):
            raise VideoError(f"{self.path}: frame {count} is not where it belongs ({MEND})")

    def _numbered(self, first: int, container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
        """Frames with their numbers, from the keyframe before ``first`` to the end."""
        tick = even_rate(self.fps).denominator  # in the file's units, of 1 / numerator seconds
        container.seek(first * tick, stream=stream)
        for frame in container.decode(stream):
            yield frame.pts // tick, frame

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """A PyAV container over the checked bytes, and its stream."""
        try:
            with CheckedFile(self.path, self.entry) as file, av.open(file, format="mp4") as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                yield container, stream
        except (OSError, ValueError, IndexError, av.error.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise VideoError(f"{self.path}: {reason} ({MEND})") from None


class CheckedFile(io.RawIOBase):
    """A prepared file, read in blocks that are compared with their checksums first.

    Raises :class:`~mcn.data.videoinfo.VideoError` for one of another size and for a block that differs.
    """

    def __init__(self, path: str, entry: Entry) -> None:
        self.path, self._checksums = path, entry.checksums
        self._file: IO[bytes] = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        self._size, self._at = self._file.seek(0, io.SEEK_END), 0
        self._block, self._number, self._changed = b"", -1, False
        if self._size != entry.size:
            self.close()
            raise VideoError(f"{path}: has {self._size} bytes, not {entry.size} ({MEND})")

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes, up to the end of a block; none at the end of the file."""
        # libav asks again after an error, and of two exceptions PyAV prints one with its traceback.
        if self._at >= self._size or self._changed:
            return b""
        number, inside = divmod(self._at, BLOCK)
        if number != self._number:
            self._load(number)
        data = self._block[inside:] if size < 0 else self._block[inside : inside + size]
        self._at += len(data)
        return data

    def _load(self, number: int) -> None:
        self._file.seek(number * BLOCK)
        block = self._file.read(BLOCK)
        if checksum(block) != self._checksums[number]:
            self._changed = True
            raise VideoError(f"{self.path}: its bytes have changed since it was prepared ({MEND})")
        self._block, self._number = block, number

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; gives it."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        """The present position."""
        return self._at

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Let the file go."""
        self._file.close()
        super().close()
