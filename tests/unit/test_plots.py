import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from mcn import plots
from mcn.errors import MCNError
from mcn.profiles import profile, size_for


def frames_of(*shape):
    return np.random.default_rng(0).integers(0, 255, (*shape, 6, 6, 3), dtype=np.uint8)


def test_residual_strip_shows_eq_1_on_one_scale():
    clip = torch.zeros(3, 4, 5, 5)
    clip[:, 2] = 0.5
    figure = plots.residual_strip(clip, "blink")
    heat = [axis.images[0] for axis in figure.axes[3:6]]
    assert [image.get_array().max() for image in heat] == [0.0, 0.5, 0.5]
    assert {image.get_clim() for image in heat} == {(0.0, 0.5)}
    assert "0 to 0.50" in figure.get_suptitle()


def test_residual_strip_of_a_still_clip_says_zero_and_takes_one_clip_only():
    assert "exactly 0" in plots.residual_strip(torch.full((3, 3, 4, 4), 0.3)).get_suptitle()
    with pytest.raises(ValueError, match="one clip"):
        plots.residual_strip(torch.zeros(1, 3, 3, 4, 4))


def test_loss_curves_have_a_panel_for_what_is_there():
    run = [{"step": i, "loss": 2.0, "contrast": 1.0} for i in range(3)] + [{"step": 3, "knn_top1": 4.0}]
    figure = plots.loss_curves({"a": run, "b": run[:2]}, levels={"contrast": {"floor": 0.5}})
    assert len(figure.axes) == 2
    loss, contrast = figure.axes
    assert len(loss.lines) == 4
    assert len(contrast.lines) == 5
    with pytest.raises(ValueError, match="no run"):
        plots.loss_curves({"a": [{"step": 1, "knn_top1": 1.0}]})


def test_a_level_is_named_beside_the_panel_where_no_curve_is():
    run = [{"step": i, "contrast": 8.3, "classification": 9.0} for i in range(5)]
    levels = {"contrast": {"2 log M": 8.3}, "classification": {"16 H(1/4)": 9.0}}
    figure = plots.loss_curves({"a": run}, keys=("contrast", "classification"), levels=levels)
    figure.draw_without_rendering()
    for axis in figure.axes:
        (name,) = axis.texts
        assert name.get_window_extent().x0 > axis.get_window_extent().x1
        assert name.get_window_extent().x1 <= figure.bbox.x1
    left, right = figure.axes
    assert left.texts[0].get_window_extent().x1 < right.get_window_extent().x0


def test_a_loss_is_called_eq_5_where_it_is():
    pretraining = [{"step": 1, "loss": 2.0, "contrast": 1.0, "classification": 6.0}]
    finetuning = [{"step": 1, "loss": 2.0, "top1": 50.0}]
    titles = [
        plots.loss_curves(runs, keys=("loss",)).axes[0].get_title()
        for runs in ({"a": pretraining}, {"a": finetuning}, {"a": pretraining, "b": finetuning})
    ]
    assert titles == ["meta loss (Eq. 5)", "loss", "loss"]


def test_running_mean_keeps_a_constant_and_lags_a_step():
    np.testing.assert_allclose(plots.running_mean([3.0] * 5, 0.9), 3.0)
    rising = plots.running_mean(np.arange(10.0), 0.5)
    assert (rising[1:] < np.arange(1, 10)).all()
    assert (np.diff(rising) > 0).all()


def test_pair_matrix_frames_the_diagonal_and_reddens_wrong_answers():
    figure = plots.pair_matrix(torch.tensor([0.9, 0.8, 0.1, 0.2]), torch.eye(2).ravel())
    axis = figure.axes[0]
    assert [patch.get_xy() for patch in axis.patches] == [(-0.47, -0.47), (0.53, 0.53)]
    colours = [to_hex(text.get_color()) for text in axis.texts]
    assert colours == ["#000000", plots.WRONG, "#000000", plots.WRONG]
    with pytest.raises(ValueError, match="n \\* n"):
        plots.pair_matrix([0.5] * 3, [0.5] * 3)


def test_toy_surface_draws_each_arrow_from_its_start():
    figure = plots.toy_surface(
        lambda p: p.square().sum(1),
        points={"theta": (1, 1)},
        arrows={"g": ((1, 1), (-1, 0.5)), "h": ((0, 0), (1, 0))},
    )
    (g, h) = (c for c in figure.axes[0].collections if type(c).__name__ == "Quiver")
    assert (g.X[0], g.Y[0], g.U[0], g.V[0]) == (1, 1, -1, 0.5)
    assert to_hex(g.get_facecolor()[0]) != to_hex(h.get_facecolor()[0])


def test_levels_are_named_beside_several_curves_and_whole_numbers_have_no_halves():
    curves = {"a": [1, 2, 3], "b": [3, 2, 1]}
    axis = plots.lines([1, 2, 3], curves, x_label="x", y_label="y", levels={"chance": 2}).axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b", "chance"]
    assert not axis.texts
    assert all(tick == round(tick) for tick in axis.get_xticks())
    one = plots.lines([0.5, 1.0], {"": [1, 2]}, x_label="x", y_label="y", levels={"chance": 2}).axes[0]
    assert [text.get_text() for text in one.texts] == ["chance"]


@pytest.mark.parametrize("columns", [2, 6, 12])
def test_no_strip_of_pictures_is_wider_than_a_page(columns):
    assert plots.image_grid(frames_of(1, columns)).get_size_inches()[0] <= 7.01
    clip = torch.zeros(3, columns + 1, 4, 4)
    assert plots.residual_strip(clip, columns=columns).get_size_inches()[0] <= 7.01


def test_figures_show_themselves_without_pyplot():
    figures = [
        plots.lines(
            [1, 2, 3], {"a": [1, 2, 3], "b": torch.ones(3)}, x_label="x", y_label="y", levels={"l": 2}
        ),
        plots.similarity_matrix(torch.eye(3), ["a", "b", "c"], ["a", "b", "c"]),
        plots.image_grid(frames_of(1, 2), ["row"], ["left", "right"]),
    ]
    for figure in figures:
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_profile_is_read_from_the_environment(monkeypatch):
    monkeypatch.delenv("MCN_PROFILE", raising=False)
    assert (profile(), size_for(smoke=1, laptop=2, paper=3)) == ("laptop", 2)
    monkeypatch.setenv("MCN_PROFILE", "smoke")
    assert size_for(smoke=1, laptop=2, paper=3) == 1
    monkeypatch.setenv("MCN_PROFILE", "huge")
    with pytest.raises(MCNError, match="smoke, laptop, paper"):
        profile()


def test_a_matrix_without_negatives_has_no_colour_for_its_middle_and_says_where_there_is_nothing():
    figure = plots.similarity_matrix(torch.tensor([[1.0, float("nan")]]), low=0.0)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "none"]
    assert figure.axes[0].images[0].get_cmap().name == "Blues"
    assert plots.similarity_matrix(torch.eye(2)).axes[0].images[0].get_cmap().name == "RdBu_r"


def test_a_row_of_the_ablations_has_its_colour_in_every_figure():
    for names in (["mcn", "contrast"], ["contrast-binary (seeds: 5)", "mcn (seeds: 5)", "another"]):
        colours = dict(zip(names, plots.colours_of(names), strict=True))
        assert len(set(colours.values())) == len(names)
        assert [c for name, c in colours.items() if name.startswith("mcn")] == [plots.COLOURS[3]]
    assert plots.colours_of("abcdefgh")[6:] == list(plots.COLOURS[:2])
