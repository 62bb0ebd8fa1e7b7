"""Writers of archives for tests, as no tool that may be passed on writes RAR.

Stored members, in the two formats of the public description.
"""

import functools
import io
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from mcn.preparation import archives

Members = dict[str, bytes | None]  # None: a folder
TOOLS = list(archives._TOOLS)


def rar4(members: Members, system: int = 3, mode: int = 0o100644, end: bool = True) -> bytes:
    def block(body: bytes) -> bytes:
        return struct.pack("<H", zlib.crc32(body) & 0xFFFF) + body

    data = b"Rar!\x1a\x07\x00" + block(struct.pack("<BHHHI", 0x73, 0, 13, 0, 0))
    for name, content in members.items():
        raw, folder, content = name.replace("/", "\\").encode(), content is None, content or b""
        body = struct.pack(
            "<BHHIIBIIBBHI",
            *(0x74, 0x8000 | (0xE0 if folder else 0), 32 + len(raw), len(content), len(content), system),
            *(zlib.crc32(content), 0x58210000, 20, 0x30, len(raw), 0o40755 if folder else mode),
        )
        data += block(body + raw) + content
    return data + (block(struct.pack("<BHH", 0x7B, 0x4000, 7)) if end else b"")


def number(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


def rar5(members: Members, extra: bytes = b"", summed: bool = True) -> bytes:
    def block(body: bytes) -> bytes:
        body = number(len(body)) + body
        return struct.pack("<I", zlib.crc32(body)) + body

    data = b"Rar!\x1a\x07\x01\x00" + block(b"\x01\x00\x00")
    for name, content in members.items():
        raw, folder, content = name.encode(), content is None, content or b""
        with_sum = summed and not folder
        body = number(2) + number(3 if extra else 2) + (number(len(extra)) if extra else b"")
        body += number(len(content)) + number(folder + 4 * with_sum) + number(len(content))
        body += number(0o40755 if folder else 0o100644)
        body += struct.pack("<I", zlib.crc32(content)) if with_sum else b""
        data += block(body + b"\x00\x01" + number(len(raw)) + raw + extra) + content
    return data + block(b"\x05\x00\x00")


def tgz(members: Members, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if zipped else "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


def zipped(members: Members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}/" if content is None else name, content or b"")
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Members], bytes]] = {
    "rar4": rar4,
    "rar5": rar5,
    "zip": zipped,
    "tgz": tgz,
    "tar": lambda members: tgz(members, zipped=False),
}


@functools.cache
def can_read(tool: str) -> bool:
    """Whether a tool is here and reads RAR: as Debian packages it, 7-Zip does not."""
    if not shutil.which(tool):
        return False
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.rar"
        probe.write_bytes(rar4({"a": b"a"}))
        command = [tool, *archives._TOOLS[tool](str(probe), folder)]
        subprocess.run(command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL)
        return (Path(folder) / "a").is_file()


def reads_rar() -> bool:
    """Whether any tool here reads RAR."""
    return any(map(can_read, TOOLS))
