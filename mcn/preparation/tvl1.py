"""TV-L1 optical flow of many image pairs at once, on any device.

The duality-based method of Zach, Pock and Bischof (2007) in the form of Sánchez, Meinhardt-Llopis
and Facciolo (IPOL, 2013). With I₀, I₁ the two images and u the flow, it minimises::

    ∫ |∇u₁| + |∇u₂| + λ |ρ(u)|,    ρ(u) = I₁(x + u⁰) + ∇I₁(x + u⁰) · (u − u⁰) − I₀(x)

by turns: a step on the data term, v = u + TH(u), and Chambolle's dual step on u = v + θ div p, with
I₁ warped anew a few times on each scale of an image pyramid. Details that the papers leave open (the
order of the steps, the borders, when to stop, the median filter) are those of OpenCV's
``createOptFlow_DualTVL1``, which the flow of the usual data sets was made with. OpenCV 5 warps at
exact positions, as we do; OpenCV 4 rounds them to 1/32 pixel.

Shapes: B pairs, 2 components (horizontal, vertical), H rows, W columns.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mcn.errors import MCNError

_SMALLEST = 16  # pixels: the pyramid ends before a side gets shorter
_FLAT = torch.finfo(torch.float32).eps  # |∇I|² below which a pixel tells nothing
# Iterations between two questions to the device whether all pairs are done: each waits for it.
_PATIENCE = 5
# Compare and exchange these pairs in turn, and five values are sorted; of seven, the middle one is.
_SORT5 = ((0, 1), (3, 4), (2, 4), (2, 3), (1, 4), (0, 3), (0, 2), (1, 3), (1, 2))
_MIDDLE7 = (
    *((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6)),
    *((2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4)),
)


@dataclass(frozen=True)
class TVL1Config:
    """The method's constants, with OpenCV's defaults.

    ``tau``, ``lam``, ``theta`` are the papers' τ, λ, θ; ``scales`` is the most levels of the pyramid,
    each ``scale_step`` times as large as the one before; on each, I₁ is warped ``warps`` times. After
    a warp there are up to ``outer`` rounds of a median filter and up to ``inner`` iterations, ended
    when u moves by no more than ``epsilon`` pixels (root mean square).
    """

    tau: float = 0.25
    lam: float = 0.15
    theta: float = 0.3
    scales: int = 5
    scale_step: float = 0.8
    warps: int = 5
    outer: int = 10
    inner: int = 30
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        for name in ("tau", "lam", "theta", "epsilon", "scales", "warps", "outer", "inner"):
            if not getattr(self, name) > 0:
                raise MCNError(f"TVL1Config: {name}={getattr(self, name)} (must be above 0)")
        if not 0 < self.scale_step < 1:
            raise MCNError(f"TVL1Config: scale_step={self.scale_step} (must lie between 0 and 1)")


@torch.no_grad()
def tvl1_flow(before: Tensor, after: Tensor, config: TVL1Config | None = None) -> Tensor:
    """Flow from ``before`` to ``after``: grey images (B, H, W) in 0..255 -> float32 (B, 2, H, W).

    In pixels: ``flow[:, 0]`` to the right, ``flow[:, 1]`` downwards. The images may be ``uint8`` or
    floating point. A pair that has converged is left alone, so that the flow of a pair does not
    depend on the others in the batch. Raises :class:`~mcn.errors.MCNError` for images of unequal
    shape, with a side under 3 pixels, or with values outside 0..255.

    >>> still = torch.full((1, 24, 32), 100, dtype=torch.uint8)
    >>> tvl1_flow(still, still).abs().max()
    tensor(0.)
    """
    config = config or TVL1Config()
    _check(before, after)
    if not len(before):
        return torch.zeros(0, 2, *before.shape[1:], device=before.device)
    pyramid = [torch.stack((before, after), 1).float()]  # (B, 2, H, W): I₀ and I₁
    while len(pyramid) < config.scales:
        size = [round(side * config.scale_step) for side in pyramid[-1].shape[-2:]]
        if min(size) < _SMALLEST:
            break
        # The step, not the ratio of the rounded sizes, says how far apart the samples are.
        pyramid.append(_resize(pyramid[-1], size, 1 / config.scale_step))
    u = torch.zeros_like(pyramid[-1])
    for images in reversed(pyramid):
        if u.shape != images.shape:
            u = _resize(u, list(images.shape[-2:])) * (1 / config.scale_step)
        u = _one_scale(images, u, config)
    return u


def _check(before: Tensor, after: Tensor) -> None:
    if before.dim() != 3 or before.shape != after.shape or before.device != after.device:
        raise MCNError(
            f"TV-L1 flow: images {tuple(before.shape)} on {before.device} and {tuple(after.shape)} on "
            f"{after.device} (give two batches of one shape (B, H, W) on one device)"
        )
    if min(before.shape[1:]) < 3:
        raise MCNError(f"TV-L1 flow: images of {before.shape[1]} x {before.shape[2]} (3 x 3 at least)")
    for images in (before, after):
        if images.dtype == torch.uint8 or not len(images):
            continue
        low, high = images.aminmax()
        if not (low >= 0 and high <= 255):  # false for NaN, too
            raise MCNError(f"TV-L1 flow: values from {low:g} to {high:g} (grey images have 0 to 255)")


def _one_scale(images: Tensor, u: Tensor, config: TVL1Config) -> Tensor:
    """The flow on one scale of the pyramid, begun at ``u`` (B, 2, H, W)."""
    first, second = images.split(1, 1)
    layers = torch.cat((second, _centred_gradient(second)), 1)  # (B, 3, H, W): I₁, ∂I₁/∂x, ∂I₁/∂y
    p = u.new_zeros(len(u), 2, *u.shape[1:])  # dual variable (B, direction, component, H, W)
    for _ in range(config.warps):
        warped, gradient = _warp(layers, u).split((1, 2), 1)
        # ρ(u) and the step are divided by |∇I₁|² here, once, rather than in every iteration.
        over = 1 / gradient.square().sum(1, keepdim=True).clamp_(min=_FLAT)
        constant = (warped - (gradient * u).sum(1, keepdim=True) - first) * over
        _minimise(u, p, (gradient.neg(), gradient * over, constant), config)
    return u


def _minimise(u: Tensor, p: Tensor, data: tuple[Tensor, ...], config: TVL1Config) -> None:
    """Rounds of a median filter and iterations on ``u`` and ``p``, in place, until each pair is done."""
    todo = torch.arange(len(u), device=u.device)
    for _ in range(config.outer):
        whole = len(todo) == len(u)  # then p need not be copied and put back
        some = data if whole else tuple(part[todo] for part in data)
        u_some, p_some = _median5(u if whole else u[todo]), p if whole else p[todo]
        moving = _iterate(u_some, p_some, some, config)
        u[todo] = u_some
        if not whole:
            p[todo] = p_some
        todo = todo[moving]
        if not len(todo):
            return


def _iterate(u: Tensor, p: Tensor, data: tuple[Tensor, ...], config: TVL1Config) -> Tensor:
    """Up to ``config.inner`` iterations in place; gives which pairs still move, bool (B,)."""
    against, along, constant = data  # −∇I₁, ∇I₁ / |∇I₁|², the part of ρ / |∇I₁|² without u
    limit, step = config.lam * config.theta, config.tau / config.theta
    enough = config.epsilon**2 * u.shape[-2] * u.shape[-1]
    wide = _wide(u.device)  # no rounding should decide when to stop
    one, slope = u.new_ones(()), torch.zeros_like(p)  # the slope stays 0 beyond the last row and column
    moving = u.new_ones(len(u), dtype=torch.bool)
    for iteration in range(config.inner):
        on = moving[:, None, None, None].to(u.dtype)  # 0 freezes a pair: u + 0, (p + 0) / (1 + 0)
        # v − u = TH(u), then u = v + θ div p
        rho = torch.addcmul(constant, along[:, :1], u[:, :1]).addcmul_(along[:, 1:], u[:, 1:])
        change = rho.clamp_(-limit, limit) * against
        _add_divergence(change, p, config.theta)
        u.addcmul_(on, change)
        moving = moving & (change.square_().sum(-1).flatten(1).sum(-1, dtype=wide) > enough)
        # p = (p + τ/θ ∇u) / (1 + τ/θ |∇u|)
        torch.sub(u[..., :, 1:], u[..., :, :-1], out=slope[:, 0, :, :, :-1])
        torch.sub(u[..., 1:, :], u[..., :-1, :], out=slope[:, 1, :, :-1, :])
        on = on * step
        steepness = torch.addcmul(one, torch.hypot(slope[:, 0], slope[:, 1]), on)
        p.addcmul_(slope, on[:, None]).div_(steepness[:, None])
        if iteration % _PATIENCE == _PATIENCE - 1 and not moving.any():
            break
    return moving


def _add_divergence(to: Tensor, p: Tensor, factor: float) -> None:
    """``to += factor * div p`` by backward differences, with p = 0 outside the image."""
    x, y = p[:, 0], p[:, 1]
    to.add_(x, alpha=factor).add_(y, alpha=factor)
    to[..., :, 1:].sub_(x[..., :, :-1], alpha=factor)
    to[..., 1:, :].sub_(y[..., :-1, :], alpha=factor)


def _centred_gradient(image: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, 2, H, W): half the difference of the neighbours, the edge repeated outside."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return torch.cat((dx, dy), 1).mul_(0.5)


def _warp(layers: Tensor, u: Tensor) -> Tensor:
    """``layers`` (B, C, H, W) at x + u, by bicubic interpolation; 0 outside the image."""
    height, width = u.shape[-2:]
    x = torch.arange(width, device=u.device, dtype=u.dtype) + u[:, 0]
    y = torch.arange(height, device=u.device, dtype=u.dtype)[:, None] + u[:, 1]
    # grid_sample takes positions from -1 to 1: exact in float64 where the sides are powers of 2.
    across, down = (1 << (side - 1).bit_length() for side in (width, height))
    x, y, layers = (tensor.to(_wide(u.device)) for tensor in (x, y, layers))
    layers = F.pad(layers, (0, across - width, 0, down - height))
    grid = torch.stack(((2 * x + 1) / across - 1, (2 * y + 1) / down - 1), -1)
    return F.grid_sample(layers, grid, "bicubic", "zeros", align_corners=False).to(u.dtype)


def _wide(device: torch.device) -> torch.dtype:
    """The widest floating point that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def _resize(images: Tensor, size: list[int], ratio: float | None = None) -> Tensor:
    """Bilinear, without smoothing: pixel centres ``ratio`` (default: of the sides) pixels apart."""
    for dim, new in ((-2, size[0]), (-1, size[1])):
        old = images.shape[dim]
        at = (torch.arange(new, dtype=torch.float64) + 0.5) * (ratio or old / new) - 0.5
        at = at.clamp(0, old - 1)
        low = at.long().clamp(max=old - 2)
        weight = (at - low).to(images.dtype).to(images.device)
        low = low.to(images.device)
        weight = weight[:, None] if dim == -2 else weight
        images = torch.lerp(images.index_select(dim, low), images.index_select(dim, low + 1), weight)
    return images


