"""What a RAR archive says it holds: names, sizes and checksums, read from its headers.

The content is unpacked by whichever tool is installed (:mod:`mcn.preparation.archives`). Tools differ in
what they check: one passes damaged files over in silence, another follows the archive to wherever its
names lead. So the names are judged before, and the checksums compared after, by what is read here. Both
formats of the public description are read: RAR 1.5-4 (UCF101 and HMDB51 come in it) and RAR 5.
"""

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from mcn.errors import MCNError

MAGIC_4, MAGIC_5 = b"Rar!\x1a\x07\x00", b"Rar!\x1a\x07\x01\x00"
_UNIX = 3  # system of origin in RAR 4


class Entry(NamedTuple):
    """A member of an archive: ``name`` with ``/`` between folders, ``size`` in bytes once unpacked."""

    name: str
    size: int
    crc: int | None
    kind: Literal["file", "folder", "link"]


def read_rar(path: Path) -> list[Entry]:
    """The members of a RAR archive, in its order; of those with one name only the last.

    Raises :class:`~mcn.errors.MCNError` where the archive is damaged, encrypted or in several volumes.
    """
    with path.open("rb") as file:
        magic = file.read(len(MAGIC_5))
        try:
            entries = list(_rar5(file) if magic == MAGIC_5 else _rar4(file))
        except (struct.error, IndexError, OverflowError, _DamagedError) as error:
            raise MCNError(f"{path} is damaged or cut short at byte {file.tell()}: fetch it again") from error
        except _UnsupportedError as error:
            raise MCNError(f"{path} is {error}: such archives are not unpacked here") from error
    return list({entry.name: entry for entry in entries}.values())


class _DamagedError(Exception): ...


class _UnsupportedError(Exception): ...


def _rar4(file: BinaryIO) -> Iterator[Entry]:
    end = file.seek(0, os.SEEK_END)
    position = file.seek(len(MAGIC_4))
    while position < end:  # archives of old versions have no block that ends them
        _, kind, flags, length = struct.unpack("<HBHH", file.read(7))
        header = file.read(length - 7) if length > 7 else b""
        if length < 7 or len(header) < length - 7:
            raise _DamagedError
        packed = struct.unpack_from("<I", header)[0] if flags & 0x8000 or kind == 0x74 else 0
        if kind in (0x74, 0x7A) and flags & 0x100:  # sizes of 64 bits
            packed += struct.unpack_from("<I", header, 25)[0] << 32
        if kind == 0x73 and flags & 0x81:
            raise _UnsupportedError("one of several volumes" if flags & 1 else "encrypted")
        if kind == 0x74:
            yield _entry4(header, flags)
        if kind == 0x7B:
            return
        position = file.seek(position + length + packed)
    if position > end:
        raise _DamagedError


def _entry4(header: bytes, flags: int) -> Entry:
    if flags & 0x07:
        raise _UnsupportedError("encrypted" if flags & 4 else "one of several volumes")
    _, size, system, crc, _, _, _, length, attributes = struct.unpack_from("<IIBIIBBHI", header)
    start = 25
    if flags & 0x100:
        size += struct.unpack_from("<I", header, start + 4)[0] << 32
        start += 8
    # Names beyond ASCII are stored twice: as bytes, and after a zero in a coding of their own. The bytes do.
    raw = header[start : start + length].partition(b"\0")[0]
    name = raw.decode("utf-8", "replace").replace("\\", "/")
    if flags & 0xE0 == 0xE0:
        return Entry(name, 0, None, "folder")
    link = system == _UNIX and stat.S_ISLNK(attributes & 0xFFFF)
    return Entry(name, size, crc, "link" if link else "file")


def _rar5(file: BinaryIO) -> Iterator[Entry]:
    end = file.seek(0, os.SEEK_END)
    position = file.seek(len(MAGIC_5))
    while position < end:
        length, start = _number(file.read(4 + 3), 4)  # behind a checksum; of three bytes at most
        file.seek(position + start)
        header = file.read(length)
        if len(header) < length:
            raise _DamagedError
        kind, at = _number(header, 0)
        flags, at = _number(header, at)
        extra, at = _number(header, at) if flags & 1 else (0, at)
        packed, at = _number(header, at) if flags & 2 else (0, at)
        if kind == 4 or flags & 0x18:
            raise _UnsupportedError("encrypted" if kind == 4 else "one of several volumes")
        if kind == 2:
            yield _entry5(header, at, len(header) - extra)
        if kind == 5:
            return
        position = file.seek(position + start + length + packed)
    raise _DamagedError  # the block that ends an archive is missing


def _entry5(header: bytes, at: int, extra: int) -> Entry:
    flags, at = _number(header, at)
    size, at = _number(header, at)
    _, at = _number(header, at)  # attributes
    at += 4 if flags & 2 else 0  # time
    crc = struct.unpack_from("<I", header, at)[0] if flags & 4 else None
    at += 4 if flags & 4 else 0
    _, at = _number(header, at)  # compression
    _, at = _number(header, at)  # system
    length, at = _number(header, at)
    name = header[at : at + length].decode("utf-8", "replace")
    records = set(_records(header, extra))
    if 1 in records:
        raise _UnsupportedError("encrypted")
    if flags & 1:
        return Entry(name, 0, None, "folder")
    return Entry(name, size, crc, "link" if 5 in records else "file")


def _records(header: bytes, at: int) -> Iterator[int]:
    """The types of the records in the extra area."""
    while at < len(header):
        length, at = _number(header, at)
        yield _number(header, at)[0]
        at += length


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, seven bits a byte, and where it ends."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
