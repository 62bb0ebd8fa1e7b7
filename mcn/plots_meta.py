"""Pictures of the two-stage update on two parameters: loss surfaces side by side, with steps on them.

Like :mod:`mcn.plots`, functions and numbers in and a matplotlib figure out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure
from torch import Tensor

from mcn.errors import MCNError
from mcn.plots import Picture, toy_surface

Extent = tuple[float, float, float, float]
Arrow = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Plane:
    """A loss on the plane, what is marked on it, and which part of it is shown."""

    loss: Callable[[Tensor], Tensor]  #: points ``(N, 2)`` -> ``(N,)``
    extent: Extent  #: left, right, bottom, top
    points: Mapping[str, Sequence[float]] = field(default_factory=dict)  #: name -> (x, y)
    arrows: Mapping[str, Arrow] = field(default_factory=dict)  #: name -> (start, vector)


def planes(named: Mapping[str, Plane], title: str = "") -> Figure:
    """Loss surfaces side by side, each under its name, as :func:`mcn.plots.toy_surface` draws one.

    The two parameters are called the first and the second axis.
    Raises :class:`~mcn.errors.MCNError` for no surface and for an extent that is empty.

    >>> bowl = Plane(lambda p: p.square().sum(dim=1), (-1, 1, -1, 1), {"here": (0.5, 0.5)})
    >>> len(planes({"before": bowl, "after": bowl}).axes)
    2
    """
    if not named:
        raise MCNError("no surface to draw: give at least one")
    for name, plane in named.items():
        left, right, bottom, top = plane.extent
        if not (left < right and bottom < top):
            raise MCNError(f"surface {name!r}: extent {plane.extent} is empty: give left, right, bottom, top")
    figure = Picture(figsize=(3.5 * len(named), 3.5), layout="constrained")
    axes = figure.subplots(1, len(named), squeeze=False)[0]
    for axis, (name, plane) in zip(axes, named.items(), strict=True):
        toy_surface(
            plane.loss, points=plane.points, arrows=plane.arrows, extent=plane.extent, title=name, axis=axis
        )
        axis.set_xlabel("first axis")
    axes[0].set_ylabel("second axis")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
