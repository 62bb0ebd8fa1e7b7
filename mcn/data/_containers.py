"""What the bytes of a container tell that libav does not pass on."""

import os
import re
from typing import IO, Any

_IDR = re.compile(rb"\x00\x00\x01[\x05\x25\x45\x65]")  # start code, NAL unit type 5


def bytes_missing(path: str) -> int:
    """How many bytes a file is shorter than its container says; 0 where the container does not say.

    AVI, MP4 and its like, and Matroska write the length of their parts in front of them. A file
    whose copying stopped between two packets decodes without an error, and only this tells.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"):
            length = int.from_bytes(head[4:8], "little")  # 0: the writer could not seek back
            return max(0, 8 + length - size) if length else 0
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return max(0, _matroska_size(head) - size)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            return max(0, _boxes_end(file, size) - size)
    return 0


def _boxes_end(file: IO[bytes], size: int) -> int:
    """Where the last of an MP4 file's boxes should end."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # the real one follows, in 64 bits
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file; else no box
            return at
        at += length
    return at


def _matroska_size(head: bytes) -> int:
    """Where the segment that follows the first element should end; 0 for one of unknown length."""
    length, width = _vint(head, 4)
    at = 4 + width + length
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    length, width = _vint(head, at + 4)
    return 0 if length == (1 << 7 * width) - 1 else at + 4 + width + length


def _vint(data: bytes, at: int) -> tuple[int, int]:
    """An EBML number: its value and how many bytes it takes."""
    width = 9 - data[at].bit_length() if at < len(data) else 9
    value = int.from_bytes(data[at : at + width], "big")
    return value & ((1 << 7 * min(width, 8)) - 1), width


def stands_alone(coder: Any, packet: Any) -> bool:
    """Whether decoding may begin at this keyframe, as far as frames from it onwards are concerned.

    H.264 calls pictures keyframes after which earlier ones may still be used; an IDR picture (NAL
    unit type 5) rules that out. MPEG-4 and the VP codecs rule it out unless frames are reordered.
    """
    if coder.name != "h264":
        return coder.name in ("mpeg4", "vp8", "vp9", "libvpx", "libvpx-vp9")
    data, prefixed = bytes(packet), (coder.extradata or b"")[:1] == b"\x01"
    if not prefixed:
        return _IDR.search(data) is not None
    at = 0
    while at + 4 < len(data):  # units with their length in front, as in MP4
        if data[at + 4] & 31 == 5:
            return True
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    return False
