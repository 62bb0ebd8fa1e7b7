"""The bytes of a remote file into ``NAME.partial``, across cut connections and killed processes.

``NAME.partial.json`` beside it says which version of the remote file they are of, so that a file which
changed meanwhile is fetched from the start rather than mixed.
"""

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tqdm import tqdm

from mcn.errors import MCNError
from mcn.files import first_line, write_atomically
from mcn.preparation._http import BY_HAND, Web
from mcn.preparation._space import need_space

if TYPE_CHECKING:
    from requests import Response

_CHUNK = 1 << 16  # bytes: what a reset connection may cost


class Version(NamedTuple):
    """A remote file as a server states it; ``tag`` is its ETag or date, ``size`` is in bytes."""

    url: str = ""
    tag: str = ""
    size: int | None = None


def receive(web: Web, url: str, size: int | None, partial: Path, progress: bool) -> None:
    """Ask for the rest of the file until it is all here, or until nothing more comes (MCNError).

    ``size`` is the published one: a server that has another is not asked for its bytes.
    """
    from urllib3.exceptions import HTTPError

    furthest, failed = size_of(partial), 0
    name = partial.name.removesuffix(".partial")
    with tqdm(unit="B", unit_scale=True, desc=name, disable=not progress) as bar:
        while not _whole(partial, url):
            reason = "it sends less than it announces"
            try:
                if _receive_once(web, url, size, partial, bar):
                    return
            except HTTPError as error:  # the connection was cut, or silent for too long
                reason = first_line(error)
            # Measured by the furthest byte ever: starting from the first again and again is no progress.
            failed = 0 if size_of(partial) > furthest else failed + 1
            furthest = max(furthest, size_of(partial))
            if failed > web.patience.tries:
                raise MCNError(
                    f"{url}: {furthest} bytes came, {failed} further tries brought no more ({reason}): "
                    f"run again later to continue, {BY_HAND}"
                )
            if failed:
                time.sleep(web.patience.before(failed))


def _receive_once(web: Web, url: str, size: int | None, partial: Path, bar: "tqdm[NoReturn]") -> bool:
    """Append what one answer brings; whether that reached the end of the file."""
    begun, stated, headers = size_of(partial), _stated(partial), {}
    if begun and stated.url == url and stated.size is not None:
        headers["Range"] = f"bytes={begun}-"
        if stated.tag:
            headers["If-Range"] = stated.tag  # of any other version the server sends all, with status 200
    with web.open(url, headers) as response:
        offered = _offered(response, url, begun)
        if response.status_code == 200:
            begun = 0
        elif offered != stated:  # the part is of something else (416: longer than it): ask anew for all
            os.truncate(partial, 0)
            return False
        if size is not None and offered.size not in (None, size):
            raise MCNError(
                f"{url}: the server has {offered.size} bytes, {size} are expected: "
                f"it is another file by now; look for the right one, {BY_HAND}"
            )
        rest = f"the rest of {partial.name.removesuffix('.partial')} will"
        need_space(partial.parent, (offered.size or 0) - begun, rest)
        if begun == 0:
            partial.write_bytes(b"")  # before the note: a note never speaks of older bytes
            note = json.dumps(offered._asdict()).encode()
            write_atomically(note_of(partial), lambda file: file.write(note))
        bar.reset(total=offered.size)
        bar.update(begun)
        with partial.open("ab") as file:
            # The raw stream: of a file that the server calls gzip-encoded we want the bytes it counts.
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    return offered.size in (None, size_of(partial))


def _offered(response: "Response", url: str, begun: int) -> Version:
    """What the server states of the file; without size where its answer is not to the question."""
    etag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    tag = etag if etag.startswith('"') else date  # W/"..." may stay while bytes change
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return Version(url, tag, int(length) if length.isdecimal() else None)
    span = re.fullmatch(rf"bytes {begun}-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return Version(url, tag, int(span[1]) if span else None)


def _stated(partial: Path) -> Version:
    """The note about a part; where it is missing or damaged, nothing is believed of the part."""
    try:
        return Version(**json.loads(note_of(partial).read_bytes()))
    except (OSError, ValueError, TypeError):
        return Version()


def _whole(partial: Path, url: str) -> bool:
    stated = _stated(partial)
    return stated.url == url and stated.size == size_of(partial)


def partial_of(path: Path) -> Path:
    """Where the bytes of ``path`` are until it is whole."""
    return path.with_name(path.name + ".partial")


def note_of(partial: Path) -> Path:
    """The note beside a part."""
    return partial.with_name(partial.name + ".json")


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0
