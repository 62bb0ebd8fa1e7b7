"""Surfaces side by side show the losses, points and steps they were given."""

import numpy as np
import pytest

from mcn.errors import MCNError
from mcn.plots_meta import Plane, planes

EXTENT = (-1.0, 2.0, -3.0, 1.0)


def bowl(points):
    return points.square().sum(dim=1)


def test_each_surface_has_its_name_its_part_of_the_plane_and_its_marks():
    step = {"a step": ((0.5, 0.5), (-0.25, 0.125))}
    figure = planes(
        {"one": Plane(bowl, EXTENT, {"here": (0.5, 0.5)}, step), "two": Plane(bowl, EXTENT)}, "both"
    )
    first, second = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    assert figure.get_suptitle() == "both"
    assert (*first.get_xlim(), *first.get_ylim()) == EXTENT
    assert [text.get_text() for text in first.texts] == ["here"]
    (quiver,) = [c for c in first.collections if hasattr(c, "U")]
    np.testing.assert_allclose([*quiver.XY[0], *quiver.U, *quiver.V], [0.5, 0.5, -0.25, 0.125])
    assert not second.texts


@pytest.mark.parametrize(
    "named", [{}, {"flat": Plane(bowl, (0, 0, 0, 1))}, {"upside down": Plane(bowl, (0, 1, 1, 0))}]
)
def test_nothing_to_draw_is_refused(named):
    with pytest.raises(MCNError, match="surface"):
        planes(named)
