"""TV-L1 in torch: each step against a plain formula or OpenCV's function, the whole against OpenCV's flow."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mcn.data.readers import open_video
from mcn.errors import MCNError
from mcn.preparation import tvl1
from mcn.preparation.tvl1 import TVL1Config, tvl1_flow

cv2 = pytest.importorskip("cv2", reason="the extra `data` is not installed")

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REAL = (
    "ucf101_subset/videos/Punch/v_Punch_g14_c04.avi",  # much motion
    "ucf101_subset/videos/Archery/v_Archery_g06_c03.avi",
    "ucf101_subset/videos/MoppingFloor/v_MoppingFloor_g04_c04.avi",  # hardly any
)


def texture(height: int, width: int, seed: int = 0, coarse: int = 6) -> Tensor:
    """A smooth grey image (H, W) in 0..255."""
    noise = torch.rand(1, 1, height // coarse + 3, width // coarse + 3, generator=torch.manual_seed(seed))
    return F.interpolate(noise, size=(height, width), mode="bicubic")[0, 0].clamp(0, 1) * 255


def moved(image: Tensor, x: float, y: float) -> Tensor:
    """The image moved ``x`` pixels to the right and ``y`` down, its edge repeated."""
    height, width = image.shape
    rows, columns = torch.meshgrid(
        torch.arange(height) - float(y), torch.arange(width) - float(x), indexing="ij"
    )
    grid = torch.stack((columns / (width - 1), rows / (height - 1)), -1) * 2 - 1
    grid = grid[None].float()
    return F.grid_sample(image[None, None], grid, "bicubic", "border", align_corners=True)[0, 0].clamp(0, 255)


def opencv(before: Tensor, after: Tensor, **settings: Any) -> Tensor:
    """OpenCV's flow of one pair, (2, H, W)."""
    method = cv2.optflow.createOptFlow_DualTVL1()
    for name, value in settings.items():
        getattr(method, f"set{name}")(value)
    images = [np.rint(image.numpy()).astype(np.uint8) for image in (before, after)]
    return torch.from_numpy(method.calc(*images, None)).movedim(-1, 0)


def ours(before: Tensor, after: Tensor, **settings: Any) -> Tensor:
    return tvl1_flow(before.round()[None], after.round()[None], TVL1Config(**settings))[0]


def distance(one: Tensor, other: Tensor) -> Tensor:
    """End-point distance of two flows (2, H, W), in pixels."""
    return torch.linalg.vector_norm(one - other, dim=0)


# --- the whole


@pytest.mark.parametrize("motion", [(1.0, 0.0), (0.0, -2.0), (0.5, 1.25), (-5.0, 3.0)])
def test_a_moved_texture_has_its_motion(motion: tuple[float, float]) -> None:
    image = texture(64, 80)
    flow = ours(image, moved(image, *motion))
    inside = flow[:, 12:-12, 12:-12]
    assert flow.dtype == torch.float32
    for component, expected in zip(inside, motion, strict=True):
        assert component.median().item() == pytest.approx(expected, abs=0.05)
        assert (component - expected).abs().mean() < 0.1


def test_what_does_not_move_has_no_flow_at_all() -> None:
    still = texture(40, 50).round()[None]
    assert torch.equal(tvl1_flow(still, still), torch.zeros(1, 2, 40, 50))
    flat = torch.zeros(2, 20, 20, dtype=torch.uint8)
    assert torch.equal(tvl1_flow(flat, flat + 90), torch.zeros(2, 2, 20, 20))  # nothing to follow


