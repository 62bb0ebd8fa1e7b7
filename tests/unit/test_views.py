"""Views: Eq. 1 by hand and the properties that follow from it."""

import pytest
import torch

from mcn.views import SECOND_VIEWS, make_views, normalise, residual_view, rgb_view


def _clip(frames: int = 9, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, frames, 5, 6, generator=generator, dtype=dtype)


def test_residual_is_eq_1_written_as_a_loop():
    clip = _clip()
    expected = torch.empty(2, 3, 8, 5, 6, dtype=torch.float64)
    for n in range(8):
        expected[:, :, n] = (clip[:, :, n] - clip[:, :, n + 1]).abs()
    assert torch.equal(residual_view(clip), expected)


def test_residual_by_hand():
    pixels = torch.tensor([0.25, 1.0, 0.5, 0.5]).view(4, 1, 1)
    assert residual_view(pixels).flatten().tolist() == [0.75, 0.5, 0.0]
    assert residual_view(pixels, signed=True).flatten().tolist() == [-0.75, 0.5, 0.0]


def test_a_still_clip_has_an_exactly_zero_residual():
    still = _clip(1, dtype=torch.float32).expand(-1, -1, 9, -1, -1)
    assert not residual_view(still).any()
    assert not make_views(still)[1].any()  # normalising a residual has no shift


def test_t_plus_1_frames_give_t():
    clip = _clip(9)
    assert residual_view(clip).shape == rgb_view(clip).shape == (2, 3, 8, 5, 6)
    assert torch.equal(rgb_view(clip), clip[:, :, :8])


def test_no_wrap_from_the_last_frame_to_the_first():
    clip = torch.zeros(1, 1, 5, 1, 1)
    clip[:, :, 0] = 1.0
    assert residual_view(clip).flatten().tolist() == [1.0, 0.0, 0.0, 0.0]
    clip = clip.flip(2)  # now only the extra frame differs: it must reach the last residual alone
    assert residual_view(clip).flatten().tolist() == [0.0, 0.0, 0.0, 1.0]


def test_signed_and_absolute_differ_by_sign_only():
    clip = _clip()
    signed = residual_view(clip, signed=True)
    assert (signed < 0).any()
    assert torch.equal(signed.abs(), residual_view(clip))


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_residual_is_linear_in_brightness(scale):
    clip = _clip()  # a power of two scales without rounding, so equality is exact
    assert torch.equal(residual_view(scale * clip), scale * residual_view(clip))


def test_residual_ignores_a_constant_added_to_all_frames():
    clip = _clip()
    # Two subtractions of numbers below 2: each result within an ulp of 2.
    torch.testing.assert_close(residual_view(clip + 1), residual_view(clip), rtol=0, atol=1e-15)


def test_residual_of_the_reversed_clip_is_reversed():
    clip = _clip()
    assert torch.equal(residual_view(clip.flip(2)), residual_view(clip).flip(2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_integer_pixels_raise(dtype):
    with pytest.raises(ValueError, match="floating-point"):
        residual_view(torch.zeros(3, 9, 4, 4, dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 3, 1, 4, 4), (4, 4)])
def test_fewer_than_two_frames_raise(shape):
    with pytest.raises(ValueError, match=r"T \+ 1"):
        residual_view(torch.zeros(shape))


def test_rgb_normalisation_gives_imagenet_pixels_zero_mean_and_unit_deviation():
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)
    assert not normalise(mean, "rgb").any()
    # (mean + std) - mean rounds to an ulp of 1, divided by a deviation of .2.
    torch.testing.assert_close(normalise(mean + std, "rgb"), torch.ones_like(mean), atol=1e-6, rtol=0)


def test_residual_normalisation_is_a_scale():
    clip = _clip()
    assert torch.equal(normalise(clip, "residual"), clip / 0.1)


@pytest.mark.parametrize("view", ["flow_u", "flow_v"])
def test_flow_of_value_128_is_exactly_zero_motion(view):
    stored = torch.full((1, 3, 2, 4, 4), 128, dtype=torch.uint8)
    assert not normalise(stored.float() / 255, view).any()
    assert (normalise((stored + 1).float() / 255, view) > 0).all()


def test_make_views_is_the_two_views_normalised():
    clip = _clip()
    rgb, residual = make_views(clip)
    assert torch.equal(rgb, normalise(clip[:, :, :-1], "rgb"))
    assert torch.equal(residual, normalise(residual_view(clip), "residual"))


@pytest.mark.parametrize("view", ["flow_u", "flow_v"])
def test_make_views_takes_the_stored_flow(view):
    clip, flow = _clip(9), _clip(8, seed=1)
    rgb, second = make_views(clip, view, flow)
    assert torch.equal(rgb, normalise(rgb_view(clip), "rgb"))
    assert torch.equal(second, normalise(flow, view))
    with pytest.raises(ValueError, match="flow="):
        make_views(clip, view)


def test_every_second_view_is_known_to_normalise_and_others_raise():
    assert all(normalise(_clip(), view).shape == (2, 3, 9, 5, 6) for view in SECOND_VIEWS)
    with pytest.raises(ValueError, match="unknown view 'depth'"):
        normalise(_clip(), "depth")


def test_every_second_view_has_the_shape_of_the_first_and_its_own_scale():
    clip, flow = torch.rand(2, 3, 5, 4, 4), torch.rand(2, 3, 4, 4, 4)
    for name in SECOND_VIEWS:
        first, second = make_views(clip, name, flow)
        assert first.shape == second.shape == (2, 3, 4, 4, 4)
    residual, signed = (make_views(clip, name)[1] for name in ("residual", "signed_residual"))
    assert signed.min() < 0
    torch.testing.assert_close(signed.abs(), residual)


def test_an_unknown_second_view_is_named():
    with pytest.raises(ValueError, match="depth"):
        make_views(torch.rand(1, 3, 3, 4, 4), "depth")
