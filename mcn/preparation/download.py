"""Archives from their publishers to the disk: resumed where they stopped, verified, never half a file.

``NAME`` appears only when it is whole; until then its bytes are in ``NAME.partial``. The SHA-256 of each
whole file is kept in ``SHA256SUMS`` beside it (``sha256sum -c`` reads it): where the publisher gives none,
a later ``get`` compares with the first.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NoReturn

from tqdm import tqdm

from mcn.errors import MCNError
from mcn.files import first_line, write_atomically, write_text
from mcn.preparation._http import BY_HAND, Patience, Web
from mcn.preparation._space import need_space
from mcn.preparation._transfer import note_of, partial_of, receive, size_of

__all__ = ["Patience", "RemoteFile", "download", "fetch_all", "place_in"]

_CHUNK = 1 << 20  # bytes
_SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: its address, its name here, and what is known of it (``size`` in bytes).

    >>> RemoteFile("https://example.org/pub/lists.zip", "lists.zip", size=113_943).name
    'lists.zip'
    """

    url: str
    name: str
    size: int | None = None
    sha256: str = ""


def download(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    sha256: str = "",
    ca_bundle: str | Path = "",
    progress: bool = True,
    patience: Patience | None = None,
) -> Path:
    """Fetch one file and return its path; a whole one is left alone, a begun one is continued.

    ``size`` (bytes) and ``sha256`` (hexadecimal) are those the publisher states. Certificates are always
    verified; ``ca_bundle`` is a PEM file of those to trust in place of the usual ones. Raises
    :class:`~mcn.errors.MCNError` where the disk has too little room (before the first byte is written),
    the server refuses, the connection breaks again and again without progress, or the content is not the
    expected one: then it is kept as ``NAME.corrupt``, and the next call fetches it anew.
    """
    path = Path(path)
    return _fetch(Web(ca_bundle, patience), RemoteFile(url, path.name, size, sha256), path, progress)


def fetch_all(
    remotes: Sequence[RemoteFile],
    folder: str | Path,
    *,
    source: str | Path | None = None,
    ca_bundle: str | Path = "",
    progress: bool = True,
    patience: Patience | None = None,
) -> list[Path]:
    """Bring all files into ``folder`` and return their paths; the room for all is checked first.

    ``source`` is a folder with files that are here already, or one of the files: they are verified and
    linked (copied where the file system cannot link), never changed. What is not in it is downloaded. For
    the rest see :func:`download`.
    """
    folder, web = Path(folder), Web(ca_bundle, patience)
    taken = set() if source is None else _take(remotes, Path(source), folder, progress)
    needed = 0
    for remote in remotes:
        if not (folder / remote.name).exists():
            size = web.size(remote.url) if remote.size is None else remote.size
            needed += max((size or 0) - size_of(partial_of(folder / remote.name)), 0)
    need_space(folder, needed, f"the {len(remotes)} files")
    paths = [folder / remote.name for remote in remotes]
    return [
        path if path in taken else _fetch(web, remote, path, progress)
        for remote, path in zip(remotes, paths, strict=True)
    ]


def _fetch(web: Web, remote: RemoteFile, path: Path, progress: bool) -> Path:
    if path.exists():
        if remote.size is None and not (remote.sha256 or _recorded(path)):
            remote = replace(remote, size=web.size(remote.url))  # the least that can be compared
        return _accept(path, path, remote, progress)
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        receive(web, remote.url, remote.size, partial, progress)
        return _accept(partial, path, remote, progress)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise MCNError(f"cannot write {path}: {reason} (the part is kept: run again to continue)") from error


