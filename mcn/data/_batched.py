"""Augmentation of a batch together: a number of kernels that does not grow with the batch.

Clip by clip, a GPU would wait for Python to launch some fifty small kernels a clip. Here every
clip's draw becomes a row of numbers in a table that is made on the CPU and sent at once; where clips
differ, the kernels read a coefficient instead of taking a branch, and nothing is ever read back. The
arithmetic is that of ``_pixels.py``, its twin for a CPU, which the tests hold it to.

Shapes: ``B`` clips, ``C`` channels, ``T`` frames, ``H`` x ``W`` pixels, ``S`` x ``S`` of the output.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mcn.data._pixels import GREY, blur_matrix, blur_radius, resize_matrix, split_turn

if TYPE_CHECKING:
    from mcn.data.augment import Augmentation

BUDGET = 1 << 30  # bytes that intermediate results take at most (one clip may take more by itself)
_PLANES = 20  # planes (S, S) a frame that colour jitter holds at its height, beside the clip's own
_BOX, _ROUND, _HUE = 7, 5, 9  # numbers a clip: where it is cut and blurred, of each round, of its turn


def augment_together(
    clips: Sequence[Tensor],
    augs: Sequence[Augmentation],
    sigmas: Sequence[float],
    size: int,
    device: torch.device,
) -> Tensor:
    """Clips, each ``uint8 (T, H, W, C)`` -> ``float32 (B, C, T, S, S)`` in [0, 1] on ``device``.

    ``sigmas`` are of the blur, in pixels of the output.
    """
    out = _empty(clips, size, device)
    for some in _chunks(clips, size):
        # Clips whose hue turns in the same round lie side by side, so that a slice takes them all.
        some.sort(key=lambda i: _hue_round(augs[i].order))
        draws = [augs[i] for i in some]
        turning, rounds = [_hue_round(draw.order) for draw in draws], max(len(draw.order) for draw in draws)
        table = [
            [i, *_box(augs[i], sigmas[i], size), *_hue(k - turning.index(turning[k]), augs[i].hue)]
            + [number for step in range(rounds) for number in _round(augs[i], step)]
            for k, i in enumerate(some)
        ]
        widths = (1, _BOX, _HUE, _ROUND * rounds)
        index, box, hues, colours = sent(torch.tensor(table), device).split(widths, dim=1)
        height, width = clips[some[0]].shape[1:3]
        rows, columns = _matrices(box, height, width, size)
        done = _multiply(_stacked([clips[i] for i in some], device), rows, columns)
        for step in range(rounds):
            _blend(done, colours[:, step * _ROUND : (step + 1) * _ROUND])
            if step in turning:
                start = turning.index(step)
                turned = slice(start, start + turning.count(step))
                _shift_hue(done[turned], hues[turned])
        out.index_copy_(0, index.flatten().long(), done)
    return out


def crop_together(
    clips: Sequence[Tensor],
    matrices: Callable[[int, int], tuple[Tensor, Tensor]],
    size: int,
    device: torch.device,
) -> Tensor:
    """The same for a crop that every clip of a size shares: ``matrices`` gives its rows and columns."""
    out = _empty(clips, size, device)
    for some in _chunks(clips, size):
        rows, columns = (
            sent(matrix, device).expand(len(some), -1, -1) for matrix in matrices(*clips[some[0]].shape[1:3])
        )
        done = _multiply(_stacked([clips[i] for i in some], device), rows, columns)
        out.index_copy_(0, sent(torch.tensor(some), device), done)
    return out


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Values of the CPU on ``device``, without waiting until it has done what it was given before."""
    pinned = values.pin_memory() if torch.device(device).type == "cuda" else values
    return pinned.to(device, non_blocking=True)


def _empty(clips: Sequence[Tensor], size: int, device: torch.device) -> Tensor:
    frames, _, _, channels = clips[0].shape
    return torch.empty(len(clips), channels, frames, size, size, device=device)


def _chunks(clips: Sequence[Tensor], size: int) -> Iterator[list[int]]:
    """Numbers of clips of one frame size, as many as the budget has room for."""
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for i, clip in enumerate(clips):
        groups[clip.shape].append(i)
    for (frames, height, width, channels), members in groups.items():
        # Pixels as bytes and as floats, after the first product, and after the second in two orders.
        floats = channels * (1.25 * height * width + height * size + 2 * size**2) + _PLANES * size**2
        room = max(1, int(BUDGET / (4 * frames * floats)))
        yield from (members[start : start + room] for start in range(0, len(members), room))


def _stacked(clips: list[Tensor], device: torch.device) -> Tensor:
    """One tensor of clips of one size on the device: a copy a clip, which overlaps where it is pinned."""
    stacked = torch.empty(len(clips), *clips[0].shape, dtype=torch.uint8, device=device)
    for slot, clip in zip(stacked, clips, strict=True):
        slot.copy_(clip, non_blocking=True)
    return stacked


