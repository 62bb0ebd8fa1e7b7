"""Pictures of indices and matrices say what the numbers say; a slider shows the picture it stands for."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from mcn.errors import MCNError
from mcn.plots import lines
from mcn.plots_data import clip_map, matrix_product
from mcn.slider import Slider


def squares(figure):
    """Of each row: left edges of frames taken, and of repeats."""
    patches = [p for p in figure.axes[0].patches if p.get_linewidth() == 0.6]  # not the video's bars
    rows = {}
    for patch in patches:
        taken, repeated = rows.setdefault(round(patch.get_y() + 0.36), ([], []))
        (repeated if patch.get_hatch() else taken).append(round(patch.get_x() + 0.5))
    return rows


def test_frames_lie_where_they_are_and_repeats_left_of_the_video():
    figure = clip_map(6, {"short": [0, 0, 0, 2, 4], "whole": [1, 2, 3], "start": [0, 1]})
    assert squares(figure) == {0: ([0, 2, 4], [-2, -1]), 1: ([1, 2, 3], []), 2: ([0, 1], [])}
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["short", "whole", "start"]
    assert "frame 0 again" in figure.axes[0].get_xlabel()
    assert "again" not in clip_map(6, {"whole": [1, 2, 3]}).axes[0].get_xlabel()


def test_a_clip_of_a_video_of_one_frame_is_all_padding_but_one():
    assert squares(clip_map(1, {"a": [0, 0, 0]})) == {0: ([0], [-2, -1])}


@pytest.mark.parametrize("clips", [{}, {"a": []}, {"a": [0, 6]}, {"a": [-1, 2]}])
def test_a_clip_map_refuses_what_is_no_frame(clips):
    with pytest.raises(MCNError, match="video of 6 frames"):
        clip_map(6, clips)


def test_a_matrix_product_shows_its_factors_and_the_product():
    rng = np.random.default_rng(0)
    frame, rows, columns = rng.random((5, 6, 3)), rng.random((2, 5)) / 5, rng.random((2, 6)) / 6
    figure = matrix_product(frame, rows, columns)
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    np.testing.assert_allclose(shown[0], rows, rtol=1e-6)
    np.testing.assert_allclose(shown[2], columns.T, rtol=1e-6)
    for channel in range(3):
        np.testing.assert_allclose(shown[3][..., channel], rows @ frame[..., channel] @ columns.T, rtol=1e-5)
    assert [axis.get_xlabel() for axis in figure.axes] == ["2 × 5", "5 × 6", "6 × 2", "2 × 2"]
    with pytest.raises(MCNError, match="do not fit"):
        matrix_product(frame, columns, rows)


def draw(value):
    return lines([0, 1], {"y": [0, value]}, x_label="x", y_label="y")


def test_a_slider_stores_the_widget_and_its_picture_and_redraws():
    pytest.importorskip("ipywidgets")
    slider = Slider(draw, "n", 1, 5, 2)
    bundle = slider._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["image/png"] == draw(2)._repr_png_()
    assert bundle["text/plain"] == "Slider(n: 1 to 5, here 2)"
    handle, picture = slider.widget.children
    assert (handle.min, handle.max, handle.value) == (1, 5, 2)
    handle.value = 4
    assert picture.value == draw(4)._repr_png_()


def test_without_ipywidgets_the_picture_is_shown_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert set(Slider(draw, "n", 1, 5, 2)._repr_mimebundle_()) == {"text/plain", "image/png"}


def test_a_slider_refuses_what_it_cannot_show():
    with pytest.raises(MCNError, match="9 is not from 1 to 5"):
        Slider(draw, "n", 1, 5, 9)
    with pytest.raises(MCNError, match="draws figures of"):
        Slider(lambda value: Figure(), "n", 1, 5, 2)._repr_mimebundle_()
