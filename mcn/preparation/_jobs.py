"""The work of preparation, cut so that any worker can do any piece of it: see :mod:`mcn.preparation.prepare`.

A piece is one video file, or the shards of a group of videos. What it writes depends on its sources
alone. Decoding happens in supervised children; this module imports no torch either, as workers of a
cluster load it.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mcn.data.manifest import Entry
from mcn.data.supervise import supervised
from mcn.data.videoinfo import VideoError
from mcn.files import write_atomically
from mcn.preparation import transcode
from mcn.preparation.transcode import Target

_GROUP = 32  # videos that go into shards together, at most; small sets are cut into _PIECES
_PIECES = 64
_SHARD = 1 << 29  # bytes after which a shard takes no other video; only a film makes one of over 1 GiB


@dataclass(frozen=True)
class Job:
    """One piece of work: sources (by name: their paths) that go into ``file`` in ``folder``.

    ``file`` is a video file, or what the names of a group's shards begin with (``packed``). ``known`` is
    what the manifest says of these videos already.
    """

    folder: str
    sources: tuple[tuple[str, str], ...]
    file: str
    packed: bool
    target: Target
    known: tuple[Entry, ...] = ()


def plan(
    sources: dict[str, str], folder: Path, packed: bool, target: Target, known: dict[str, Entry]
) -> list[Job]:
    """All jobs of a data set; where a video goes follows from the names of all of them."""
    names = sorted(sources)
    if packed:
        size = min(_GROUP, -(-len(names) // _PIECES))
        groups = [names[i : i + size] for i in range(0, len(names), size)]
        files: Iterable[str] = (f"packed/shard-{number:05d}" for number in range(len(groups)))
    else:
        groups, files = [[name] for name in names], file_names(names)
    return [
        Job(
            str(folder),
            tuple((name, sources[name]) for name in group),
            file,
            packed,
            target,
            tuple(known[name] for name in group if name in known),
        )
        for group, file in zip(groups, files, strict=True)
    ]


def file_names(names: Sequence[str]) -> list[str]:
    """Where prepared video files lie, for the sources' names in order.

    Sources that differ in their suffix only (or in case, which some disks do not tell apart) keep it.

    >>> file_names(["a/b.avi", "a/c.avi", "a/c.mkv"])
    ['videos/a/b.mp4', 'videos/a/c.mp4', 'videos/a/c.mkv.mp4']
    """
    taken: set[str] = set()
    files = []
    for name in names:
        stem = os.path.splitext(name)[0]
        while stem.casefold() in taken:
            stem = name if stem != name and name.casefold() not in taken else f"{stem}_"
        taken.add(stem.casefold())
        files.append(f"videos/{stem}.mp4")
    return files


def run_job(job: Job) -> tuple[Entry, ...]:
    """Do one piece of work, unless its result is there, whole; gives a manifest entry for each source.

    The entry of a source that cannot be read has no file, and says why. Raises
    :class:`~mcn.errors.MCNError` where nothing can be written.
    """
    if _done(job):
        return job.known
    return tuple(_pack(job) if job.packed else _encode(job))


def _done(job: Job) -> bool:
    """Whether the manifest knows all sources as they are now, and the files are what it says."""
    known = {entry.name: entry for entry in job.known}
    for name, source in job.sources:
        entry = known.get(name)
        if entry is None or not entry.file.startswith(job.file) or not os.path.isfile(source):
            return False
        path = os.path.join(job.folder, entry.file)
        if os.path.getsize(source) != entry.source_bytes or not supervised(transcode.check, path, entry):
            return False
    return True


def _encode(job: Job) -> Iterator[Entry]:
    for name, source in job.sources:
        try:
            yield supervised(transcode.encode, source, name, job.target, job.folder, job.file)
        except VideoError as error:
            yield _unreadable(name, source, error)


def _pack(job: Job) -> Iterator[Entry]:
    """Fill one shard after the other."""
    waiting = list(job.sources)
    number = 0
    while waiting:
        file, entries = f"{job.file}-{number}.bin", list[Entry]()

        def fill(out: IO[bytes], file: str = file, entries: list[Entry] = entries) -> None:
            end = 0
            while waiting and end < _SHARD:
                name, source = waiting.pop(0)
                try:
                    entry = supervised(transcode.pack, source, name, job.target, str(out.name), file, end)
                except VideoError as error:
                    entry = _unreadable(name, source, error)
                entries.append(entry)
                end += entry.size
            out.truncate(end)  # what a video left that failed half-way

        write_atomically(Path(job.folder) / file, fill)
        yield from entries
        number += 1


def _unreadable(name: str, source: str, error: VideoError) -> Entry:
    size = os.path.getsize(source) if os.path.isfile(source) else 0
    return Entry(name, size, damage=str(error).removeprefix(f"{source}: "))
