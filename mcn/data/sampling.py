"""Which frames a clip takes: index arithmetic only, no video is opened here.

A clip is ``length`` frames, ``stride`` frames apart. A loop that wants ``T`` residual frames asks
for ``length = T + 1`` (protocol row 14). A video that is too short is padded on the left with its
first frame: "the first frame will be repeated" (paper, Sec. 4.1).
"""

import torch

from mcn.errors import MCNError


def _check(num_frames: int, length: int, stride: int) -> None:
    """Refuse sizes for which no clip exists."""
    if num_frames < 1:
        raise MCNError(f"num_frames={num_frames}: a clip needs a video of at least one frame")
    if length < 1 or stride < 1:
        raise MCNError(f"length={length}, stride={stride}: both must be at least 1")


def _last_start(num_frames: int, length: int, stride: int) -> int:
    """The last first frame that leaves a whole clip; negative for a short video."""
    return num_frames - 1 - (length - 1) * stride


def _clip_at(start: int, length: int, stride: int) -> list[int]:
    """Indices from ``start``; what lies before the video becomes frame 0 (the padding)."""
    return [max(0, start + i * stride) for i in range(length)]


def random_clip(num_frames: int, length: int, stride: int, generator: torch.Generator) -> list[int]:
    """Frame indices of a clip whose start is uniform over all whole clips of the video.

    Gives ``length`` ascending indices in ``[0, num_frames)``; a short video is padded on the left
    with frame 0 and ends on its last frame. The generator moves by one draw either way, so one
    short video does not shift the draws that follow. Raises ``MCNError`` for sizes below 1.

    >>> random_clip(3, 5, 1, torch.Generator())
    [0, 0, 0, 1, 2]
    """
    _check(num_frames, length, stride)
    last = _last_start(num_frames, length, stride)
    start = int(torch.randint(max(last, 0) + 1, (), generator=generator))
    return _clip_at(min(start, last), length, stride)


def uniform_clips(num_frames: int, length: int, stride: int, clips: int) -> list[list[int]]:
    """Indices of ``clips`` evenly spaced clips, the first and the last whole clip among them.

    The 10-clip test protocol (row 41) with ``clips=10``; the same every time. One clip is the
    middle one. Clips overlap, or repeat, where the video is short. Raises ``MCNError`` for sizes
    below 1.

    >>> uniform_clips(10, 4, 2, 3)
    [[0, 2, 4, 6], [1, 3, 5, 7], [3, 5, 7, 9]]
    """
    _check(num_frames, length, stride)
    if clips < 1:
        raise MCNError(f"clips={clips}: ask for at least one clip a video")
    last = _last_start(num_frames, length, stride)
    if last <= 0 or clips == 1:
        starts = [min(last, last // 2)] * clips
    else:
        starts = [i * last // (clips - 1) for i in range(clips)]
    return [_clip_at(start, length, stride) for start in starts]
