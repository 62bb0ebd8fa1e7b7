"""Archives unpacked into a folder: whole or not at all, and never outside it.

Zip and tar are read by the standard library, RAR by whichever tool is installed. A RAR archive's names are
judged before a tool sees it, and the checksums of what came out are compared with the archive's own.
Archives inside a RAR archive (HMDB51: one a class) are unpacked too.
"""

import gzip
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn

from tqdm import tqdm

from mcn.errors import MCNError
from mcn.files import first_line, write_text
from mcn.preparation._rar import Entry, read_rar
from mcn.preparation._space import need_space

__all__ = ["extract"]

_CHUNK = 1 << 20  # bytes
_Room = Callable[[int], None]  # asks for that many bytes on the disk

# In the order in which they are tried: each checks what came out of the one before it found wanting. Debian's
# 7-Zip comes without RAR; bsdtar passes wrong checksums over in silence, and older ones lack RAR 4's filters.
_TOOLS: dict[str, Callable[[str, str], list[str]]] = {
    "unar": lambda archive, out: ["-f", "-D", "-nr", "-k", "skip", "-o", out, archive],
    "unrar": lambda archive, out: ["x", "-o+", "-y", "-p-", archive],
    "7zz": lambda archive, out: ["x", "-y", "-bb1", "-p", f"-o{out}", archive],
    "7z": lambda archive, out: ["x", "-y", "-bb1", "-p", f"-o{out}", archive],
    "bsdtar": lambda archive, out: ["-x", "-v", "-f", archive, "-C", out],
}
_INSTALL = "Debian, Ubuntu: apt install unar; conda: conda install -c conda-forge libarchive"  # has bsdtar


def extract(archive: str | Path, folder: str | Path, *, progress: bool = True) -> Path:
    """Unpack a ``.rar``, ``.zip``, ``.tar`` or ``.tar.gz`` (told by content) into ``folder``; return it.

    The content appears in ``folder`` only once all of it is unpacked and verified; files of the same name
    are replaced. An archive that was unpacked there before is left alone (``.NAME.extracted`` tells by its
    size), and an interrupted call is continued by the next: of archives inside the archive only those
    missing are unpacked. Raises :class:`~mcn.errors.MCNError` for a damaged archive, for names that lead
    out of the folder and for links, where the disk has too little room, and where no tool reads RAR.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise MCNError(f"no such archive: {archive} (the verb get fetches it)")
    size = str(archive.stat().st_size)
    marker = folder / f".{archive.name}.extracted"
    if not (marker.exists() and marker.read_text(encoding="utf-8") == size):
        try:
            _extract(archive, folder, folder / f".{archive.name}.{size}.extracting", progress)
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise MCNError(f"cannot unpack {archive} into {folder}: {reason}") from error
        write_text(marker, size)
    return folder


def _extract(archive: Path, folder: Path, work: Path, progress: bool) -> None:
    """Unpack, by way of ``work``: its ``whole/`` is there only when all of the archive is in it."""
    whole = work / "whole"
    if not whole.exists():
        # Of a killed process; its tool may write on for a moment, so each process has its own part.
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix="part-", dir=work)) / "content"
        part.mkdir()
        try:
            room = partial(need_space, folder, what=f"what {archive.name} holds will")
            _reader(archive)(archive, part, room, progress)
        except MCNError:
            shutil.rmtree(work, ignore_errors=True)  # nothing of it is of use to the next call
            raise
        os.sync()  # one for all files: there may be thousands
        part.replace(whole)
    for inner in sorted(path for path in whole.rglob("*.rar") if path.is_file()):
        place = inner.relative_to(whole)
        _extract(inner, folder / place.parent, work / "inner" / place, progress)
        inner.unlink()  # what is left in whole/ is still to be done
    for path in sorted(whole.rglob("*")):
        target = folder / path.relative_to(whole)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    shutil.rmtree(work, ignore_errors=True)


def _reader(archive: Path) -> Callable[[Path, Path, _Room, bool], None]:
    with archive.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"Rar!\x1a\x07"):
        return _unrar
    if start.startswith(b"PK\x03\x04"):
        return _unzip
    if start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
        return _untar
    kind = "a web page" if start.lstrip()[:1] == b"<" else "no rar, zip or tar archive"
    raise MCNError(f"{archive} is {kind} (it begins with {start[:8]!r}): fetch it again")


def _check_name(archive: Path, name: str, plain: bool) -> None:
    if not plain:
        raise MCNError(f"{archive} holds a link or device, {name!r}: such archives are not unpacked here")
    if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise MCNError(f"{archive} holds {name!r}, which leads out of the folder: not unpacked")


def _damaged(archive: Path, error: Exception) -> MCNError:
    return MCNError(f"{archive} is damaged or cut short ({first_line(error)}): fetch it again")


def _unzip(archive: Path, out: Path, room: _Room, progress: bool) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for member in members:
                _check_name(archive, member.filename, not stat.S_ISLNK(member.external_attr >> 16))
            room(sum(member.file_size for member in members))
            for member in tqdm(members, desc=f"unpacking {archive.name}", unit="file", disable=not progress):
                file.extract(member, out)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _damaged(archive, error) from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or of a method unknown to Python
        raise MCNError(f"{archive}: {first_line(error)}: such archives are not unpacked here") from error


class _Counted:
    """A stream that knows where it is, and where its last byte that was not zero is."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.position, self.filled = stream, 0, 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        if used := len(data.rstrip(b"\0")):
            self.filled = self.position + used
        self.position += len(data)
        return data


