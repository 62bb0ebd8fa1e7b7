"""What the bytes of a container tell that libav does not pass on: whether its parts fit together.

A demuxer that loses its way looks for the next part that it knows, and says nothing of what it has
jumped over. Each of these containers writes the length of its parts in front of them, so walking
from part to part shows whether the file is whole. Only the heads of parts are read.
"""

import os
import re
from typing import IO, Any

_IDR = re.compile(rb"\x00\x00\x01[\x05\x25\x45\x65]")  # start code, NAL unit type 5
_MOVI = re.compile(rb"\d\d[a-z][a-z]|ix\d\d|LIST|JUNK|rec ")  # what stands between the frames of an AVI file
_NAME = re.compile(rb"[ -~]{4}")
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675


def walk(path: str) -> tuple[int, int]:
    """How many bytes are missing at the end, and the byte at which the parts no longer follow one another.

    Such a byte is -1 in a sound file; both are sound for a container that does not tell.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        missing, broken = 0, -1
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            missing, broken = _walk_avi(file, size)
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            missing, broken = _walk_boxes(file, size)
        elif int.from_bytes(head[:4], "big") == _EBML:
            missing, broken = _walk_matroska(file, size)
    return max(0, missing), broken


def _walk_avi(file: IO[bytes], size: int) -> tuple[int, int]:
    """RIFF chunks; those in the list of frames (``movi``) one by one."""
    at, frames_end, end = 0, 0, 0
    while at + 12 <= size:
        file.seek(at)
        head = file.read(12)
        name, length, kind = head[:4], int.from_bytes(head[4:8], "little"), head[8:]
        if name == b"RIFF":  # 0: the writer could not seek back to tell the length
            end = at + 8 + length if length else size
            at += 12
            continue
        if at >= end:
            return 0, -1  # what is behind the last RIFF is nobody's
        if not (_MOVI if at < frames_end else _NAME).fullmatch(name):
            return end - size, at
        if name == b"LIST" and kind in (b"movi", b"rec "):
            frames_end = max(frames_end, at + 8 + length)
            at += 12
        else:
            at += 8 + length + length % 2
    return max(end, at - 1) - size, -1  # a last odd chunk may lack the byte that fills it up


def _walk_boxes(file: IO[bytes], size: int) -> tuple[int, int]:
    """The boxes of an MP4 file; where its frames are stands in one of them, so there is no more to walk."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 0:  # up to the end of the file
            return 0, -1
        if length == 1:  # the real one follows, in 64 bits
            length = int.from_bytes(head[8:16], "big")
        if length < 8 or not _NAME.fullmatch(head[4:8].replace(b"\xa9", b"c")):
            return 0, at
        at += length
    return at - size, -1


def _walk_matroska(file: IO[bytes], size: int) -> tuple[int, int]:
    """EBML elements, down to those of clusters (a few frames each)."""
    at, end = 0, 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        number, width = _vint(head, 0, keep_mark=True)
        length, more = _vint(head, width)
        if width > 4 or more > 8:
            return end - size, at
        unknown = length == (1 << 7 * more) - 1
        inside = at + width + more
        if number == _SEGMENT:
            end = size if unknown else inside + length
        elif unknown and number != _CLUSTER:
            return end - size, at
        at = inside if number in (_SEGMENT, _CLUSTER) else inside + length
    return max(end, at) - size, -1


def _vint(data: bytes, at: int, keep_mark: bool = False) -> tuple[int, int]:
    """An EBML number: its value and how many bytes it takes (9: it is none)."""
    width = 9 - data[at].bit_length() if at < len(data) else 9
    value = int.from_bytes(data[at : at + width], "big")
    return value if keep_mark else value & ((1 << 7 * min(width, 8)) - 1), width


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
