import numpy as np
import pytest
import torch

from mcn.errors import MCNError
from mcn.plots_evaluation import ClipPlayer, decision_plane, intervals


def test_intervals_stand_in_order_from_the_top():
    figure = intervals({"a": (1.0, 0.5, 2.0), "b": (3.0, 3.0, 3.0)}, x_label="lift", levels={"one": 1.0})
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"]
    assert [bar.lines[0].get_xydata()[0].tolist() for bar in axis.containers] == [[1.0, 0.0], [3.0, -1.0]]
    for wrong in ({}, {"a": (1.0, 2.0, 3.0)}, {"a": (float("nan"), 0.0, 1.0)}):
        with pytest.raises(MCNError, match="low <= mean"):
            intervals(wrong, x_label="lift")


def test_intervals_of_one_group_have_one_colour():
    bars = {"a": (1.0, 0.5, 2.0), "b": (3.0, 3.0, 3.0), "c": (1.0, 0.0, 2.0)}
    for groups, alike in ((("x", "y", "x"), (False, True)), ((), (True, True))):
        axis = intervals(bars, x_label="lift", groups=groups).axes[0]
        first, *others = (bar.lines[0].get_color() for bar in axis.containers)
        assert tuple(other == first for other in others) == alike
    with pytest.raises(MCNError, match="groups of 2"):
        intervals(bars, x_label="lift", groups=("x", "y"))


def test_names_of_levels_stay_over_the_axes():
    figure = intervals(
        {"a": (50.0, 0.0, 100.0)}, x_label="x", levels={"a long name": 0.0, "another one": 100.0}
    )
    figure.draw_without_rendering()
    axis = figure.axes[0]
    left, right = (axis.transData.transform((x, 0))[0] for x in axis.get_xlim())
    for text in axis.texts:
        box = text.get_window_extent()
        assert left <= box.x0
        assert box.x1 <= right
        assert box.y0 > axis.get_window_extent().y1


def test_regions_of_a_plane_are_the_answers_at_their_points():
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    figure = decision_plane(points, torch.tensor([0, 1]), lambda x: (x[:, 0] > 0.5).long(), names="ab")
    regions = figure.axes[0].collections[0].get_array()
    assert set(np.unique(regions)) == {0, 1}
    assert (np.diff(regions, axis=1) >= 0).all()
    assert (np.diff(regions, axis=0) == 0).all()
    with pytest.raises(MCNError, match=r"\(2, 3\)"):
        decision_plane(torch.zeros(2, 3), torch.zeros(2), len, names="ab")


def test_a_player_needs_nothing_from_elsewhere_and_is_the_same_each_time():
    clip = np.random.default_rng(0).random((3, 8, 8, 3))
    html = ClipPlayer({"a": clip, "b": 1 - clip})._repr_html_()
    assert not [word for word in ("http", "<link", "fa-") if word in html.replace("w3.org", "")]
    assert html.count("data:image/png;base64") == 3
    assert html == ClipPlayer({"a": clip, "b": 1 - clip})._repr_html_()
    for wrong in ({}, {"a": clip, "b": clip[:2]}):
        with pytest.raises(MCNError, match="one length"):
            ClipPlayer(wrong)
