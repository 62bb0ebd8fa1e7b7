"""What is known of a data set's files, kept on disk: counting a file's frames takes a decode of all of it.

One line a file in ``mcn-index.jsonl`` beside the videos, or in the user's cache folder where the data
set cannot be written to. A line counts while the file it tells of has the same size and time of
change. Many processes may add lines at the same time; what one has found the others find, too.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from contextlib import suppress
from pathlib import Path

from mcn.data.videoinfo import VideoInfo

NAME = "mcn-index.jsonl"
_RULES = 1  # raised whenever a file would be judged otherwise than before


class VideoIndex:
    """The index of the data set in ``root``. Where it cannot be written, it is empty and stays so."""

    def __init__(self, root: Path) -> None:
        self.path = _place(root)
        self._lines: dict[str, int] = {}  # name -> where its latest line begins
        self._read = 0  # bytes of the file that are in _lines

    def get(self, name: str, state: tuple[int, int]) -> VideoInfo | None:
        """What is known of video ``name``, given its present size in bytes and time of change in ns."""
        found = self._line(name, state)
        if found is None and self._catch_up():
            found = self._line(name, state)
        return found

    def add(self, name: str, state: tuple[int, int], info: VideoInfo) -> None:
        """Keep what has been found out. An index that cannot be written loses time, nothing else."""
        text = json.dumps([_RULES, name, *state, dataclasses.asdict(info)])
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One write to a file opened for appending: lines of several processes do not mix.
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line)
            finally:
                os.close(file)

    def _line(self, name: str, state: tuple[int, int]) -> VideoInfo | None:
        if name not in self._lines:
            return None
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(self._lines[name])
            entry = _parse(file.readline())
            if entry is not None and entry[1] == name and tuple(entry[2:4]) == state:
                known = dict(entry[4], restarts=tuple(map(tuple, entry[4]["restarts"])))
                return VideoInfo(**known)
        return None

    def _catch_up(self) -> bool:
        """Look at the lines that were added since; whether there were any."""
        with suppress(OSError), self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._read:  # removed and begun anew
                self._read, self._lines = 0, {}
            file.seek(self._read)
            before = self._read
            for line in file:
                if not line.endswith(b"\n"):
                    break  # not whole yet, or never to be
                entry = _parse(line)
                if entry is not None:
                    self._lines[entry[1]] = self._read
                self._read += len(line)
            return self._read > before
        return False


def _parse(line: bytes) -> list | None:
    """A line's content, or nothing for one that is torn or follows other rules."""
    crc, _, text = line.rstrip(b"\n").partition(b" ")
    if crc != f"{zlib.crc32(text):08x}".encode():
        return None
    entry = json.loads(text)
    return entry if entry[0] == _RULES else None


def _place(root: Path) -> Path:
    """Where the index of a data set lies."""
    root = root.resolve()
    # The second for root, who may write everywhere, and should not where nobody is meant to.
    if os.access(root, os.W_OK) and root.stat().st_mode & 0o222:
        return root / NAME
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:16]
    return Path(cache) / "mcn" / f"{root.name}-{digest}.jsonl"
