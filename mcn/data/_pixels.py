"""The arithmetic of augmentation: resize and blur as matrices, colour jitter in place.

No randomness and no policy here; ``augment.py`` decides what is done to a clip. A channel is a
plane of float32 in [0, 1]; everything runs on the device the clip is on.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)  # torchvision's luma
_BAND = 16  # output pixels computed together on a CPU; measured best of 4 to 128
_CHUNK = 8  # frames augmented together on a CPU; 6 to 12 measured alike, all 33 half as fast again
Band = tuple[slice, slice, Tensor]  # rows of the output, columns of the input, weights between
Colours = tuple[float, float, float, float]  # brightness, contrast, saturation, hue


def resize_matrix(length: int, size: int) -> Tensor:
    """Antialiased bilinear resize of ``length`` pixels to ``size``, as a ``(size, length)`` matrix."""
    scale = length / size
    reach = max(scale, 1.0)  # half the foot of the triangle; wider than a pixel when shrinking
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    distance = torch.arange(length, dtype=torch.float64) + 0.5 - centre[:, None]
    weight = (1 - distance.abs() / reach).clamp_(min=0)
    return (weight / weight.sum(1, keepdim=True)).float()


def blur_matrix(matrix: Tensor, sigma: float) -> Tensor:
    """Blur the output of ``matrix``; the border is mirrored, as in torchvision."""
    size = matrix.shape[0]
    radius = min(math.ceil(3 * sigma), size - 1)
    if radius < 1:
        return matrix
    offset = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    source = (torch.arange(size)[:, None] + offset).abs()
    source = size - 1 - (size - 1 - source).abs()
    blur = torch.zeros(size, size).scatter_add_(1, source, (kernel / kernel.sum()).expand(size, -1))
    return blur @ matrix


def transform(
    clip: Tensor,
    rows: Tensor,
    columns: Tensor,
    order: Sequence[int] = (),
    colours: Colours = (1.0, 1.0, 1.0, 0.0),
    out: Tensor | None = None,
) -> Tensor:
    """``rows @ frame @ columns.T`` for every frame and channel in [0, 1], then colour jitter.

    ``uint8 (T, H, W, C)`` -> ``float32 (C, T, size, size)``. On a CPU a few frames at a time go
    through all of it, while they are in the cache of the core.
    """
    frames, channels, size = clip.shape[0], clip.shape[3], rows.shape[0]
    if out is None:
        out = torch.empty(channels, frames, size, size, device=clip.device)
    row_bands = list(_bands(rows / 255, clip.device))
    column_bands = list(_bands(columns, clip.device))
    step = _CHUNK if clip.device.type == "cpu" else frames
    for some, target in zip(clip.split(step), out.split(step, dim=1), strict=True):
        target.copy_(_multiply(some, size, row_bands, column_bands))
        jitter(target, order, colours)
    return out


def _multiply(clip: Tensor, size: int, row_bands: list[Band], column_bands: list[Band]) -> Tensor:
    """The two products; ``(T, H, W, C)`` bytes -> ``(C, T, size, size)``, floats.

    Rows of pixels come first in memory, so that either product is one of plain matrices.
    """
    frames, height, width, channels = clip.shape
    pixels = clip.permute(1, 3, 0, 2).contiguous().float()  # (H, C, T, W); as bytes while it moves
    wide = pixels.new_empty(height * channels * frames, size)
    for to, band, weights in column_bands:
        torch.mm(pixels.view(-1, width)[:, band], weights.T, out=wide[:, to])
    done = pixels.new_empty(size, channels * frames * size)
    for to, band, weights in row_bands:
        torch.mm(weights, wide.view(height, -1)[band], out=done[to])
    return done.view(size, channels, frames, size).permute(1, 2, 0, 3)


def _bands(matrix: Tensor, device: torch.device) -> Iterator[Band]:
    """Blocks of rows of ``matrix``, each with the slice of columns outside which they are zero.

    A pixel of the output depends on a few of the input, so on a CPU most of the full product would
    be with zeros; a GPU likes one full product better than many small ones.
    """
    size = matrix.shape[0]
    step = _BAND if device.type == "cpu" else size
    for start in range(0, size, step):
        block = matrix[start : start + step]
        used = block.any(0).nonzero()
        band = slice(int(used[0]), int(used[-1]) + 1)
        yield slice(start, start + step), band, block[:, band].to(device)


def jitter(clip: Tensor, order: Sequence[int], colours: Colours) -> None:
    """Colour jitter of ``(3, T, H, W)`` in place, in the order drawn, as torchvision's."""
    brightness, contrast, saturation, hue = colours
    for operation in order:
        if operation == 0:
            clip.mul_(brightness).clamp_(max=1)
        elif operation == 1:  # towards the mean of each frame
            _blend(clip, _grey(clip.mean((2, 3), keepdim=True)), contrast)
        elif operation == 2:
            _blend(clip, _grey(clip), saturation)
        else:
            shift_hue(clip, hue)


def _blend(clip: Tensor, grey: Tensor, factor: float) -> None:
    """``factor * clip + (1 - factor) * grey`` in place, kept in [0, 1]."""
    clip.mul_(factor).add_(grey, alpha=1 - factor)
    if factor > 1:  # below, the result lies between two values in range
        clip.clamp_(0, 1)


def _grey(clip: Tensor) -> Tensor:
    """Luma of ``(3, ...)``."""
    return (clip[0] * _GREY[0]).add_(clip[1], alpha=_GREY[1]).add_(clip[2], alpha=_GREY[2])


def shift_hue(clip: Tensor, hue: float) -> None:
    """Turn the hue of ``(3, ...)`` by ``hue`` of the circle, in place, without going through HSV.

    Value and saturation stay, so the least (m) and greatest (M) channel stay, and each new channel
    is piecewise linear in the old ones. For a turn of ``phi`` sixths of the circle, 0 <= phi <= 1,
    from red towards green::

        R' = clamp(R - G + m + w (M - m), m, M),   w = 1 - phi where G >= B, else phi

    and so on round R -> G -> B -> R; a negative turn swaps the roles of G and B. Larger turns are
    first brought into range by thirds of the circle, which permute the channels.
    """
    thirds = round(hue * 3)
    if thirds % 3:
        clip.copy_(clip.roll(thirds, 0))
    phi = 6 * hue - 2 * thirds
    if phi == 0:
        return
    # Of equal ways, the vectorised one: aminmax over a short dimension, where and boolean masks are
    # not, and cost twenty times as much on a CPU.
    low = torch.minimum(clip[0], clip[1]).minimum(clip[2])
    high = torch.maximum(clip[0], clip[1]).maximum(clip[2])
    chroma = high - low
    near, further = low.add(chroma, alpha=abs(phi)), chroma.mul_(1 - 2 * abs(phi))
    red, green, blue = clip.unbind(0)
    ring = (red, green, blue) if phi > 0 else (red, blue, green)
    opposite = torch.empty_like(clip)  # 1 where b >= c, else 0, as floats
    for i in range(3):
        torch.ge(ring[(i + 1) % 3], ring[(i + 2) % 3], out=opposite[i])
    new = [(ring[i] - ring[(i + 1) % 3]).add_(near) for i in range(3)]
    for old, value, where in zip(ring, new, opposite, strict=True):
        torch.clamp(value.addcmul_(where, further), low, high, out=old)