def _untar(archive: Path, out: Path, room: _Room, progress: bool) -> None:
    size = archive.stat().st_size
    room(size)  # at least: videos hardly compress
    bar = tqdm(total=size, desc=f"unpacking {archive.name}", unit="B", unit_scale=True, disable=not progress)
    try:
        with archive.open("rb") as raw, bar:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = _Counted(gzip.GzipFile(fileobj=raw) if zipped else raw)  # type: ignore[arg-type]
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
                # Pythons before 3.10.12 have no filters; what is checked here holds for them, too.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                for member in tar:
                    _check_name(archive, member.name, member.isfile() or member.isdir())
                    tar.extract(member, out)
                    bar.update(raw.tell() - bar.n)
                while stream.read(_CHUNK):  # to the end, where gzip has its checksum
                    pass
                # tarfile takes a damaged header for the end; the true one is 1024 zeros or more.
                if stream.filled > tar.offset or stream.position < tar.offset + 1024:
                    raise tarfile.ReadError(f"no end of the archive where it should be, at byte {tar.offset}")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(archive, error) from error


def _unrar(archive: Path, out: Path, room: _Room, progress: bool) -> None:
    files = []
    for entry in read_rar(archive):
        _check_name(archive, entry.name, entry.kind != "link")
        if entry.kind == "file":
            files.append(entry)
    room(sum(entry.size for entry in files))
    tools = [tool for tool in _TOOLS if shutil.which(tool)]
    if not tools:
        raise MCNError(f"{archive}: no tool here reads RAR archives: install one ({_INSTALL}) and run again")
    # unar takes other archives in the same folder for further volumes: show it this one alone.
    alone = out.parent / "alone" / "archive.rar"
    alone.parent.mkdir()
    alone.symlink_to(archive.resolve())
    faults = []
    for tool in tools:
        with _file_bar("unpacking", archive, len(files), progress) as bar:
            fault = _run([tool, *_TOOLS[tool](str(alone.absolute()), str(out.absolute()))], out, bar)
        if not fault:
            with _file_bar("checking", archive, len(files), progress) as bar:
                fault = _difference(out, files, bar)
        if not fault:
            return
        faults.append(f"{tool}: {fault}")
        shutil.rmtree(out)
        out.mkdir()
    raise MCNError(
        f"{archive} cannot be unpacked ({faults[0]}): fetch it again, "
        f"or if it is sound, install another tool than {', '.join(tools)} ({_INSTALL})"
    )


def _file_bar(what: str, archive: Path, total: int, progress: bool) -> "tqdm[NoReturn]":
    return tqdm(total=total, desc=f"{what} {archive.name}", unit="file", disable=not progress)


def _run(command: list[str], out: Path, bar: "tqdm[NoReturn]") -> str:
    """What the tool complained of ("": nothing)."""
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=out,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,  # nobody is there to answer questions
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:  # about one for each file
                bar.update(min(1, (bar.total or 0) - bar.n))
                if line.strip() and not re.search(r"^(x|-) |\bOK\.?\s*$", line):
                    lines.append(line.strip())
        except BaseException:  # Ctrl-C: the tool must not go on without us
            process.kill()
            raise
    if process.returncode == 0:
        return ""
    words = r"(?i)\b(error|failed|cannot|can't|wrong|damaged|corrupt|truncated|unsupported)\b"
    telling = [line for line in lines if re.search(words, line)]
    return [*telling, *lines[-1:], f"exit status {process.returncode}"][0]


def _difference(out: Path, files: list[Entry], bar: "tqdm[NoReturn]") -> str:
    """How what is in ``out`` differs from what the archive says it holds ("": not at all).

    Compared as heaps of sizes and checksums: tools spell names beyond ASCII in different ways.
    """
    summed = all(entry.crc is not None for entry in files)  # RAR 5 may have other sums than CRC-32
    expected = Counter((entry.size, entry.crc if summed else None) for entry in files)
    found: Counter[tuple[int, int | None]] = Counter()
    for path in out.rglob("*"):
        if path.is_symlink():
            return f"{path.relative_to(out)} became a link"
        if path.is_file():
            found[path.stat().st_size, _crc(path) if summed else None] += 1
            bar.update()
    missing = expected - found
    for entry in files:
        if (entry.size, entry.crc if summed else None) in missing:
            return f"{entry.name} is missing or has a wrong checksum"
    return f"{(found - expected).total()} files too many" if found != expected else ""


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
