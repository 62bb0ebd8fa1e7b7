"""One draw a clip; the same arithmetic as torchvision's, to float32 rounding."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mcn._torchvision import torchvision  # noqa: F401  (mends the import of v2 below)
from mcn.data import _batched, augment
from mcn.data._pixels import shift_hue
from mcn.data.augment import (
    Augmentation,
    AugmentConfig,
    apply_augmentation,
    augment_batch,
    center_crop,
    center_crop_batch,
    draw_augmentation,
)
from mcn.errors import MCNError

F = pytest.importorskip("torchvision.transforms.v2.functional")
CLOSE = 5e-5  # of [0, 1]: 1/80 of an 8-bit level. Ours is float64 where torch places samples in float32:
# on white noise 2e-6 at 128 x 171, 2e-5 at 240 x 320, 5e-5 at 256 x 340.


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(frames: int = 5, height: int = 60, width: int = 84, channels: int = 3) -> Tensor:
    size = (frames, height, width, channels)
    return torch.randint(256, size, dtype=torch.uint8, generator=generator())


def peers(clip: Tensor, aug: Augmentation, size: int) -> Tensor:
    """The same draw through torchvision, on floats, in our order."""
    x = clip.permute(0, 3, 1, 2).float() / 255
    box = (aug.top, aug.left, aug.height, aug.width)
    x = F.resized_crop(x, *box, [size, size], antialias=True)
    x = F.horizontal_flip(x) if aug.flip else x
    sigma = aug.sigma * size / 128
    if sigma:
        kernel = 2 * math.ceil(3 * sigma) + 1
        x = F.gaussian_blur(x, [kernel, kernel], [sigma, sigma])
    operations: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.adjust_brightness(x, aug.brightness),
        lambda x: F.adjust_contrast(x, aug.contrast),
        lambda x: F.adjust_saturation(x, aug.saturation),
        lambda x: F.adjust_hue(x, aug.hue),
    ]
    for number in aug.order:
        x = operations[number](x)
    return x.transpose(0, 1)


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize(("size", "shape"), [(128, (128, 171)), (112, (240, 320)), (40, (36, 90))])
def test_every_draw_equals_torchvision(seed: int, size: int, shape: tuple[int, int]) -> None:
    clip = noise(2, *shape)
    config = AugmentConfig(size=size, jitter=0.9, blur=0.7)
    aug = draw_augmentation(config, *shape, generator(seed))
    ours = apply_augmentation(clip, aug, size)
    assert ours.shape == (3, 2, size, size)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, peers(clip, aug, size), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("hue", [-0.5, -0.34, -0.2, -0.1, 0.0, 0.03, 0.1, 0.17, 0.25, 0.5])
def test_hue_equals_torchvision_on_greys_primaries_and_ties(hue: float) -> None:
    x = torch.rand(3, 1, 24, 24, generator=generator())
    x[:, :, :6] = x[:1, :, :6]  # grey: no hue at all
    x[:, :, 6:12] = x[:, :, 6:12].round()  # corners of the colour cube
    x[1, :, 12:15] = x[0, :, 12:15]
    x[2, :, 15:18] = x[1, :, 15:18]
    theirs = F.adjust_hue(x.transpose(0, 1), hue).transpose(0, 1)
    ours = x.clone()
    shift_hue(ours, hue)
    torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=0)


def test_a_still_clip_stays_still() -> None:
    clip = noise(1).expand(23, -1, -1, -1)
    for seed in range(8):
        aug = draw_augmentation(AugmentConfig(jitter=1, blur=1), 60, 84, generator(seed))
        out = apply_augmentation(clip, aug, 32)
        # Bit-equal in a chunk of frames; matrix libraries may sum in another order in the last one.
        assert (out - out[:, :1]).abs().max() < 1e-6


def test_a_draw_is_a_function_of_the_generator_and_its_use_of_the_draw() -> None:
    config = AugmentConfig()
    aug = draw_augmentation(config, 60, 84, generator(3))
    assert aug == draw_augmentation(config, 60, 84, generator(3))
    assert aug != draw_augmentation(config, 60, 84, generator(4))
    clip = noise()
    assert torch.equal(apply_augmentation(clip, aug, 32), apply_augmentation(clip, aug, 32))


def test_a_batch_is_its_clips() -> None:
    clips = [noise(7), noise(7, 50, 40), noise(7, 128, 171)]
    augs = [
        draw_augmentation(AugmentConfig(), *clip.shape[1:3], generator(i)) for i, clip in enumerate(clips)
    ]
    batch = augment_batch(clips, augs, 24)
    assert batch.shape == (3, 3, 7, 24, 24)
    for row, clip, aug in zip(batch, clips, augs, strict=True):
        assert torch.equal(row, apply_augmentation(clip, aug, 24))


def test_flow_takes_crop_and_flip_only() -> None:
    clip = noise(3, channels=1)
    plain = Augmentation(5, 7, 40, 50, flip=True)
    coloured = Augmentation(5, 7, 40, 50, True, 1.3, 0.7, 1.2, 0.05, (2, 0, 3, 1), sigma=1.5)
    out = apply_augmentation(clip, coloured, 20, colour=False)
    assert out.shape == (1, 3, 20, 20)
    torch.testing.assert_close(out, peers(clip, plain, 20), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("shape", [(240, 320), (128, 170), (240, 560), (90, 60)])
def test_center_crop_equals_torchvision(shape: tuple[int, int]) -> None:
    clip = noise(2, *shape)
    x = clip.permute(0, 3, 1, 2).float() / 255
    theirs = F.center_crop(F.resize(x, [64], antialias=True), [64, 64]).transpose(0, 1)
    torch.testing.assert_close(center_crop(clip, 64), theirs, atol=CLOSE, rtol=0)
    theirs = F.center_crop(F.resize(x, [128, 171], antialias=True), [112, 112]).transpose(0, 1)
    torch.testing.assert_close(center_crop(clip, 112, (128, 171)), theirs, atol=CLOSE, rtol=0)


def test_draws_spread_as_configured() -> None:
    rng, config = generator(), AugmentConfig()
    draws = [draw_augmentation(config, 128, 171, rng) for _ in range(3000)]
    area = torch.tensor([a.height * a.width / (128 * 171) for a in draws])
    ratio = torch.tensor([a.width / a.height for a in draws])
    assert 0.19 < area.min() < 0.22
    assert area.max() > 0.9
    assert 0.73 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.37
    assert all(a.top + a.height <= 128 and a.left + a.width <= 171 for a in draws)
    share = [sum(map(bool, values)) / 3000 for values in zip(*_switches(draws), strict=True)]
    assert share == pytest.approx([0.5, 0.8, 0.5], abs=0.03)
    jittered = [a for a in draws if a.order]
    for name in ("brightness", "contrast", "saturation"):
        factors = torch.tensor([getattr(a, name) for a in jittered])
        assert factors.min() >= 0.6
        assert factors.max() <= 1.4
        assert factors.mean().item() == pytest.approx(1, abs=0.02)
        assert factors.std().item() == pytest.approx(0.8 / 12**0.5, abs=0.01)
    assert max(abs(a.hue) for a in jittered) <= 0.1
    assert len({a.order for a in jittered}) == 24
    assert all(0.1 <= a.sigma <= 2 for a in draws if a.sigma)


def _switches(draws: list[Augmentation]) -> list[tuple[bool, bool, bool]]:
    return [(a.flip, bool(a.order), bool(a.sigma)) for a in draws]


def test_crops_are_drawn_as_torchvision_draws_them() -> None:
    from torchvision.transforms import RandomResizedCrop

    rng, config = generator(), AugmentConfig()
    torch.manual_seed(0)
    frame = torch.empty(1, 240, 320)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(frame, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    ).float()
    ours = torch.tensor([(a.top, a.left, a.height, a.width) for a in _crops(config, rng, 4000)]).float()
    scale = theirs.std(0)
    assert ((ours.mean(0) - theirs.mean(0)) / scale).abs().max() < 0.1
    assert (ours.std(0) / scale - 1).abs().max() < 0.06


def _crops(config: AugmentConfig, rng: torch.Generator, count: int) -> list[Augmentation]:
    return [draw_augmentation(config, 240, 320, rng) for _ in range(count)]


def test_a_frame_that_no_box_fits_takes_the_central_one() -> None:
    aug = draw_augmentation(AugmentConfig(area=(0.9, 1.0)), 20, 200, generator())
    assert (aug.top, aug.left, aug.height, aug.width) == (0, 86, 20, 27)


def test_what_is_no_clip_or_no_config_is_refused() -> None:
    aug = Augmentation(0, 0, 10, 10)
    with pytest.raises(MCNError, match="uint8"):
        apply_augmentation(noise().float(), aug, 8)
    with pytest.raises(MCNError, match="colour=False"):
        apply_augmentation(noise(channels=1), aug, 8)
    with pytest.raises(MCNError, match="does not fit"):
        apply_augmentation(noise(), Augmentation(55, 0, 10, 10), 8)
    with pytest.raises(MCNError, match="one draw a clip"):
        augment_batch([noise()], [], 8)
    with pytest.raises(MCNError, match="differ"):
        augment_batch([noise(3), noise(4)], [aug, aug], 8)
    with pytest.raises(MCNError, match="smaller than the crop"):
        center_crop(noise(), 64, (60, 84))
    for wrong in ({"area": (0, 1)}, {"flip": 1.5}, {"hue": 0.6}, {"size": 0}, {"contrast": -1}):
        with pytest.raises(MCNError, match=next(iter(wrong))):
            AugmentConfig(**wrong)


# Batched on the device. The code is that of a GPU; torch runs it on a CPU just as well.

TOGETHER = 1e-5  # how far the two paths may differ: float32, sums in another order
ORDERS = list(itertools.permutations(range(4)))
CPU = torch.device("cpu")


def mixed_draws(count: int) -> list[Augmentation]:
    """Orders of the jitter in turn, hues of both signs and beyond a third, flips, blurs, and plain ones."""
    hues = (0.08, -0.05, 0.1, -0.1, 0.0, 0.3, -0.5, -0.2)
    draws = []
    for i in range(count):
        flip, sigma = i % 2 == 1, (0.0, 1.7, 0.2, 6.0)[i % 4]
        box = (i % 9, i % 14, 24 + i % 27, 30 + (5 * i) % 40)
        if i % 5 == 4:
            draws.append(Augmentation(*box, flip, sigma=sigma))
            continue
        factors = (1.4 - 0.05 * (i % 16), 0.6 + 0.05 * (i % 17), 1.4 - 0.07 * (i % 12), hues[i % 8])
        draws.append(Augmentation(*box, flip, *factors, ORDERS[(7 * i) % 24], sigma))
    return draws


def together(clips: list[Tensor], augs: list[Augmentation], size: int, device: torch.device = CPU) -> Tensor:
    """The path of a GPU."""
    return _batched.augment_together(clips, augs, [aug.sigma * size / 128 for aug in augs], size, device)


def test_together_is_one_by_one() -> None:
    augs = mixed_draws(48)
    assert {a.order for a in augs} >= {(), (0, 1, 2, 3), (3, 2, 1, 0)}
    assert len({a.order for a in augs}) > 20
    clips = [noise(2, 60 + i % 3, 84) for i in range(48)]  # three sizes
    alone = augment_batch(clips, augs, 32)
    batch = together(clips, augs, 32)
    assert batch.is_contiguous()
    torch.testing.assert_close(batch, alone, atol=TOGETHER, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_together_is_one_by_one_in_every_order(order: tuple[int, ...]) -> None:
    augs = [
        Augmentation(3, 5, 40, 50, hue > 0, bright, 2 - bright, bright, hue, order, sigma=1.0)
        for bright in (0.6, 1.4)
        for hue in (-0.1, 0.1)
    ]
    clips = [noise(2)] * 4
    torch.testing.assert_close(
        together(clips, augs, 24), augment_batch(clips, augs, 24), atol=TOGETHER, rtol=0
    )


def test_together_of_one_of_none_jittered_and_of_flow() -> None:
    for aug in mixed_draws(10):
        torch.testing.assert_close(
            together([noise()], [aug], 24), augment_batch([noise()], [aug], 24), atol=TOGETHER, rtol=0
        )
    plain = [Augmentation(0, 0, 60, 84, flip) for flip in (False, True)] * 2
    flow = [noise(3, channels=1)] * 4
    torch.testing.assert_close(
        together(flow, plain, 20), augment_batch(flow, plain, 20, colour=False), atol=TOGETHER, rtol=0
    )


def test_a_clip_without_jitter_is_left_exactly_as_it_is_among_jittered_ones() -> None:
    plain, coloured = (
        Augmentation(3, 5, 40, 50),
        Augmentation(0, 0, 60, 84, False, 1.4, 0.6, 1.3, 0.1, (0, 3, 2, 1)),
    )
    clips = [noise(2), noise(2)]
    among = together(clips, [plain, coloured], 24)[0]
    assert torch.equal(among, together(clips, [plain, plain], 24)[0])


def test_a_small_budget_takes_more_steps_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    augs, clips = mixed_draws(12), [noise(2, 60, 84)] * 12
    whole = together(clips, augs, 24)
    monkeypatch.setattr(_batched, "BUDGET", 2**20)
    assert 1 < len(list(_batched._chunks(clips, 24))) < 12
    torch.testing.assert_close(together(clips, augs, 24), whole, atol=TOGETHER, rtol=0)
    monkeypatch.setattr(_batched, "BUDGET", 1)  # a clip is never refused
    torch.testing.assert_close(together(clips, augs, 24), whole, atol=TOGETHER, rtol=0)


@pytest.mark.parametrize("resize", [None, (40, 48)])
def test_centre_crops_together_are_one_by_one(resize: tuple[int, int] | None) -> None:
    clips = [noise(3), noise(3, 70, 50), noise(3)]
    alone = torch.stack([center_crop(clip, 32, resize) for clip in clips])
    assert torch.equal(center_crop_batch(clips, 32, resize), alone)

    def matrices(height: int, width: int) -> tuple[Tensor, Tensor]:
        return augment._center_matrices(height, width, 32, resize)

    batch = _batched.crop_together(clips, matrices, 32, CPU)
    torch.testing.assert_close(batch, alone, atol=TOGETHER, rtol=0)


class Operations(TorchDispatchMode):
    """Counts what is asked of the device: every call is a kernel or a few."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(count: int) -> Counter[str]:
    clips, augs = [noise(2)] * count, (mixed_draws(40) * 2)[:count]
    with Operations() as seen:
        together(clips, augs, 16)
    for view in (
        "select",
        "slice",
        "unbind",
        "view",
        "_unsafe_view",
        "expand",
        "split_with_sizes",
        "unsqueeze",
    ):
        del seen.calls[view]  # of the host only
    return seen.calls


