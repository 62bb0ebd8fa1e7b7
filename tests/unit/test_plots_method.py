"""Pictures of the losses say what is in the tensors, and refuse what they cannot draw."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba

from mcn.errors import MCNError
from mcn.plots import RIGHT
from mcn.plots_method import answers_in_the_plane, candidate_shares, matrices


def test_matrices_share_one_scale_and_keep_their_values():
    first, second = torch.rand(3, 3), torch.rand(3, 3)
    figure = matrices({"a": first, "b": second}, labels=["x", "y", "z"], low=0.0, high=2.0)
    images = [axis.images[0] for axis in figure.axes[:2]]
    assert [image.get_clim() for image in images] == [(0.0, 2.0)] * 2
    assert np.allclose(images[1].get_array(), second)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["x", "y", "z"]
    assert figure.axes[2].get_ylabel() == "cosine"


def test_shares_put_the_positive_first_and_the_hardest_negative_next():
    cosines = torch.tensor([0.2, -0.5, 0.9, 0.4])
    figure = candidate_shares(cosines, tau=0.5, shown=2)
    heights = [[bar.get_height() for bar in axis.patches] for axis in figure.axes]
    assert heights[0] == pytest.approx([0.2, 0.9, 0.4])
    assert heights[1] == pytest.approx((cosines / 0.5).softmax(0)[[0, 2, 3]].tolist())
    assert f"{-(cosines / 0.5).log_softmax(0)[0]:.2f}" in figure.axes[1].get_title()


def test_the_plane_has_the_first_feature_to_the_right_and_true_pairs_filled():
    left, right = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, -1.0, 0.0])  # the third is outside
    labels = torch.tensor([1.0, 0.0, 1.0])
    figure = answers_in_the_plane({"h": lambda x: 9 * x[:, 0]}, left, right, labels, extent=2.0)
    axis = figure.axes[0]
    image = axis.images[0].get_array()
    assert image[50, 0] < 0.01  # z1 = -2
    assert image[50, -1] > 0.99  # z1 = 2
    assert axis.collections[1].get_offsets().tolist() == [[0.0, 0.0]]

    assert tuple(axis.collections[1].get_facecolor()[0]) == to_rgba(RIGHT)


def test_nothing_to_draw_is_said():
    one = torch.zeros(1)
    with pytest.raises(MCNError, match="at least one"):
        matrices({})
    with pytest.raises(MCNError, match=r"\(1,\)"):
        candidate_shares(one, tau=1.0)
    with pytest.raises(MCNError, match="at least one"):
        answers_in_the_plane({}, one, one, one)
