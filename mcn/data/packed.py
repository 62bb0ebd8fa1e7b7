"""Prepared videos without compression: shards of raw frames, for slow processors and many readers.

A shard is a file of videos one after the other. Each is its frames as planes of 8-bit YUV 4:2:0 (Y,
U, V; 1.5 bytes a pixel, half of RGB), all of one size, followed by a table with the crc32 of every
frame (4 bytes each, little-endian). The manifest knows where a video begins and the checksum of its
table. The planes are those that the scaler gives from the source, with no coding loss.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import av
import numpy as np

from mcn.data._prepared import MEND, Prepared, plane_of
from mcn.data.manifest import Entry, checksum
from mcn.data.videoinfo import VideoError


def frame_bytes(height: int, width: int) -> int:
    """Bytes of a frame: 1.5 a pixel; both sides are even.

    >>> frame_bytes(128, 170)
    32640
    """
    return height * width * 3 // 2


def planes_of(frame: Any) -> bytes:
    """The planes of a ``yuv420p`` frame without the padding of their lines."""
    return b"".join(plane_of(frame, number).tobytes() for number in range(3))


def write_frames(file: IO[bytes], frames: Iterable[Any]) -> str:
    """Write frames and their table at the file's position; gives the table's checksum."""
    table = bytearray()
    for frame in frames:
        data = planes_of(frame)
        table += struct.pack("<I", zlib.crc32(data))
        file.write(data)
    file.write(table)
    return checksum(bytes(table))


class PackedVideo(Prepared):
    """A video in a shard, opened at the first frame that is wanted."""

    def __init__(self, entry: Entry, folder: Path, path: Path | None = None) -> None:
        super().__init__(entry, folder, path)
        self._length = frame_bytes(entry.height, entry.width)
        self._file: IO[bytes] | None = None
        self._table = b""

    def _pick(self, wanted: Iterable[int]) -> Iterator[Any]:
        # One frame, filled again and again: whoever takes it is done with it before the next is asked for.
        frame = av.VideoFrame(self.entry.width, self.entry.height, "yuv420p")
        frame.colorspace, frame.color_range = self.entry.matrix, self.entry.levels
        planes = [plane_of(frame, number) for number in range(3)]
        for index in wanted:
            data, start = np.frombuffer(self._planes(index), np.uint8), 0
            for plane in planes:
                plane[...] = data[start : start + plane.size].reshape(plane.shape)
                start += plane.size
            yield frame

    def everything(self) -> Iterator[Any]:
        """All frames in order, one at a time, each checked."""
        return self._pick(range(len(self)))

    def _planes(self, index: int) -> bytes:
        """The checked bytes of frame ``index``: Y, U and V."""
        try:
            data = self._read(self._opened(), index * self._length, self._length)
        except OSError as error:
            raise VideoError(f"{self.path}: {error.strerror} ({MEND})") from None
        if zlib.crc32(data) != struct.unpack_from("<I", self._table, 4 * index)[0]:
            raise VideoError(f"{self.path}: frame {index} of {self.entry.name} has changed ({MEND})")
        return data

    def _opened(self) -> IO[bytes]:
        """The shard, once the video's table has been checked."""
        if self._file is None:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
            self._table = self._read(file, len(self) * self._length, 4 * len(self))
            if checksum(self._table) != self.entry.checksums[0]:
                file.close()
                raise VideoError(f"{self.path}: the table of {self.entry.name} has changed ({MEND})")
            self._file = file
        return self._file

    def _read(self, file: IO[bytes], start: int, size: int) -> bytes:
        file.seek(self.entry.offset + start)
        return file.read(size)

    def close(self) -> None:
        """Let the shard go."""
        if self._file is not None:
            self._file.close()
            self._file = None