def _median5(u: Tensor) -> Tensor:
    """Median of the 5 x 5 pixels around each, the edge repeated outside; (B, C, H, W).

    Each column of five is sorted, then each rank across columns. In a square sorted both ways the 13th
    of 25 is the middle of seven: the diagonal from corner to corner, the greatest value of the
    diagonal before it, and the least of the one after it. (Every other value has 13 not above it or
    13 not below it.)
    """
    height, width = u.shape[-2:]
    padded = F.pad(u, (2, 2, 2, 2), mode="replicate")
    ranks = torch.stack(_exchange([padded[..., y : y + height, :] for y in range(5)], _SORT5))
    square = _exchange([ranks[..., x : x + width] for x in range(5)], _SORT5)
    low, high = square[3][0], square[4][1]
    for i in (1, 2, 3):
        low = torch.maximum(low, square[3 - i][i])
        high = torch.minimum(high, square[4 - i][1 + i])
    return _exchange([low, *(square[4 - i][i] for i in range(5)), high], _MIDDLE7)[3]


def _exchange(values: list[Tensor], pairs: tuple[tuple[int, int], ...]) -> list[Tensor]:
    """Put the lesser of each pair of values first."""
    for i, j in pairs:
        values[i], values[j] = torch.minimum(values[i], values[j]), torch.maximum(values[i], values[j])
    return values