def _hue_round(order: Sequence[int]) -> int:
    """The round in which the hue turns; one past all others where it does not."""
    return order.index(3) if 3 in order else len(order) + 4


def _box(aug: Augmentation, sigma: float, size: int) -> tuple[float, ...]:
    """What :func:`_matrices` takes."""
    radius = blur_radius(sigma, size)
    return aug.top, aug.left, aug.height, aug.width, aug.flip, sigma if radius else 1.0, radius


def _matrices(box: Tensor, height: int, width: int, size: int) -> tuple[Tensor, Tensor]:
    """Rows ``(B, S, H)`` and columns ``(B, S, W)``; zeros outside each clip's box."""
    top, left, high, wide, flip, sigma, radius = box[:, :, None, None].unbind(1)
    blur = blur_matrix(size, sigma[..., 0], radius[..., 0])
    rows = resize_matrix(high, size, top, height)
    columns = resize_matrix(wide, size, left, width, flip)
    return blur @ rows, blur @ columns


def _multiply(clips: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ frame @ columns.T``: ``uint8 (B, T, H, W, C)`` -> ``(B, C, T, S, S)`` in [0, 1]."""
    batch, frames, height, width, channels = clips.shape
    size = rows.shape[1]
    pixels = clips.permute(0, 2, 4, 1, 3).to(torch.float32, memory_format=torch.contiguous_format)
    wide = pixels.view(batch, -1, width) @ columns.mT  # (B, H C T, S)
    done = (rows / 255) @ wide.view(batch, height, -1)  # (B, S, C T S)
    return done.view(batch, size, channels, frames, size).permute(0, 2, 3, 1, 4).contiguous()


def _round(aug: Augmentation, step: int) -> tuple[float, float, float, float, float]:
    """What :func:`_blend` takes: factor, shares of grey and of its mean, least and greatest result.

    A clip whose hue turns in this round, or that has no more rounds, is left exactly as it is.
    """
    operation = aug.order[step] if step < len(aug.order) else None
    if operation == 0:
        return aug.brightness, 0, 0, 0, 1
    if operation == 1:
        return aug.contrast, 0, 1 - aug.contrast, 0, 1
    if operation == 2:
        return aug.saturation, 1 - aug.saturation, 0, 0, 1
    return 1, 0, 0, -math.inf, math.inf


def _blend(clips: Tensor, numbers: Tensor) -> None:
    """Brightness, contrast or saturation of ``(B, 3, T, S, S)`` in place, whichever is a clip's turn.

    All are ``factor * clip + (1 - factor) * target``: black, the mean grey of a frame, or grey.
    """
    factor, to_grey, to_mean, low, high = numbers[:, :, None, None, None].unbind(1)  # each (B, 1, 1, 1)
    red, green, blue = clips.unbind(1)
    grey = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])  # (B, T, S, S)
    mean = grey.mean((2, 3), keepdim=True) * to_mean
    target = grey.mul_(to_grey).add_(mean)
    torch.addcmul(target[:, None], clips, factor[:, None], out=clips)
    clips.clamp_(low[:, None], high[:, None])


def _hue(k: int, hue: float) -> tuple[float, ...]:
    """What :func:`_shift_hue` takes for its clip number ``k``: sixths turned, planes read, planes written.

    Read are red, green, blue, red, green for a positive turn, and red, blue, green, red, blue for a
    negative one, after the whole thirds of the circle.
    """
    thirds, phi = split_turn(hue)
    ring = (0, 1, 2) if phi > 0 else (0, 2, 1)
    read = [3 * k + (ring[i % 3] - thirds) % 3 for i in range(5)]
    return abs(phi), *read, *(3 * k + channel for channel in ring)


def _shift_hue(clips: Tensor, numbers: Tensor) -> None:
    """Turn the hue of ``(B, 3, T, S, S)`` in place, each clip by its own angle; see ``_pixels.py``."""
    planes = numbers[:, 1:].long()
    phi = numbers[:, 0].view(-1, 1, 1, 1)
    ring = clips.flatten(0, 1).index_select(0, planes[:, :5].flatten()).unflatten(0, (-1, 5))
    a, b, c = ring[:, :3], ring[:, 1:4], ring[:, 2:]  # three channels each: a channel, the next, the third
    low = torch.minimum(ring[:, 0], ring[:, 1]).minimum(ring[:, 2])
    high = torch.maximum(ring[:, 0], ring[:, 1]).maximum(ring[:, 2])
    chroma = high - low
    near, further = torch.addcmul(low, chroma, phi), chroma.mul_(1 - 2 * phi)
    opposite = torch.ge(b, c, out=torch.empty_like(b))  # as floats
    new = (a - b).add_(near[:, None]).addcmul_(opposite, further[:, None])
    new = new.flatten(0, 1).index_select(0, planes[:, 5:].flatten()).unflatten(0, (-1, 3))
    torch.clamp(new, low[:, None], high[:, None], out=clips)
