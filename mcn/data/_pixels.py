"""The arithmetic of augmentation: resize and blur as matrices, colour jitter in place.

No randomness and no policy here; ``augment.py`` decides what is done to a clip. A channel is a
plane of float32 in [0, 1]. The matrices serve both paths; the rest is one clip on a CPU, a few
frames at a time while they are in the cache of the core. ``_batched.py`` is its twin for a GPU.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)  # torchvision's luma
_BAND = 16  # output pixels computed together; measured best of 4 to 128
_CHUNK = 8  # frames augmented together; 6 to 12 measured alike, all 33 half as fast again
Band = tuple[slice, slice, Tensor]  # rows of the output, columns of the input, weights between
Colours = tuple[float, float, float, float]  # brightness, contrast, saturation, hue


def resize_matrix(
    length: int | Tensor,
    size: int,
    start: int | Tensor = 0,
    full: int | None = None,
    flip: bool | Tensor = False,
) -> Tensor:
    """Antialiased bilinear resize of ``length`` pixels to ``size``, as a matrix.

    The pixels are those from ``start`` of a line of ``full`` (by default all of it), the result is
    ``(size, full)``. Tensors ``(B, 1, 1)`` for ``length``, ``start`` and ``flip`` (0 or 1) give
    ``(B, size, full)`` on their device.
    """
    # Places are in half pixels, in which the edges of pixels are even and their centres odd: the
    # distance of two centres, pixel - output * length / size, over half the foot of the triangle,
    # 2 max(length / size, 1), is then a ratio of whole numbers and rounded once.
    length = torch.as_tensor(length, dtype=torch.float32)
    count = int(length) if full is None else full
    pixel = torch.arange(1, 2 * count, 2, dtype=torch.float32, device=length.device) - 2 * start
    output = torch.arange(1, 2 * size, 2, dtype=torch.float32, device=length.device)[:, None]
    output = 2 * size * flip + (1 - 2 * flip) * output
    distance = (pixel * size - output * length).abs_().div_(2 * length.clamp(min=size))
    weight = (1 - distance).clamp_(min=0)
    if full is not None:
        weight.mul_((pixel > 0) & (pixel < 2 * length))
    return weight.div_(weight.sum(-1, keepdim=True))


def blur_radius(sigma: float, size: int) -> int:
    """Pixels to either side that a blur reaches: three sigma, less than the line is long."""
    return min(math.ceil(3 * sigma), size - 1)


def blur_matrix(size: int, sigma: float | Tensor, radius: int | Tensor) -> Tensor:
    """Gaussian blur of a line of ``size`` pixels; the border is mirrored, as in torchvision.

    ``sigma`` and ``radius`` as tensors ``(B, 1)`` give ``(B, size, size)``; a radius of 0 is the
    identity, whatever the (positive) sigma.
    """
    device = sigma.device if isinstance(sigma, Tensor) else None
    offset = torch.arange(2 - 2 * size, 2 * size - 1, dtype=torch.float32, device=device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2) * (offset.abs() <= radius)
    # windows[..., w, j] is the weight of the offset w + j - 2 (size - 1)
    windows = (kernel / kernel.sum(-1, keepdim=True)).unfold(-1, size, 1)
    blur = windows[..., size - 1 : 2 * size - 1, :].flip(-2)  # offset j - i
    # A pixel counts again for its mirror images in the first and in the last one, which have none:
    blur[..., 1:] += windows[..., 2 * size - 2 :, 1:]  # offset i + j
    blur[..., :-1] += windows[..., :size, :-1]  # offset i + j - 2 (size - 1)
    return blur


def transform(
    clip: Tensor,
    rows: Tensor,
    columns: Tensor,
    out: Tensor,
    order: Sequence[int] = (),
    colours: Colours = (1.0, 1.0, 1.0, 0.0),
) -> None:
    """``rows @ frame @ columns.T`` for every frame and channel in [0, 1], then colour jitter.

    ``uint8 (T, H, W, C)`` -> ``float32 (C, T, size, size)``, into ``out``.
    """
    row_bands, column_bands = list(_bands(rows / 255)), list(_bands(columns))
    for some, target in zip(clip.split(_CHUNK), out.split(_CHUNK, dim=1), strict=True):
        target.copy_(_multiply(some, len(rows), row_bands, column_bands))
        jitter(target, order, colours)


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


def _bands(matrix: Tensor) -> Iterator[Band]:
    """Blocks of rows of ``matrix``, each with the slice of columns outside which they are zero.

    A pixel of the output depends on a few of the input, so most of the full product would be with
    zeros.
    """
    used = matrix.numpy() != 0
    first = used.argmax(1)
    last = used.shape[1] - used[:, ::-1].argmax(1)
    for start in range(0, len(matrix), _BAND):
        to = slice(start, start + _BAND)
        band = slice(int(first[to].min()), int(last[to].max()))
        yield to, band, matrix[to, band]


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
    clip.lerp_(grey.expand_as(clip), 1 - factor)
    if factor > 1:  # below, the result lies between two values in range
        clip.clamp_(0, 1)


def _grey(clip: Tensor) -> Tensor:
    """Luma of ``(3, ...)``."""
    return (clip[0] * GREY[0]).add_(clip[1], alpha=GREY[1]).add_(clip[2], alpha=GREY[2])


def split_turn(hue: float) -> tuple[int, float]:
    """Whole thirds of the circle in ``hue``, and what is left in sixths, -1 to 1."""
    thirds = round(hue * 3)
    return thirds, 6 * hue - 2 * thirds


def shift_hue(clip: Tensor, hue: float) -> None:
    """Turn the hue of ``(3, ...)`` by ``hue`` of the circle, in place, without going through HSV.

    Value and saturation stay, so the least (m) and greatest (M) channel stay, and each new channel
    is piecewise linear in the old ones. For a turn of ``phi`` sixths of the circle, 0 <= phi <= 1,
    from red towards green::

        R' = clamp(R - G + m + w (M - m), m, M),   w = 1 - phi where G >= B, else phi

    and so on round R -> G -> B -> R; a negative turn swaps the roles of G and B. Larger turns are
    first brought into range by thirds of the circle, which permute the channels.
    """
    thirds, phi = split_turn(hue)
    if thirds % 3:
        clip.copy_(clip.roll(thirds, 0))
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
    opposite = torch.empty_like(low)  # 1 where b >= c, else 0, as floats
    new = []
    for i, a in enumerate(ring):
        b, c = ring[(i + 1) % 3], ring[(i + 2) % 3]
        new.append((a - b).add_(near).addcmul_(torch.ge(b, c, out=opposite), further))
    for old, value in zip(ring, new, strict=True):
        torch.clamp(value, low, high, out=old)