def test_the_number_of_operations_does_not_grow_with_the_batch_and_none_waits() -> None:
    few, many = operations(20), operations(60)
    # One copy a clip brings it over.
    assert many.pop("copy_") - few.pop("copy_") == 40
    assert few == many
    assert sum(few.values()) < 250
    waits = {
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "equal",
        "index",
        "unique",
        "item",
    }
    assert not waits & set(many)


def test_another_device_takes_the_batch_together_and_nothing_is_read_back() -> None:
    # On "meta" tensors have shapes but no values: whatever asked for one would raise.
    clips, augs = [noise(2, 60 + i % 3, 84) for i in range(12)], mixed_draws(12)
    assert augment_batch(clips, augs, 16, device="meta").shape == (12, 3, 2, 16, 16)
    assert augment_batch(clips, augs, 16, colour=False, device="meta").device.type == "meta"
    assert center_crop_batch(clips, 16, device="meta").shape == (12, 3, 2, 16, 16)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_cuda
def test_a_gpu_gives_the_same() -> None:
    clip = noise()
    for seed in range(4):
        aug = draw_augmentation(AugmentConfig(jitter=1, blur=1), 60, 84, generator(seed))
        there = apply_augmentation(clip.cuda(), aug, 32)
        torch.testing.assert_close(there.cpu(), apply_augmentation(clip, aug, 32), atol=1e-4, rtol=0)
    augs, clips = mixed_draws(48), [noise(2, 60 + i % 3, 84) for i in range(48)]
    batch = augment_batch(clips, augs, 32, device="cuda")
    torch.testing.assert_close(batch.cpu(), augment_batch(clips, augs, 32), atol=1e-4, rtol=0)
    crops = center_crop_batch(clips, 32, device="cuda")
    torch.testing.assert_close(crops.cpu(), center_crop_batch(clips, 32), atol=1e-4, rtol=0)


@needs_cuda
def test_a_gpu_launches_as_many_kernels_for_many_clips_as_for_few() -> None:
    from torch.profiler import ProfilerActivity, profile

    def kernels(count: int) -> int:
        clips, augs = [noise(2).pin_memory()] * count, (mixed_draws(40) * 2)[:count]
        augment_batch(clips, augs, 16, device="cuda")  # what is done once, is done
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            augment_batch(clips, augs, 16, device="cuda")
            torch.cuda.synchronize()
        return sum(
            e.count for e in seen.key_averages() if not e.key.lower().startswith(("memcpy", "memset", "cuda"))
        )

    # A matrix library may cut a product into more or fewer kernels as it grows, hence not "equal".
    assert abs(kernels(60) - kernels(20)) <= 8


@needs_cuda
def test_a_gpu_never_makes_the_host_wait_and_keeps_to_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batched, "BUDGET", 64 << 20)
    clips, augs = [noise(9, 128, 171).pin_memory() for _ in range(24)], mixed_draws(24)
    out = augment_batch(clips, augs, 128, device="cuda")  # workspaces of the libraries are there now
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment_batch(clips, augs, 128, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before <= (64 << 20) + out.nbytes
