"""The manifest of a prepared data set: one line a video, with what reading it needs and checks.

``manifest.jsonl`` is the journal while preparation goes on (lines as they come, the last one of a
video counts) and sorted by name when it is done. A video that could not be read is a line
without a file, so that it is missed where it is wanted, with the reason.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mcn.errors import MCNError

#: Lines of videos, and the settings, which come last: where they are, the set is complete.
MANIFEST, SETTINGS = "manifest.jsonl", "prepared.json"
#: Bytes of a file that one checksum covers: what is read of a long film is checked without all of it.
BLOCK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A line of the manifest; plain values, so it can be sent to other processes.

    ``name`` and ``source_bytes`` are the source's. ``frames`` (a count), ``fps`` (as the source
    declares; 0 where it does not), ``height`` and ``width`` in pixels are those of the prepared
    frames; ``matrix`` and ``levels`` libav's numbers for their colours. They are in ``file`` (relative
    to the set's folder; empty for a video that could not be read), from byte ``offset`` for
    ``size`` bytes. ``checksums`` are blake2b (16 bytes, in hex) of each MiB of a video file, or
    the one of a packed video's table of frame checksums. ``damage`` says what is wrong with the
    source, of which only the readable part is here.
    """

    name: str
    source_bytes: int
    damage: str = ""
    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    matrix: int = 2
    levels: int = 0
    file: str = ""
    offset: int = 0
    size: int = 0
    checksums: tuple[str, ...] = ()

    @property
    def packed(self) -> bool:
        """Whether the frames are in a shard of raw planes rather than a video file."""
        return self.file.endswith(".bin")

    @property
    def line(self) -> str:
        """The entry as a line of the manifest."""
        return json.dumps(asdict(self)) + "\n"


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Entries by name of the prepared data set in ``folder``, finished or not.

    A last line that is torn (the writer was killed) is left out; any other that is no entry raises
    :class:`~mcn.errors.MCNError`, as does a folder without a manifest.
    """
    path = folder / MANIFEST
    entries: dict[str, Entry] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith("\n"):
                    entry = _parse(path, number, line)
                    entries[entry.name] = entry
    except OSError as error:
        raise MCNError(f"{path}: {error.strerror} (is it the folder of a prepared data set?)") from None
    return entries


def _parse(path: Path, number: int, line: str) -> Entry:
    try:
        values = json.loads(line)
        return Entry(**{**values, "checksums": tuple(values["checksums"])})
    except (ValueError, TypeError, KeyError) as error:
        raise MCNError(
            f"{path}, line {number}: not an entry of prepared data ({error}; remove the line, prepare again)"
        ) from None


def checksum(data: bytes | memoryview) -> str:
    """blake2b of 16 bytes, in hex: what ``b2sum -l 128`` prints.

    >>> checksum(b"frames")
    '663d329ff12b382a0a2f8583533ac386'
    """
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def checksums_of(path: Path) -> tuple[str, ...]:
    """The checksum of each block of a file, in order."""
    with path.open("rb") as file:
        return tuple(checksum(block) for block in iter(lambda: file.read(BLOCK), b""))
