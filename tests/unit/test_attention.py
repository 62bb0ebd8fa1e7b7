"""Activation maps against their definition, and motion lift and AUC against closed forms and oracles."""

import math
from dataclasses import astuple

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from mcn.attention import (
    Grid,
    activation_energy,
    attention_maps,
    conv5_grid,
    counted_pixels,
    motion_coverage,
    moving_pixels,
    times_mean,
    upsample,
)
from mcn.backbones import BACKBONES, build_backbone
from mcn.errors import MCNError


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18", "s3d"])
def test_conv5_of_32_frames_has_four_time_steps_and_pools_to_the_feature(name: str) -> None:
    backbone = build_backbone(name, width=None if name == "s3d" else 8).eval()
    clip = torch.rand(1, 3, 32, 64, 64)
    with torch.no_grad():
        conv5, pooled = backbone.maps(clip), backbone(clip)
    side = 2 if name == "s3d" else 4
    assert conv5.shape == (1, backbone.out_features, 4, side, side)
    torch.testing.assert_close(conv5.mean(dim=(2, 3, 4)), pooled)
    naive = torch.zeros(1, 4, side, side)
    for channel in conv5.unbind(1):
        naive += channel * channel
    torch.testing.assert_close(activation_energy(conv5), naive)
    maps = attention_maps(backbone, clip, "stretched")
    oracle = F.interpolate(naive[:, None], size=(32, 64, 64), mode="trilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(maps, oracle)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("shape", [(4, 32, 32), (12, 40, 56), (9, 33, 48)])
def test_maps_of_any_backbone_length_and_size(name: str, shape: tuple[int, int, int]) -> None:
    backbone = build_backbone(name, width=None if name == "s3d" else 4).train()
    if name == "s3d":
        shape = (max(shape[0], 8), shape[1], shape[2])
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    maps = attention_maps(backbone, torch.rand(2, 3, *shape))
    assert maps.shape == (2, *shape)
    assert (maps >= 0).all()
    assert maps.amax() > maps.amin()
    assert backbone.training  # as it was, and its running statistics too
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_half_precision_activations_do_not_overflow() -> None:
    assert activation_energy(torch.full((1, 1024, 1, 1, 1), 100.0).half()).item() == 1024 * 100.0**2


class _Averages(nn.Module):
    """Stands in for a max pooling of the same geometry, whose gradient would go to one pixel only."""

    def __init__(self, pool: nn.MaxPool3d) -> None:
        super().__init__()
        self.kernel, self.stride = pool.kernel_size, pool.stride
        each = (pool.padding,) * 3 if isinstance(pool.padding, int) else pool.padding
        self.padding = [p for p in reversed(each) for _ in range(2)]

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(F.pad(x, self.padding), self.kernel, self.stride)


def _linear(module: nn.Module) -> None:
    """Positive symmetric kernels, no non-linearity: a cell's gradient is its receptive field, centred."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv3d):
            nn.init.constant_(child.weight, 1 / child.weight[0].numel())
            assert child.bias is None
        elif isinstance(child, nn.MaxPool3d) and child.kernel_size != 1:
            setattr(module, name, _Averages(child))
        elif isinstance(child, nn.BatchNorm3d | nn.ReLU):
            setattr(module, name, nn.Identity())
        else:
            _linear(child)


@pytest.mark.parametrize("name", ["r3d_10", "r2plus1d_10", "s3d"])
def test_cells_are_where_their_receptive_fields_are_centred(name: str) -> None:
    backbone = build_backbone(name, width=None if name == "s3d" else 4)
    _linear(backbone)
    grid = conv5_grid(backbone)
    # Axis by axis, long enough for a cell in the middle whose field does not meet the padding.
    for axis, length in ((2, 192), (3, 640), (4, 640)):
        shape = [1, 3, 8, 32, 32]
        shape[axis] = length
        clip = torch.ones(shape, requires_grad=True)
        conv5 = backbone.maps(clip)
        cell = conv5.shape[axis] // 2
        conv5.sum(dim=[a for a in range(5) if a != axis])[cell].backward()
        weight = clip.grad.double().sum(dim=[a for a in range(5) if a != axis])
        assert weight[0] == weight[-1] == 0  # the field fits
        centre = float((weight * torch.arange(length)).sum() / weight.sum())
        assert centre == pytest.approx(grid.first[axis - 2] + cell * grid.stride[axis - 2], abs=0.01)


def test_upsampling_places_cells_and_goes_on_beyond_them() -> None:
    maps = rand(2, 3, 4, 5)
    big = upsample(maps, (24, 64, 80), Grid((8, 16, 16), (0, 0, 0)))
    assert torch.equal(big[:, ::8, ::16, ::16], maps)  # at its centre, a cell's own value
    torch.testing.assert_close(big[:, 4, 8, 8], maps[:, :2, :2, :2].mean(dim=(1, 2, 3)))  # between eight
    assert torch.equal(big[:, 16:], big[:, 16:17].expand(-1, 8, -1, -1))
    shifted = upsample(maps, (24, 64, 80), Grid((8, 16, 16), (2, 8, 8)))
    assert torch.equal(shifted[:, 2::8, 8::16, 8::16], maps)
    assert torch.equal(shifted[:, 0, 0, 0], maps[:, 0, 0, 0])


def test_what_is_no_backbone_or_placement_is_refused() -> None:
    class Other(nn.Module):
        def maps(self, x: Tensor) -> Tensor:
            return x[:, :, ::8, ::16, ::16]

    with pytest.raises(MCNError, match="Other is no backbone of mcn"):
        attention_maps(Other(), torch.rand(1, 3, 8, 32, 32))
    assert attention_maps(Other(), torch.rand(1, 3, 8, 32, 32), "stretched").shape == (1, 8, 32, 32)
    with pytest.raises(MCNError, match="placement is 'left': one of centres, stretched"):
        attention_maps(Other(), torch.rand(1, 3, 8, 32, 32), "left")
    with pytest.raises(MCNError, match="diverged"):
        attention_maps(Other(), torch.full((1, 3, 8, 32, 32), math.inf), "stretched")


def test_times_mean_has_mean_one_and_survives_a_dead_map() -> None:
    maps = torch.stack([rand(4, 5, 6), 100 * rand(4, 5, 6), torch.zeros(4, 5, 6, dtype=torch.float64)])
    scaled = times_mean(maps)
    torch.testing.assert_close(scaled[:2].mean(dim=(1, 2, 3)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(scaled[0], scaled[1])
    assert (scaled[2] == 0).all()


def test_moving_pixels_of_a_square_that_jumps() -> None:
    clip = torch.zeros(3, 3, 8, 8)
    clip[:, 0, 2:4, 2:4] = 1
    clip[:, 1:, 2:4, 5:7] = 1
    moving = moving_pixels(clip)
    expected = torch.zeros(2, 8, 8, dtype=torch.bool)
    expected[0, 2:4, 2:4] = expected[0, 2:4, 5:7] = True  # what it leaves and where it goes
    assert torch.equal(moving, expected)
    assert not moving_pixels(clip, threshold=1.0).any()
    assert torch.equal(moving_pixels(clip[None]), expected[None])
    one_channel = torch.zeros(3, 2, 1, 1)
    one_channel[0, 1] = 0.12  # .04 on average
    assert not moving_pixels(one_channel).any()
    assert moving_pixels(one_channel, 0.03).all()


def test_padding_repeats_and_black_bars_are_not_counted() -> None:
    clip = rand(3, 6, 10, 12) * 0.5 + 0.3
    clip[:, :, :2] = 0.02  # bars above, below and to the right, not quite black
    clip[:, :, 9:] = 0.0
    clip[:, :, :, 11] = 0.05
    clip[:, :, 5, 4] = 0.0  # black inside the picture is picture
    clip[:, :3] = clip[:, 2:3]  # padded with the first frame
    clip[:, 5] = clip[:, 4]  # and a frame twice at the end
    expected = torch.zeros(5, 10, 12, dtype=torch.bool)
    expected[2:4, 2:9, :11] = True
    assert torch.equal(counted_pixels(clip), expected)
    assert not counted_pixels(torch.zeros(3, 4, 5, 5)).any()


@pytest.mark.parametrize("value", [1.0, 0.1, 1e-30, 7e20])
def test_a_uniform_map_covers_nothing_in_particular(value: float) -> None:
    moving = rand(4, 9, 11) < 0.3
    for dtype in (torch.float32, torch.float64):
        covered = motion_coverage(torch.full((4, 9, 11), value, dtype=dtype), moving)
        assert (covered.lift, covered.auc) == (1.0, 0.5)
    # Rounding in the interpolation does not make it less uniform.
    stretched = upsample(torch.full((1, 3, 3, 3), value), (7, 11, 13))[0]
    covered = motion_coverage(stretched, rand(7, 11, 13) < 0.3)
    assert covered.auc == 0.5
    assert covered.lift == pytest.approx(1.0, abs=1e-12)


def test_the_motion_itself_covers_as_much_as_can_be() -> None:
    moving = torch.zeros(2, 4, 4, dtype=torch.bool)
    moving[:, :2, :2] = True
    best = motion_coverage(moving.float(), moving)
    assert (best.lift, best.auc, best.moving) == (4.0, 1.0, 0.25)
    worst = motion_coverage((~moving).float(), moving)
    assert (worst.lift, worst.auc) == (0.0, 0.0)
    for seed in range(20):  # no other map gets further
        covered = motion_coverage(rand(2, 4, 4, seed=seed) ** 8, moving)
        assert covered.lift <= 4.0
        assert covered.auc <= 1.0


def test_lift_and_auc_by_hand_with_ties() -> None:
    attention = torch.tensor([3.0, 1.0, 1.0, 0.0]).view(1, 2, 2)
    moving = torch.tensor([True, True, False, False]).view(1, 2, 2)
    covered = motion_coverage(attention, moving)
    assert covered.lift == pytest.approx((4 / 5) / (2 / 4), rel=1e-6)
    assert covered.auc == (1 + 1 + 0.5 + 1) / 4  # 3 > 1, 3 > 0, 1 = 1, 1 > 0
    counted = torch.tensor([True, True, False, True]).view(1, 2, 2)  # the still 1 is a black bar
    covered = motion_coverage(attention, moving, counted)
    assert covered.lift == pytest.approx((4 / 4) / (2 / 3), rel=1e-6)
    assert covered.auc == 1.0
    assert covered.moving == 2 / 3


def test_auc_is_scikit_learns() -> None:
    for seed in range(5):
        attention = (rand(4, 8, 8, seed=seed) * 10).round()  # many ties
        moving = rand(4, 8, 8, seed=100 + seed) < 0.2
        expected = roc_auc_score(moving.flatten().numpy(), attention.flatten().numpy())
        assert motion_coverage(attention, moving).auc == pytest.approx(expected, abs=1e-12)


def test_scale_does_not_matter_and_auc_minds_only_order() -> None:
    attention, moving = rand(4, 8, 8), rand(4, 8, 8, seed=1) < 0.2
    once, thousand = motion_coverage(attention, moving), motion_coverage(1000 * attention, moving)
    assert astuple(once)[:3] == pytest.approx(astuple(thousand)[:3], rel=1e-5)
    squared = motion_coverage(attention**2, moving)
    assert squared.auc == pytest.approx(once.auc, abs=1e-5)
    assert squared.lift != pytest.approx(once.lift, rel=1e-3)


def test_a_map_drawn_without_regard_to_motion_has_lift_one_on_average() -> None:
    moving = rand(4, 16, 16, seed=9) < 0.1
    found = [motion_coverage(rand(4, 16, 16, seed=seed), moving) for seed in range(200)]
    lift = torch.tensor([c.lift for c in found], dtype=torch.float64)
    auc = torch.tensor([c.auc for c in found], dtype=torch.float64)
    for values, null in ((lift, 1.0), (auc, 0.5)):
        assert abs(values.mean() - null) < 4 * values.std() / math.sqrt(200)


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (torch.rand(3, 1, 8, 8).expand(3, 5, 8, 8), "no picture: every frame repeats the one before"),
        (torch.zeros(3, 5, 8, 8), "no picture"),
        (0.5 + 0.01 * torch.rand(3, 5, 8, 8), "no pixel moves"),  # a static clip with coding noise
        (torch.arange(5.0).view(1, 5, 1, 1).expand(3, 5, 8, 8) / 5, "every pixel moves"),
    ],
)
def test_a_clip_that_tells_nothing_gives_nan_and_says_why(clip: Tensor, reason: str) -> None:
    covered = motion_coverage(torch.rand(4, 8, 8), moving_pixels(clip), counted_pixels(clip))
    assert math.isnan(covered.lift)
    assert math.isnan(covered.auc)
    assert covered.reason.startswith(reason)


def test_a_dead_map_gives_nan_and_a_broken_one_is_refused() -> None:
    moving = rand(2, 4, 4) < 0.5
    dead = motion_coverage(torch.zeros(2, 4, 4), moving)
    assert math.isnan(dead.lift)
    assert dead.reason == "the map is zero everywhere"
    for bad in (-1.0, math.nan, math.inf):
        attention = torch.ones(2, 4, 4)
        attention[0, 0, 0] = bad
        with pytest.raises(MCNError, match="finite and not negative"):
            motion_coverage(attention, moving)
    with pytest.raises(MCNError, match=r"one shape .*\(2, 4, 5\)"):
        motion_coverage(torch.ones(2, 4, 5), moving)


def test_a_bright_response_in_the_right_place_is_found() -> None:
    """End to end: energy in the cell whose field is centred on the motion covers it; another does not."""
    clip = torch.full((3, 9, 64, 64), 0.5)
    clip[:, ::2, 28:36, 28:36] = 1.0  # a flickering square round (32, 32)
    energy = torch.zeros(1, 1, 4, 4)
    energy[0, 0, 2, 2] = 1.0
    grid = Grid((8, 16, 16), (0, 0, 0))
    right = motion_coverage(upsample(energy, (8, 64, 64), grid)[0], moving_pixels(clip), counted_pixels(clip))
    plain = motion_coverage(upsample(energy, (8, 64, 64))[0], moving_pixels(clip), counted_pixels(clip))
    wrong = motion_coverage(
        upsample(energy.roll(2, 3), (8, 64, 64), grid)[0], moving_pixels(clip), counted_pixels(clip)
    )
    assert right.auc > 0.99
    assert right.lift > 1.5 * plain.lift
    assert wrong.lift < 1.0
