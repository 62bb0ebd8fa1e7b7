"""Augmentation of clips: one draw a clip, applied to all its frames, on any device.

Crop, antialiased resize, flip and Gaussian blur are linear and separable, so together they are two
small matrices a clip: ``out = A_h @ frame @ A_w.T`` for each frame and channel. Colour jitter
follows on the result, in place. A CPU takes clip by clip, for its cache (``_pixels.py``; five times
as fast there as all together); any other device takes the batch at once (``_batched.py``). Both
views of a clip are computed *after* this, from one result, so they share every draw (row 15).

Strengths are CoCLR's (row 17), meanings those of torchvision's ``RandomResizedCrop`` and
``ColorJitter``, checked against them in the tests. Two deliberate differences: nothing is rounded
to 8 bits on the way, and the blur comes before the colour jitter, not after it (they commute but
for the jitter's clamps).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mcn.data._batched import augment_together, crop_together
from mcn.data._pixels import blur_matrix, blur_radius, resize_matrix, transform
from mcn.errors import MCNError

_BLUR_AT = 128  # the output size at which sigma is in pixels


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly clips are augmented (protocol row 17).

    ``size`` is the side of the output in pixels; ``area`` and ``ratio`` (width / height) bound the
    crop; ``flip``, ``jitter`` and ``blur`` are probabilities a clip; ``brightness``, ``contrast``
    and ``saturation`` are factors' distances from 1, ``hue`` a share of the colour circle;
    ``blur_sigma`` is in pixels of a 128 x 128 output and scales with ``size``, so that a small
    preset is not blurred more than the paper's.
    """

    size: int = 128
    area: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise MCNError(f"augment.size={self.size}: must be at least 1 pixel")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise MCNError(f"augment.area={self.area}: must be 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise MCNError(f"augment.ratio={self.ratio}: must be 0 < low <= high")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise MCNError(f"augment.blur_sigma={self.blur_sigma}: must be 0 < low <= high")
        for name in ("flip", "jitter", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise MCNError(f"augment.{name}={getattr(self, name)}: a probability, 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise MCNError(f"augment.{name}={getattr(self, name)}: must not be negative")
        if not 0 <= self.hue <= 0.5:
            raise MCNError(f"augment.hue={self.hue}: must be between 0 and 0.5")


@dataclass(frozen=True)
class Augmentation:
    """One draw, for one clip: plain numbers.

    The crop box is in pixels of the frame; ``order`` lists the jitter's operations as they are
    applied (0 brightness, 1 contrast, 2 saturation, 3 hue), empty for none; ``sigma`` is in pixels
    of a 128 x 128 output, 0 for no blur.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    order: tuple[int, ...] = ()
    sigma: float = 0.0


def draw_augmentation(
    config: AugmentConfig, height: int, width: int, generator: torch.Generator
) -> Augmentation:
    """Draw what is done to one clip of ``height`` x ``width`` pixels.

    >>> aug = draw_augmentation(AugmentConfig(), 128, 171, torch.Generator().manual_seed(0))
    >>> 0 <= aug.top <= aug.top + aug.height <= 128
    True
    """
    if height < 1 or width < 1:
        raise MCNError(f"cannot augment frames of {height} x {width} pixels")

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    def factor(strength: float) -> float:
        return uniform(max(0.0, 1 - strength), 1 + strength)

    top, left, crop_height, crop_width = _draw_crop(config, height, width, generator)
    flip = uniform(0, 1) < config.flip
    order = tuple(torch.randperm(4, generator=generator).tolist())
    jittered = uniform(0, 1) < config.jitter
    brightness = factor(config.brightness)
    contrast = factor(config.contrast)
    saturation = factor(config.saturation)
    hue = uniform(-config.hue, config.hue)
    blurred = uniform(0, 1) < config.blur
    sigma = uniform(*config.blur_sigma)
    box = (top, left, crop_height, crop_width)
    if not jittered:  # drawn all the same: one clip's luck does not shift the draws that follow
        return Augmentation(*box, flip, sigma=sigma * blurred)
    return Augmentation(*box, flip, brightness, contrast, saturation, hue, order, sigma * blurred)


def _draw_crop(
    config: AugmentConfig, height: int, width: int, generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height, width as torchvision's ``RandomResizedCrop.get_params`` draws them."""
    draws = torch.rand(10, 4, generator=generator, dtype=torch.float64).tolist()
    log_low, log_high = math.log(config.ratio[0]), math.log(config.ratio[1])
    for for_area, for_ratio, for_top, for_left in draws:
        low, high = config.area
        area = height * width * (low + (high - low) * for_area)
        ratio = math.exp(log_low + (log_high - log_low) * for_ratio)
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(for_top * (height - crop_height + 1))
            left = int(for_left * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    # No box fitted (a very long frame): the largest central one within the bounds of the ratio.
    ratio = min(max(width / height, config.ratio[0]), config.ratio[1])
    crop_height = min(height, max(1, round(width / ratio)))
    crop_width = min(width, max(1, round(height * ratio)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def apply_augmentation(clip: Tensor, aug: Augmentation, size: int, colour: bool = True) -> Tensor:
    """Augment one clip: ``uint8 (T, H, W, C)`` -> ``float32 (C, T, size, size)`` in [0, 1].

    ``colour=False`` is for flow images: crop and flip only, neither jitter nor blur, any number of
    channels (row 55).

    >>> clip = torch.randint(256, (3, 20, 24, 3), dtype=torch.uint8)
    >>> apply_augmentation(clip, Augmentation(2, 1, 16, 18, flip=True), 8).shape
    torch.Size([3, 3, 8, 8])
    """
    return augment_batch([clip], [aug], size, colour)[0]


def augment_batch(
    clips: Sequence[Tensor],
    augs: Sequence[Augmentation],
    size: int,
    colour: bool = True,
    device: torch.device | str | None = None,
) -> Tensor:
    """Augment clips, each ``uint8 (T, H, W, C)`` -> ``float32 (B, C, T, size, size)`` in [0, 1].

    One draw a clip; heights and widths may differ between clips, ``T`` and ``C`` may not. The work
    is done on ``device``, by default that of the clips: on a CPU clip by clip, elsewhere together.
    """
    if len(clips) != len(augs) or not clips:
        raise MCNError(f"augment_batch takes one draw a clip: {len(clips)} clips, {len(augs)} draws")
    _check_clips(clips, colour)
    for clip, aug in zip(clips, augs, strict=True):
        bottom, right = aug.top + aug.height, aug.left + aug.width
        if aug.top < 0 or aug.left < 0 or bottom > clip.shape[1] or right > clip.shape[2]:
            raise MCNError(f"crop {aug} does not fit into frames of {tuple(clip.shape[1:3])} pixels")
    if not colour:
        augs = [replace(aug, order=(), sigma=0.0) for aug in augs]
    sigmas = [aug.sigma * size / _BLUR_AT for aug in augs]
    device = clips[0].device if device is None else torch.device(device)
    if device.type != "cpu":
        return augment_together(clips, augs, sigmas, size, device)
    out = _room(clips, size)
    for clip, aug, sigma, target in zip(clips, augs, sigmas, out, strict=True):
        _augment_on_cpu(clip.cpu(), aug, sigma, target)
    return out


def _augment_on_cpu(clip: Tensor, aug: Augmentation, sigma: float, out: Tensor) -> None:
    """One clip into ``out``; ``sigma`` is in pixels of the output."""
    size = out.shape[-1]
    rows, columns = resize_matrix(aug.height, size), resize_matrix(aug.width, size, flip=aug.flip)
    if radius := blur_radius(sigma, size):
        blur = blur_matrix(size, sigma, radius)
        rows, columns = blur @ rows, blur @ columns
    box = clip[:, aug.top : aug.top + aug.height, aug.left : aug.left + aug.width]
    transform(box, rows, columns, out, aug.order, (aug.brightness, aug.contrast, aug.saturation, aug.hue))


def center_crop(clip: Tensor, size: int, resize: tuple[int, int] | None = None) -> Tensor:
    """The evaluation crop: ``uint8 (T, H, W, C)`` -> ``float32 (C, T, size, size)`` in [0, 1].

    Frames are resized to ``resize`` (height, width in pixels; by default the short side to
    ``size``, proportions kept: 128 x 171 for UCF101 at 128, row 55), then the centre is cut out.

    >>> center_crop(torch.zeros(2, 240, 320, 3, dtype=torch.uint8), 64).shape
    torch.Size([3, 2, 64, 64])
    """
    return center_crop_batch([clip], size, resize)[0]


def center_crop_batch(
    clips: Sequence[Tensor] | Tensor,
    size: int,
    resize: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """:func:`center_crop` of clips (``uint8 (B, T, H, W, C)`` or a list) on ``device``, as of a batch.

    >>> center_crop_batch(torch.zeros(5, 2, 24, 32, 3, dtype=torch.uint8), 16).shape
    torch.Size([5, 3, 2, 16, 16])
    """
    clips = list(clips)
    _check_clips(clips, False)
    device = clips[0].device if device is None else torch.device(device)

    def matrices(height: int, width: int) -> tuple[Tensor, Tensor]:
        return _center_matrices(height, width, size, resize)

    if device.type != "cpu":
        return crop_together(clips, matrices, size, device)
    out = _room(clips, size)
    for clip, target in zip(clips, out, strict=True):
        transform(clip.cpu(), *matrices(*clip.shape[1:3]), target)
    return out


def _center_matrices(
    height: int, width: int, size: int, resize: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """Rows and columns of :func:`center_crop` for frames of ``height`` x ``width`` pixels."""
    short = min(height, width)
    full_height, full_width = resize or (height * size // short, width * size // short)
    if min(full_height, full_width) < size:
        raise MCNError(f"resize={resize}: smaller than the crop of {size} pixels")
    top, left = round((full_height - size) / 2), round((full_width - size) / 2)
    rows = resize_matrix(height, full_height)[top : top + size]
    return rows, resize_matrix(width, full_width)[left : left + size]


def _room(clips: Sequence[Tensor], size: int) -> Tensor:
    """Memory for the result of a batch on the CPU."""
    frames, _, _, channels = clips[0].shape
    return torch.empty(len(clips), channels, frames, size, size)


def _check_clips(clips: Sequence[Tensor], colour: bool) -> None:
    """Refuse what is not a batch of clips as the readers give them."""
    for clip in clips:
        if clip.dim() != 4 or clip.dtype != torch.uint8:
            raise MCNError(f"a clip is uint8 (T, H, W, C), got {clip.dtype} {tuple(clip.shape)}")
        if colour and clip.shape[3] != 3:
            raise MCNError(f"colour jitter takes 3 channels, got {clip.shape[3]}: pass colour=False")
        if clip.shape[::3] != clips[0].shape[::3]:
            raise MCNError(f"clips of one batch differ: {tuple(clip.shape)} and {tuple(clips[0].shape)}")
