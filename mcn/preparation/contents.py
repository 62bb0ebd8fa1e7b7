"""What is in the files of a data set: copies, empty files, files that cannot be decoded, each by name."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path

from tqdm import tqdm

from mcn.data.index import VideoIndex
from mcn.data.layouts import Layout
from mcn.data.manifest import Entry
from mcn.data.prepared import open_prepared
from mcn.data.supervise import supervised
from mcn.data.videoinfo import VideoError, VideoInfo, probe, state_of
from mcn.preparation.parallel import parallel_map

_HEAD = 1 << 16  # bytes by which files of one size are told apart before all of them is read
_BLOCK = 1 << 20  # bytes that are read at a time
_FRAMES = 32  # frames of a prepared video that are read at a time


def empty(files: Mapping[str, Path]) -> dict[str, str]:
    """Files that have no bytes or cannot be looked at, and why."""
    bad = {}
    for name, path in files.items():
        try:
            state_of(path)
        except VideoError as error:
            bad[name] = _without(path, error)
    return bad


def same_files(files: Mapping[str, Path], bad: dict[str, str]) -> list[list[str]]:
    """Groups of names whose files have the same bytes; shows how far it is.

    Sizes tell most files apart, the first 64 KiB most of the others; the rest is read to the end. Those
    in ``bad`` are left out, those that the disk does not give are added to it, with the reason.
    """

    def content(name: str, length: int | None = None) -> bytes | str:
        try:
            return _digest(files[name], length)
        except OSError as error:
            bad[name] = error.strerror or str(error)
            return name  # like no other

    sizes = _groups([name for name in files if name not in bad], lambda name: files[name].stat().st_size)
    pairs = [name for group in sizes for name in group]
    with tqdm(total=len(pairs), desc="compare", unit="video", disable=not pairs) as bar:
        result = []
        for group in sizes:
            for alike in _groups(group, lambda name: content(name, _HEAD)):
                result += _groups(alike, content)
            bar.update(len(group))
    return sorted(result)


def same_entries(entries: Mapping[str, Entry]) -> list[list[str]]:
    """The same for prepared videos, by their checksums."""
    prepared = [name for name, entry in entries.items() if entry.file]
    return sorted(_groups(prepared, lambda name: (entries[name].size, entries[name].checksums)))


def _groups(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Names that have the same key as others, together."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        found[key(name)].append(name)
    return [sorted(group) for group in found.values() if len(group) > 1]


def _digest(path: Path, length: int | None = None) -> bytes:
    """blake2b of a file, or of its first bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if length is not None:
            digest.update(file.read(length))
        else:
            for block in iter(lambda: file.read(_BLOCK), b""):
                digest.update(block)
    return digest.digest()


def examine(path: str) -> VideoInfo | str:
    """What is in a video file, or why that cannot be told; asked of a supervised child."""
    try:
        return supervised(probe, path)
    except VideoError as error:
        return str(error)


def decode(
    files: Mapping[str, Path],
    bad: dict[str, str],
    layout: Layout,
    workers: int | None,
    dask: str,
    examine: Callable[[str], VideoInfo | str],
) -> dict[str, str]:
    """Videos that are damaged, and how; shows how far it is.

    Those in ``bad`` are left out, those that cannot be read at all are added to it, with the reason.
    What is in the data set's index already is not decoded again, and what is found out is added.
    """
    index = VideoIndex(layout.root)
    keys = {name: path.relative_to(layout.folder).as_posix() for name, path in files.items()}
    states = {name: state_of(path) for name, path in files.items() if name not in bad}
    infos = {name: known for name, state in states.items() if (known := index.get(keys[name], state))}
    todo = [name for name in states if name not in infos]
    paths = [str(files[name].absolute()) for name in todo]
    for number, told in parallel_map(examine, paths, workers=workers, dask=dask, desc="decode"):
        name = todo[number]
        if isinstance(told, str):
            bad[name] = _without(files[name], told)
        else:
            infos[name] = told
            index.add(keys[name], states[name], told)
    return {name: info.damage for name, info in infos.items() if info.damage}


def absent(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Videos that could not be prepared, and why."""
    return {name: entry.damage for name, entry in entries.items() if not entry.file}


def read_prepared(entries: Mapping[str, Entry], root: Path, workers: int | None, dask: str) -> dict[str, str]:
    """Prepared videos that cannot be read or are not what was prepared, and why; shows how far it is."""
    items = [(entry, root.absolute()) for entry in entries.values() if entry.file]
    results = parallel_map(_read_through, items, workers=workers, dask=dask, desc="read")
    return {items[number][0].name: reason for number, reason in results if reason}


def _read_through(item: tuple[Entry, Path]) -> str:
    """Read all frames; what is wrong, or nothing."""
    entry, root = item
    try:
        with open_prepared(entry, root) as video:
            for first in range(0, len(video), _FRAMES):
                video.frames(range(first, min(first + _FRAMES, len(video))))
    except VideoError as error:
        return str(error)
    return ""


def _without(path: Path, error: object) -> str:
    """The reason of an error that begins with the path."""
    return str(error).removeprefix(f"{path.absolute()}: ").removeprefix(f"{path}: ")
