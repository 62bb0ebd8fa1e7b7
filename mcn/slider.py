"""A picture with a slider in live Jupyter, and the same picture without it on a page.

A stored notebook has no kernel to answer a slider, and a static page that shows the widget shows a
blank. So the output holds both: the widget, and one picture that stands for it.
"""

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from mcn.errors import MCNError
from mcn.plots import Picture


class Slider:
    """``draw(value)`` for whole numbers from ``low`` to ``high``, starting at ``value``.

    ``draw`` gives a figure of :mod:`mcn.plots`; ``name`` stands beside the slider. As the last line of a
    cell it shows itself; where ipywidgets is missing, the picture alone. Raises
    :class:`~mcn.errors.MCNError` for a value that is out of range.

    >>> from mcn.plots import lines
    >>> def draw(power):
    ...     return lines([1, 2], {"y": [1, 2**power]}, x_label="x", y_label="y")
    >>> sorted(Slider(draw, "power", 0, 3, 2)._repr_mimebundle_())[:2]
    ['application/vnd.jupyter.widget-view+json', 'image/png']
    """

    def __init__(self, draw: Callable[[int], Figure], name: str, low: int, high: int, value: int) -> None:
        if not low <= value <= high:
            raise MCNError(f"slider {name!r}: {value} is not from {low} to {high}")
        self.draw, self.name, self.low, self.high, self.value = draw, name, low, high, value

    def __repr__(self) -> str:
        return f"Slider({self.name}: {self.low} to {self.high}, here {self.value})"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        still = _png(self.draw(self.value))
        bundle: dict[str, Any] = {"text/plain": repr(self), "image/png": still}
        try:
            import ipywidgets  # type: ignore[import-untyped]
        except ImportError:
            return bundle
        handle = ipywidgets.IntSlider(
            self.value, self.low, self.high, description=self.name, continuous_update=False
        )
        picture = ipywidgets.Image(value=still, format="png")

        def redraw(change: Any) -> None:
            picture.value = _png(self.draw(change["new"]))

        handle.observe(redraw, names="value")
        self.widget = ipywidgets.VBox([handle, picture])
        return {**self.widget._repr_mimebundle_(), **bundle}


def _png(figure: Figure) -> bytes:
    if not isinstance(figure, Picture):
        raise MCNError(f"a slider draws figures of mcn.plots, got {type(figure).__name__}")
    return figure._repr_png_()
