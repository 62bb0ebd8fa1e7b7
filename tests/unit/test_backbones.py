"""Backbones: shapes at the paper's sizes, torchvision's keys and weights, widths, errors."""

import pytest
import torch
from torch import nn

from mcn._torchvision import torchvision
from mcn.backbones import BACKBONES, build_backbone

_video = torchvision.models.video
TORCHVISION = ("r3d_18", "r2plus1d_18", "s3d")
SIZES = ((16, 112), (32, 128), (64, 128))  # frames, pixels


def _on_meta(build, *args):
    """Shapes without numbers: what is built computes nothing and takes no memory."""
    with torch.device("meta"):
        return build(*args)


def _without_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t for name, t in state.items() if not name.startswith(("fc.", "classifier."))}


def _shapes(state: dict[str, torch.Tensor]) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in state.items()]


def _random_buffers(module: nn.Module):
    """Statistics as after training, so that evaluation is not with mean 0 and variance 1."""
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)


@pytest.mark.parametrize("name", BACKBONES)
def test_output_shapes_at_the_sizes_of_the_protocol(name):
    backbone = _on_meta(build_backbone, name)
    features = {"s3d": 1024, "r3d_small": 128}.get(name, 512)
    shrink = 32 if name == "s3d" else 16
    assert backbone.out_features == features
    for frames, side in SIZES:
        clip = torch.empty(2, 3, frames, side, side, device="meta")
        assert backbone(clip).shape == (2, features)
        small = side // shrink
        assert backbone.maps(clip).shape == (2, features, frames // 8, small, small)


@pytest.mark.parametrize("name", ["r3d_small", "s3d"])
def test_the_pooled_feature_is_the_mean_of_the_maps(name):
    torch.manual_seed(0)
    backbone, clip = build_backbone(name).eval(), torch.randn(2, 3, 16, 64, 64)
    with torch.no_grad():
        pooled, maps = backbone(clip), backbone.maps(clip)
    # float32 means over up to 32 values, summed in another order.
    torch.testing.assert_close(pooled, maps.mean(dim=(2, 3, 4)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TORCHVISION)
def test_keys_and_shapes_are_torchvisions(name):
    ours = _on_meta(build_backbone, name).state_dict()
    theirs = _without_head(_on_meta(getattr(_video, name)).state_dict())
    assert _shapes(ours) == _shapes(theirs)


@pytest.mark.parametrize("name", TORCHVISION)
def test_weights_load_both_ways(name):
    torch.manual_seed(0)
    ours, theirs = build_backbone(name), getattr(_video, name)()
    ours.load_state_dict(_without_head(theirs.state_dict()))
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[key])
    _random_buffers(ours)
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith(("fc.", "classifier.")) for key in missing)
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[key])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["r3d_18", "r2plus1d_18"])
def test_pooled_feature_equals_torchvisions(name, training):
    torch.manual_seed(0)
    theirs = getattr(_video, name)()
    theirs.fc = nn.Identity()
    _random_buffers(theirs)
    ours = build_backbone(name)
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        expected = theirs.train(training)(clip)
        # The same operations in the same order.
        torch.testing.assert_close(ours.train(training)(clip), expected, rtol=1e-6, atol=1e-6)


def test_s3d_feature_equals_torchvisions_where_its_fixed_window_fits():
    torch.manual_seed(0)
    theirs = _video.s3d().eval()
    theirs.classifier = nn.Identity()
    _random_buffers(theirs)
    ours = build_backbone("s3d").eval()
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(1, 3, 16, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs(clip), rtol=1e-5, atol=1e-6)


def test_s3d_takes_the_papers_128_pixels_where_torchvisions_raises():
    clip = torch.empty(1, 3, 32, 128, 128, device="meta")
    with pytest.raises(RuntimeError, match="size"):
        _on_meta(_video.s3d)(clip)
    assert _on_meta(build_backbone, "s3d")(clip).shape == (1, 1024)


@pytest.mark.parametrize("name", BACKBONES)
def test_batchnorm_momentum_is_a_tenth_everywhere(name):
    norms = [m for m in _on_meta(build_backbone, name).modules() if isinstance(m, nn.BatchNorm3d)]
    assert norms
    assert {norm.momentum for norm in norms} == {0.1}
    assert {norm.eps for norm in norms} == {1e-3 if name == "s3d" else 1e-5}  # torchvision's


@pytest.mark.parametrize(("name", "blocks"), [("r3d_18", 2), ("r3d_10", 1), ("r2plus1d_10", 1)])
def test_number_of_blocks_a_stage(name, blocks):
    backbone = _on_meta(build_backbone, name)
    stages = [backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
    assert [len(stage) for stage in stages] == [blocks] * 4


def test_width_64_is_torchvisions_and_the_default():
    for name in ("r3d_18", "r2plus1d_18", "r3d_10"):
        default = _on_meta(build_backbone, name).state_dict()
        assert _shapes(default) == _shapes(_on_meta(build_backbone, name, 64).state_dict())


@pytest.mark.parametrize("name", ["r3d_10", "r2plus1d_10"])
@pytest.mark.parametrize("width", [4, 10, 16, 64])
def test_width_scales_every_stage(name, width):
    backbone = _on_meta(build_backbone, name, width)
    assert backbone.out_features == 8 * width
    clip = torch.empty(2, 3, 8, 32, 32, device="meta")
    x, channels = backbone.stem(clip), [width]
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        x = stage(x)
        channels.append(x.shape[1])
    assert channels == [width, width, 2 * width, 4 * width, 8 * width]


def test_half_the_width_halves_both_sides_of_every_3d_convolution():
    full = _on_meta(build_backbone, "r3d_18", 64).state_dict()
    half = _on_meta(build_backbone, "r3d_18", 32).state_dict()
    assert list(full) == list(half)
    for key in full:
        shape = list(full[key].shape)
        if full[key].dim():
            shape[0] //= 2
        if full[key].dim() == 5 and key != "stem.0.weight":  # pixels still have three channels
            shape[1] //= 2
        assert list(half[key].shape) == shape, key


@pytest.mark.parametrize(("width", "middle"), [(64, 45), (32, 22), (4, 2)])
def test_the_two_part_stem_scales_its_middle(width, middle):
    stem = _on_meta(build_backbone, "r2plus1d_10", width).stem
    shapes = [tuple(stem[i].weight.shape[:2]) for i in (0, 3)]
    assert shapes == [(middle, 3), (width, middle)]


def test_the_seed_decides_the_weights():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return build_backbone("r3d_small").layer1[0].conv1[0].weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_errors_name_what_was_given():
    with pytest.raises(ValueError, match=r"'r3d_50'.*r3d_18"):
        build_backbone("r3d_50")
    with pytest.raises(ValueError, match="at least 4, got 3"):
        build_backbone("r3d_18", 3)
    with pytest.raises(ValueError, match=r"fixed width.*32"):
        build_backbone("s3d", 32)
