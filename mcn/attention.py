"""Activation maps (paper, Figs. 1 and 5), and a number that says how well they cover what moves.

The map is attention transfer's: the squared activations of conv5, summed over channels (protocol row
53), brought to the clip's length and size by trilinear interpolation.

The number is *this project's, not the paper's*, which shows pictures and says "focuses on the motion".
A pixel of frame n moves if it differs from frame n + 1 by more than a threshold. **Motion lift** is the
share of the map that lies on moving pixels, divided by the share of pixels that move: 1 for a map that
ignores motion, 1 / (share of moving pixels) for one that is nothing but motion. **AUC** is the
probability that the map is stronger on a moving pixel than on a still one, ties counting half.

Shapes: ``B`` clips, ``C`` channels, ``t, h, w`` cells of conv5, ``T, H, W`` frames and pixels.
"""

from dataclasses import dataclass
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mcn.backbones import S3D, VideoResNet
from mcn.errors import MCNError
from mcn.views import residual_view

#: Where a cell of conv5 is drawn: at the pixel its receptive field is centred on, or stretched over the clip.
PLACEMENTS = ("centres", "stretched")
#: Residual (mean over the channels, of full brightness 1) above which a pixel moves: 13 of 255 levels.
MOVES = 0.05
# A row or column at the edge that never gets brighter than this is a black bar, not picture.
_BAR = 0.1
# Map values closer than this share of the largest are ties: rounding must not decide a rank.
_TIE = 2.0**-20


class Grid(NamedTuple):
    """Centres of conv5's cells along t, h, w, in frames and pixels: cell i is at ``first + i * stride``."""

    stride: tuple[int, int, int]
    first: tuple[int, int, int]


def conv5_grid(backbone: nn.Module) -> Grid:
    """Where a backbone's conv5 looks.

    An odd kernel with half its width as padding is centred on the pixel it starts from, so the ResNets'
    first cell is centred on pixel 0; S3D's last pooling takes two cells without padding.
    Raises :class:`~mcn.errors.MCNError` for a module that is none of :mod:`mcn.backbones`.

    >>> from mcn.backbones import build_backbone
    >>> conv5_grid(build_backbone("r3d_small")).stride
    (8, 16, 16)
    """
    if isinstance(backbone, VideoResNet):
        return Grid((8, 16, 16), (0, 0, 0))
    if isinstance(backbone, S3D):
        return Grid((8, 32, 32), (2, 8, 8))
    raise MCNError(f"{type(backbone).__name__} is no backbone of mcn: use placement='stretched'")


def activation_energy(activations: Tensor) -> Tensor:
    """Squared activations summed over channels (:eq:`eq-attention`).

    ``(B, C, t, h, w)`` -> ``(B, t, h, w)``, float32 or wider.

    >>> activation_energy(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1, 1)).item()
    25.0
    """
    wide = activations.to(torch.promote_types(activations.dtype, torch.float32))
    return wide.square().sum(dim=1)


def upsample(maps: Tensor, shape: tuple[int, int, int], grid: Grid | None = None) -> Tensor:
    """Linear interpolation of maps ``(B, t, h, w)`` to ``(T, H, W)``, by axis (:eq:`eq-attention-upsample`).

    ``grid`` says where the cells are; beyond the outermost the map goes on as it is there. Without a grid
    the cells are stretched evenly over the clip, as ``F.interpolate(..., align_corners=False)`` does it.

    >>> upsample(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), (1, 1, 4), Grid((1, 1, 2), (0, 0, 0))).flatten()
    tensor([0.0000, 0.5000, 1.0000, 1.0000])
    """
    for axis, pixels in enumerate(shape):
        cells = maps.shape[axis + 1]
        stride = grid.stride[axis] if grid else pixels / cells
        first = grid.first[axis] if grid else (pixels / cells - 1) / 2
        weights = _interpolation(cells, pixels, stride, first).to(maps)  # (pixels, cells)
        maps = torch.tensordot(maps, weights, dims=([axis + 1], [1])).movedim(-1, axis + 1)
    return maps


def _interpolation(cells: int, pixels: int, stride: float, first: float) -> Tensor:
    """Share of each cell in each pixel, ``(pixels, cells)`` float64; rows sum to 1."""
    at = (torch.arange(pixels, dtype=torch.float64) - first) / stride
    distance = at.clamp(0, cells - 1)[:, None] - torch.arange(cells, dtype=torch.float64)
    return (1 - distance.abs()).clamp(min=0)


@torch.no_grad()
def attention_maps(backbone: nn.Module, clips: Tensor, placement: str = "centres") -> Tensor:
    """Where a backbone responds: normalised clips ``(B, 3, T, H, W)`` -> ``(B, T, H, W)``, not negative.

    Any length and size that the backbone takes. The backbone is in eval mode for this, and afterwards in
    the mode it was in. ``placement="centres"`` draws a cell where its receptive field is centred;
    ``"stretched"`` is plain resizing, which draws it up to half a cell (7.5 pixels, 3.5 frames) further
    right, down and later. Raises :class:`~mcn.errors.MCNError` for activations that are not finite.

    >>> from mcn.backbones import build_backbone
    >>> attention_maps(build_backbone("r3d_small", width=4), torch.rand(2, 3, 8, 32, 32)).shape
    torch.Size([2, 8, 32, 32])
    """
    if placement not in PLACEMENTS:
        raise MCNError(f"placement is {placement!r}: one of {', '.join(PLACEMENTS)}")
    grid = conv5_grid(backbone) if placement == "centres" else None
    was_training = backbone.training
    backbone.eval()
    # TF32 would make a map depend on the batch it was computed in.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        energy = activation_energy(backbone.maps(clips))  # type: ignore[operator]
    backbone.train(was_training)
    if not energy.isfinite().all():
        raise MCNError("the network's activations are not finite: its training has diverged")
    time, height, width = clips.shape[2:]
    return upsample(energy, (time, height, width), grid)