def _accept(file: Path, path: Path, remote: RemoteFile, progress: bool) -> Path:
    """Verify ``file`` and give it its name ``path``; a wrong one becomes ``path.corrupt``."""
    fault, digest = _verify(file, path, remote, progress)
    if fault:
        corrupt = path.with_name(path.name + ".corrupt")
        file.replace(corrupt)
        note_of(file).unlink(missing_ok=True)
        raise MCNError(
            f"{path}: {fault}: it is kept as {corrupt.name}; run again to fetch it anew, {BY_HAND}"
        )
    if file != path:
        _record(path, digest)  # before the name: who finds the file finds its checksum
        file.replace(path)
        note_of(file).unlink(missing_ok=True)
    elif not _recorded(path):
        _record(path, digest)
    return path


def _take(remotes: Sequence[RemoteFile], source: Path, folder: Path, progress: bool) -> set[Path]:
    """Link what ``source`` has and ``folder`` has not; return the new paths, which are verified."""
    if not source.exists():
        raise MCNError(f"no such folder or file: {source} (--from takes the folder the archives are in)")
    named = Counter(Path(remote.name).name for remote in remotes)
    # Where parts have archives of the same names, only the folder tells whose one is.
    origins = {r: place_in(source, r, by_name=named[Path(r.name).name] == 1) for r in remotes}
    if not any(origins.values()):
        names = ", ".join(Path(remote.name).name for remote in remotes[:3])
        raise MCNError(f"{source} has none of the files looked for ({names}): is --from the right folder?")
    taken = set()
    for remote, origin in origins.items():
        path = folder / remote.name
        if origin is None or path.exists():
            continue
        fault, digest = _verify(origin, path, remote, progress)
        if fault:
            raise MCNError(f"{origin}: {fault}: fetch it again from {remote.url}")
        _link(origin, path, progress)
        _record(path, digest)
        taken.add(path)
    return taken


def place_in(source: Path, remote: RemoteFile, by_name: bool = True) -> Path | None:
    """Where ``source``, a folder or the file itself, has a file: under its path, or by its name alone."""
    name = Path(remote.name).name
    inside = [source / remote.name, *([source / name] if by_name else [])]
    places = inside if source.is_dir() else [source]
    return next((place.resolve() for place in places if place.name == name and place.is_file()), None)


def _link(origin: Path, path: Path, progress: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(origin, path)
        return
    except OSError:  # another file system, or one without links: a copy then
        need_space(path.parent, size_of(origin), f"a copy of {origin} will")

    def copy(out: IO[bytes]) -> None:
        with origin.open("rb") as file, _bar(origin, f"copying {path.name}", progress) as bar:
            while chunk := file.read(_CHUNK):
                bar.update(out.write(chunk))

    write_atomically(path, copy)


def _verify(file: Path, path: Path, remote: RemoteFile, progress: bool) -> tuple[str, str]:
    """What is wrong with ``file``, which is to be ``path`` ("": nothing), and its SHA-256."""
    if remote.size not in (None, size_of(file)):
        return f"it has {size_of(file)} bytes, {remote.size} are expected", ""
    total = hashlib.sha256()
    with file.open("rb") as stream, _bar(file, f"checking {path.name}", progress) as bar:
        while chunk := stream.read(_CHUNK):
            total.update(chunk)
            bar.update(len(chunk))
    digest, recorded = total.hexdigest(), _recorded(path)
    if remote.sha256:
        wrong = digest != remote.sha256.lower()
        return f"its SHA-256 is {digest}, the published one {remote.sha256}" if wrong else "", digest
    if recorded not in ("", digest):
        hint = f"{_SUMS} (remove its line there if the publisher has a new version)"
        return f"its SHA-256 is {digest}, {recorded} was recorded in {hint}", digest
    return "", digest


def _bar(file: Path, what: str, progress: bool) -> "tqdm[NoReturn]":
    return tqdm(total=size_of(file), unit="B", unit_scale=True, desc=what, disable=not progress)


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 by file name."""
    path = folder / _SUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}


def _recorded(path: Path) -> str:
    return _sums(path.parent).get(path.name, "")


def _record(path: Path, digest: str) -> None:
    sums = {**_sums(path.parent), path.name: digest}
    text = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    write_text(path.parent / _SUMS, text)
