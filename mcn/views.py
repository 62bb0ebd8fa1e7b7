"""The views of a clip (paper, Sec. 3.2): RGB frames, residual frames (Eq. 1), optical flow.

Shapes: ``B`` clips, ``C`` channels, ``T`` frames, ``H`` x ``W`` pixels. A clip arrives as
``T + 1`` frames in [0, 1] so that ``T`` residual frames exist without wrapping round.
"""

from torch import Tensor

#: Names of the views a network may be trained on; the first is always RGB.
SECOND_VIEWS = ("residual", "signed_residual", "flow_u", "flow_v")

# ImageNet's channel statistics, as in CoCLR and PCL (protocol row 16).
_RGB_MEAN = (0.485, 0.456, 0.406)
_RGB_STD = (0.229, 0.224, 0.225)
# A residual is small and one-sided: its own scale, no shift, so a still scene stays exactly zero.
_RESIDUAL_STD = 0.1
# Flow is stored as 8 bits with 128 for "no motion" and +-20 pixels at the ends (protocol row 48).
_FLOW_ZERO = 128 / 255
_FLOW_STD = 0.1


def residual_view(clip: Tensor, *, signed: bool = False) -> Tensor:
    r"""Residual frames of a clip: :math:`|Frame_n - Frame_{n+1}|` (:eq:`eq-residual`, Eq. 1).

    ``clip`` is ``(..., T + 1, H, W)``, usually ``(B, C, T + 1, H, W)``, floating point; the result
    is ``(..., T, H, W)`` in the same units. ``signed=True`` leaves the absolute value out, as IIC
    does. Raises ``ValueError`` for fewer than two frames or integer pixels, whose difference wraps.

    >>> import torch
    >>> residual_view(torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1)).flatten()
    tensor([1.0000, 0.5000])
    """
    if not clip.is_floating_point():
        raise ValueError(f"residual_view takes floating-point pixels, got {clip.dtype}: divide uint8 by 255")
    if clip.dim() < 3 or clip.shape[-3] < 2:
        raise ValueError(f"residual_view takes (..., T + 1, H, W) with T >= 1, got {tuple(clip.shape)}")
    difference = clip[..., :-1, :, :] - clip[..., 1:, :, :]
    return difference if signed else difference.abs_()


def rgb_view(clip: Tensor) -> Tensor:
    """The first ``T`` of ``T + 1`` frames: ``(..., T + 1, H, W)`` -> ``(..., T, H, W)``.

    >>> import torch
    >>> rgb_view(torch.zeros(2, 3, 9, 4, 4)).shape
    torch.Size([2, 3, 8, 4, 4])
    """
    return clip[..., :-1, :, :]


def normalise(clip: Tensor, view: str) -> Tensor:
    """Scale a view to about unit size for the network; ``clip`` is ``(B, 3, T, H, W)``.

    RGB: ImageNet mean and standard deviation. Residual: divided by its own scale, no shift.
    Flow (8-bit images in [0, 1]): zero motion to 0, then divided by its scale.

    >>> import torch
    >>> normalise(torch.zeros(1, 3, 2, 2, 2), "residual").abs().max()
    tensor(0.)
    """
    if view == "rgb":
        mean = clip.new_tensor(_RGB_MEAN).view(1, 3, 1, 1, 1)
        return (clip - mean).div_(clip.new_tensor(_RGB_STD).view(1, 3, 1, 1, 1))
    if view in ("residual", "signed_residual"):
        return clip / _RESIDUAL_STD
    if view in ("flow_u", "flow_v"):
        return (clip - _FLOW_ZERO) / _FLOW_STD
    raise ValueError(f"unknown view {view!r}: one of rgb, {', '.join(SECOND_VIEWS)}")


def make_views(clip: Tensor, view2: str = "residual", flow: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both views of a batch, normalised, as the network takes them.

    ``clip`` is ``(B, 3, T + 1, H, W)`` in [0, 1]; ``flow`` is ``(B, 3, T, H, W)`` in [0, 1] (the one
    flow channel three times) and only asked for by the flow views. Both results are
    ``(B, 3, T, H, W)``.

    >>> import torch
    >>> rgb, residual = make_views(torch.rand(2, 3, 9, 8, 8))
    >>> rgb.shape == residual.shape == (2, 3, 8, 8, 8)
    True
    """
    rgb = normalise(rgb_view(clip), "rgb")
    if view2 in ("residual", "signed_residual"):
        return rgb, normalise(residual_view(clip, signed=view2 == "signed_residual"), view2)
    if view2 not in SECOND_VIEWS:
        raise ValueError(f"unknown second view {view2!r}: one of {', '.join(SECOND_VIEWS)}")
    if flow is None:
        raise ValueError(f"view2={view2!r} needs the stored flow of the clip: pass flow=")
    return rgb, normalise(flow, view2)