def times_mean(maps: Tensor) -> Tensor:
    """Maps ``(..., T, H, W)`` in units of their mean over the clip; zero where a map is zero everywhere.

    The scale of activations differs from network to network; this makes maps comparable
    (:eq:`eq-attention-mean`).
    """
    mean = maps.mean(dim=(-3, -2, -1), keepdim=True)
    return maps / mean.where(mean > 0, torch.ones_like(mean))


def moving_pixels(clip: Tensor, threshold: float = MOVES) -> Tensor:
    """Which pixels move: ``(..., 3, T + 1, H, W)`` in [0, 1] -> ``(..., T, H, W)`` bool.

    A pixel moves if its residual (Eq. 1), averaged over the three channels, is above ``threshold``
    (:eq:`eq-attention-moving`). A camera that moves makes every edge of the picture move.

    >>> moving_pixels(torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1).expand(3, 3, 1, 1)).flatten()
    tensor([ True, False])
    """
    return residual_view(clip).mean(dim=-4) > threshold


def counted_pixels(clip: Tensor) -> Tensor:
    """Which pixels can say something of motion: ``(3, T + 1, H, W)`` in [0, 1] -> ``(T, H, W)`` bool.

    Left out are frames whose next frame is the same in every pixel, i.e. the padding of a short video and
    frames that a file repeats; and black bars: rows and columns from an edge inwards which are black
    throughout the clip.
    """
    repeated = (residual_view(clip) == 0).all(dim=0).flatten(1).all(dim=1)  # (T,)
    bright = clip.amax(dim=(0, 1)) > _BAR  # (H, W)
    picture = _between(bright.any(dim=1))[:, None] & _between(bright.any(dim=0))
    return ~repeated[:, None, None] & picture


def _between(line: Tensor) -> Tensor:
    """True from the first to the last true entry of a ``(N,)`` bool tensor."""
    ones = line.int()
    return (ones.cumsum(0) > 0) & (ones.flip(0).cumsum(0).flip(0) > 0)


@dataclass(frozen=True)
class Coverage:
    """How well a map covers moving pixels (this project's measure).

    ``lift`` and ``auc`` are NaN where there is nothing to tell apart; then ``reason`` says why.
    """

    lift: float  #: share of the map on moving pixels / share of pixels that move; 1 for a uniform map
    auc: float  #: P(map on a moving pixel > map on a still one), ties half; 0.5 for a uniform map
    moving: float  #: share of the counted pixels that move, 0 to 1; 1 / moving is the largest lift
    reason: str = ""


def motion_coverage(attention: Tensor, moving: Tensor, counted: Tensor | None = None) -> Coverage:
    """Motion lift (:eq:`eq-lift`) and AUC (:eq:`eq-attention-auc`) of one clip's map, over counted pixels.

    ``attention`` is ``(T, H, W)``, not negative; ``moving`` and ``counted`` (default: all) are bool of the
    same shape, as :func:`moving_pixels` (or any other detector of motion, TV-L1 say) and
    :func:`counted_pixels` give them. Map values closer than a millionth of the largest are ties.
    Raises :class:`~mcn.errors.MCNError` for negative or non-finite maps and shapes that differ.

    >>> moving = torch.tensor([True, False, False, False]).view(1, 2, 2)
    >>> motion_coverage(torch.ones(1, 2, 2), moving)
    Coverage(lift=1.0, auc=0.5, moving=0.25, reason='')
    >>> motion_coverage(moving.float(), moving)
    Coverage(lift=4.0, auc=1.0, moving=0.25, reason='')
    """
    counted = torch.ones_like(moving) if counted is None else counted
    if not attention.shape == moving.shape == counted.shape:
        shapes = f"{tuple(attention.shape)}, {tuple(moving.shape)}, {tuple(counted.shape)}"
        raise MCNError(f"map, moving and counted pixels have one shape (T, H, W): got {shapes}")
    if not bool((attention.isfinite() & (attention >= 0)).all()):
        raise MCNError("an activation map is finite and not negative: this one is not")
    values, moves = attention[counted].double(), moving[counted]
    total, hits = values.numel(), int(moves.sum())
    share = hits / total if total else nan
    if reason := _undecided(values, hits):
        return Coverage(nan, nan, share, reason)
    # Rounded to whole multiples of a power of two: sums are exact, so is "exactly 1 for a uniform map".
    steps = (values / values.max() / _TIE).round()
    lift = float(steps[moves].sum() / steps.sum()) / share
    return Coverage(lift, _auc(steps, moves), share)


def _undecided(values: Tensor, hits: int) -> str:
    """Why a clip says nothing about a map; empty where it does."""
    if not values.numel():
        return "no picture: every frame repeats the one before, or is black"
    if not hits:
        return "no pixel moves"
    if hits == values.numel():
        return "every pixel moves"
    return "" if values.max() > 0 else "the map is zero everywhere"


def _auc(values: Tensor, positive: Tensor) -> float:
    """Mann-Whitney's U over all pairs: the area under the ROC curve, ties half. ``(N,)`` each."""
    rank, inverse = values.unique(return_inverse=True)
    above = torch.bincount(inverse[positive], minlength=len(rank)).double()
    below = torch.bincount(inverse[~positive], minlength=len(rank)).double()
    won = above * (below.cumsum(0) - below / 2)
    return float(won.sum() / (above.sum() * below.sum()))