SHAPES = [(3, 3), (3, 41), (15, 15), (16, 16), (17, 40), (20, 19), (24, 33), (61, 48), (128, 171)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_opencv_whatever_the_shape(shape: tuple[int, int]) -> None:
    image = texture(*shape)
    after = moved(image, 0.8, -0.6)
    assert distance(ours(image, after), opencv(image, after)).mean() < 0.1


def test_agrees_with_opencv_to_the_last_digits_over_a_fixed_number_of_steps() -> None:
    """Where it stops depends on rounding; without that, and before chaos sets in, all is the same."""
    image = texture(50, 70, coarse=4)
    after = moved(image, 1.5, 0.7)
    theirs = {"Epsilon": 1e-9, "OuterIterations": 2, "InnerIterations": 9}
    settings = {"epsilon": 1e-9, "outer": 2, "inner": 9}
    for scales, warps in ((1, 1), (1, 3), (4, 2)):
        expected = opencv(image, after, ScalesNumber=scales, WarpingsNumber=warps, **theirs)
        apart = distance(ours(image, after, scales=scales, warps=warps, **settings), expected)
        assert apart.mean() < 1e-4
        assert apart.max() < 5e-3
    expected = opencv(image, after, Tau=0.2, Lambda=0.1, Theta=0.4, ScaleStep=0.6, **theirs)
    apart = distance(ours(image, after, tau=0.2, lam=0.1, theta=0.4, scale_step=0.6, **settings), expected)
    assert apart.mean() < 1e-3


@pytest.mark.parametrize("name", REAL, ids=lambda name: Path(name).stem)
def test_agrees_with_opencv_on_real_videos(name: str) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the development clips are not here")
    with open_video(SHARED / name) as video:
        frames = video.frames([len(video) // 2, len(video) // 2 + 1])
    before, after = (torch.from_numpy(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY)).float() for f in frames)
    apart = distance(ours(before, after), opencv(before, after))
    assert apart.mean() < 0.1
    assert apart.quantile(0.95) < 0.3


def test_a_pair_does_not_depend_on_the_others_in_its_batch() -> None:
    before = torch.stack([texture(30, 34, seed) for seed in range(4)])
    motions = [(0.3, 0), (3, -2), (0, 0), (1, 1)]  # that take very different numbers of iterations
    after = torch.stack([moved(image, *motion) for image, motion in zip(before, motions, strict=True)])
    after[2] = before[2]
    together = tvl1_flow(before, after)
    for i in range(4):
        assert (tvl1_flow(before[i : i + 1], after[i : i + 1])[0] - together[i]).abs().max() <= 1e-4
    assert (tvl1_flow(before.flip(0), after.flip(0)).flip(0) - together).abs().max() <= 1e-4
    assert torch.equal(together[2], torch.zeros(2, 30, 34))


def test_a_converged_pair_is_frozen_to_the_bit() -> None:
    """The mechanism itself: what has converged must not move while its batch mates go on."""
    image = texture(32, 32)
    after = torch.stack((moved(image, 0.05, 0), moved(image, 3, 2)))
    config = TVL1Config(scales=1, warps=1, epsilon=0.02)
    together = tvl1_flow(image.expand(2, -1, -1), after, config)
    assert torch.equal(tvl1_flow(image[None], after[:1], config)[0], together[0])
    free = tvl1_flow(image[None], after[:1], TVL1Config(scales=1, warps=1, epsilon=1e-6))[0]
    assert not torch.equal(free, together[0])  # it would have gone on


def test_images_may_be_bytes_or_floats_and_are_left_as_they_were() -> None:
    before = texture(20, 30).round()
    after = moved(before, 1, 0).round()
    copies = before.clone(), after.clone()
    flow = tvl1_flow(before[None], after[None])
    assert torch.equal(tvl1_flow(before[None].byte(), after[None].byte()), flow)
    assert torch.equal(tvl1_flow(before[None].double(), after[None].double()), flow)
    assert torch.equal(before, copies[0])
    assert torch.equal(after, copies[1])
    assert tvl1_flow(before[None][:0], after[None][:0]).shape == (0, 2, 20, 30)


def test_input_that_makes_no_sense_is_refused() -> None:
    image = torch.zeros(1, 20, 20)
    for before, after, message in (
        (image[0], image[0], r"images \(20, 20\)"),
        (image, image[:, :, :19], r"\(1, 20, 20\) on cpu and \(1, 20, 19\)"),
        (image[:, :2], image[:, :2], "images of 2 x 20 "),
        (image, image - 1, "values from -1 to -1"),
        (image + 256, image, "values from 256 to 256"),
        (image, image * torch.nan, "values from nan"),
    ):
        with pytest.raises(MCNError, match=message):
            tvl1_flow(before, after)
    for name, value in (("tau", 0), ("warps", 0), ("inner", -1), ("epsilon", 0.0), ("scale_step", 1.0)):
        with pytest.raises(MCNError, match=f"{name}={value}"):
            TVL1Config(**{name: value})


# --- its steps


def test_the_networks_sort() -> None:
    """A network that sorts all zeros and ones sorts everything."""
    for bits in itertools.product((0.0, 1.0), repeat=5):
        values = tvl1._exchange([torch.tensor(bit) for bit in bits], tvl1._SORT5)
        assert [value.item() for value in values] == sorted(bits)
    for bits in itertools.product((0.0, 1.0), repeat=7):
        middle = tvl1._exchange([torch.tensor(bit) for bit in bits], tvl1._MIDDLE7)[3]
        assert middle.item() == sorted(bits)[3]


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (4, 9), (30, 41)])
def test_the_median_is_that_of_25_pixels(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(2, 2, *shape, generator=generator)
    for values in (smooth, (smooth * 2).round()):  # with ties, too
        padded = F.pad(values, (2, 2, 2, 2), mode="replicate")
        expected = padded.unfold(2, 5, 1).unfold(3, 5, 1).flatten(-2).median(-1).values
        assert torch.equal(tvl1._median5(values), expected)
        assert np.array_equal(cv2.medianBlur(values[0, 0].numpy(), 5), expected[0, 0].numpy())


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (18, 22), (128, 171)])
def test_images_are_resized_as_opencv_does(shape: tuple[int, int]) -> None:
    image = texture(*shape, coarse=3)
    for step in (0.8, 0.5):
        small = cv2.resize(image.numpy(), None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
        size = [round(side * step) for side in shape]
        assert small.shape == tuple(size)
        smaller = tvl1._resize(image[None, None], size, 1 / step)[0, 0]
        assert (smaller - torch.from_numpy(small)).abs().max() < 1e-3
        back = cv2.resize(small, shape[::-1], interpolation=cv2.INTER_LINEAR)
        larger = tvl1._resize(torch.from_numpy(small)[None, None], list(shape))[0, 0]
        assert (larger - torch.from_numpy(back)).abs().max() < 1e-3


def test_images_are_warped_as_opencv_does() -> None:
    image = texture(24, 36, coarse=3)
    flow = torch.randn(1, 2, 24, 36, generator=torch.Generator().manual_seed(0)) * 4  # outside, too
    x = (torch.arange(36) + flow[0, 0]).numpy()
    y = (torch.arange(24)[:, None] + flow[0, 1]).numpy()
    expected = torch.from_numpy(cv2.remap(image.numpy(), x, y, cv2.INTER_CUBIC))
    # OpenCV 4 looks 1/32 pixel beside the place.
    tolerance = 1e-2 if int(cv2.__version__.split(".")[0]) >= 5 else 8.0
    assert (tvl1._warp(image[None, None], flow)[0, 0] - expected).abs().max() < tolerance


def test_the_gradient_is_centred() -> None:
    image = texture(5, 7, coarse=2)
    gradient = tvl1._centred_gradient(image[None, None])[0]
    for y, x in itertools.product(range(5), range(7)):
        dx = (image[y, min(x + 1, 6)] - image[y, max(x - 1, 0)]) / 2
        dy = (image[min(y + 1, 4), x] - image[max(y - 1, 0), x]) / 2
        assert gradient[:, y, x].tolist() == pytest.approx([dx.item(), dy.item()])


def test_divergence_is_minus_the_adjoint_of_the_forward_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(3, 2, 6, 8, generator=generator, dtype=torch.float64)
    p = torch.randn(3, 2, 2, 6, 8, generator=generator, dtype=torch.float64)
    p[:, 0, :, :, -1] = p[:, 1, :, -1, :] = 0  # as the iteration leaves them
    gradient = torch.zeros_like(p)
    gradient[:, 0, :, :, :-1] = u[..., 1:] - u[..., :-1]
    gradient[:, 1, :, :-1, :] = u[..., 1:, :] - u[..., :-1, :]
    divergence = torch.zeros_like(u)
    tvl1._add_divergence(divergence, p, 1.0)
    assert (gradient * p).sum().item() == pytest.approx(-(u * divergence).sum().item())
    tvl1._add_divergence(divergence, p, -0.5)
    assert (gradient * p).sum().item() == pytest.approx(-2 * (u * divergence).sum().item())
