"""The network: one set of weights, statistics of each view, pure calls, options, round trips."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mcn._torchvision import torchvision
from mcn.backbones import build_backbone
from mcn.network import (
    FCM_INPUTS,
    HEADS,
    PROJECTIONS,
    SHARING,
    STATISTICS,
    MetaContrastiveNetwork,
    call_with,
    running_statistics,
    shared_parameters,
)
from mcn.pairing import combine_features


def _network(seed: int = 0, **options) -> MetaContrastiveNetwork:
    torch.manual_seed(seed)
    return MetaContrastiveNetwork("r3d_small", width=4, **{"dim": 8, **options}).double()


def _clips(count: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """``count`` batches of 4 clips, each with a mean and a scale of its own."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 3, 8, 16, 16)
    return [(i + 1) * torch.randn(shape, generator=generator, dtype=torch.float64) + i for i in range(count)]


def _assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]):
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def _copies(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _is_tied(network: MetaContrastiveNetwork) -> bool:
    first, second = (dict(b.named_parameters()) for b in network.backbones)
    return list(first) == list(second) and all(first[name] is second[name] for name in first)


# ---- one set of weights


def test_shared_weights_are_counted_once():
    network = _network()
    backbone = dict(build_backbone("r3d_small", 4).named_parameters())
    expected = {f"backbones.0.{name}" for name in backbone}
    expected |= {f"fc.{end}" for end in ("weight", "bias")}
    expected |= {f"meta_head.{layer}.{end}" for layer in (0, 2) for end in ("weight", "bias")}
    assert set(shared_parameters(network)) == expected
    assert len(list(network.parameters())) == len(expected)
    assert _is_tied(network)


def test_separate_backbones_share_nothing():
    network = _network(sharing="separate")
    first, second = (list(b.parameters()) for b in network.backbones)
    assert not {id(p) for p in first} & {id(p) for p in second}
    assert len(shared_parameters(network)) == len(first) + len(second) + 6
    assert not torch.equal(first[0], second[0])  # not a copy either


def test_the_gradient_of_shared_weights_is_the_sum_of_both_views():
    shared, separate = _network(), _network(sharing="separate")
    separate.load_state_dict(shared.state_dict())
    for network in (shared, separate):
        out = network(*_clips())
        (out.z1.square().sum() + (2 * out.z2).square().sum() + out.logits.sum()).backward()
    first, second = (dict(b.named_parameters()) for b in separate.backbones)
    for name, parameter in shared.backbones[0].named_parameters():
        total = first[name].grad + second[name].grad
        torch.testing.assert_close(parameter.grad, total, rtol=1e-9, atol=1e-10)


def test_each_view_has_a_forward_of_its_own():
    """BatchNorm normalises a view by that view alone: the other one changes nothing."""
    network, (rgb, residual, other) = _network(), _clips(3)
    alone = network.embed(network.features(rgb, 0))
    for second in (residual, other):
        assert torch.equal(network(rgb, second).z1, alone)


# ---- BatchNorm's running statistics


def test_running_statistics_are_kept_for_each_view():
    network, (rgb, residual) = _network(), _clips()
    network(rgb, residual)
    first, second = (dict(b.named_buffers()) for b in network.backbones)
    for name in first:
        if name.endswith("num_batches_tracked"):
            assert first[name] == second[name] == 1
        else:
            assert not torch.allclose(first[name], second[name]), name


def test_a_pass_of_one_view_leaves_the_statistics_of_the_other():
    network, (rgb, _) = _network(), _clips()
    before = {name: b.clone() for name, b in network.backbones[1].named_buffers()}
    network.features(rgb, 0)
    _assert_same(dict(network.backbones[1].named_buffers()), before)
    assert network.backbones[0].stem[1].num_batches_tracked == 1


def test_an_evaluation_sees_its_own_views_statistics():
    network, (rgb, residual) = _network(), _clips()
    alone = _network()
    for _ in range(3):
        network(rgb, residual)
        alone.features(rgb, 0)
    with torch.no_grad():
        feature = network.eval().features(rgb, 0)
        assert torch.equal(feature, alone.eval().features(rgb, 0))
        assert not torch.allclose(feature, network.features(rgb, 1))


def test_mixed_statistics_are_one_set_that_sees_both_views():
    network, (rgb, residual) = _network(statistics="mixed"), _clips()
    assert network.backbone(0) is network.backbone(1)
    network(rgb, residual)
    assert network.backbones[0].stem[1].num_batches_tracked == 2
    assert len(running_statistics(network)) == len(list(network.backbone().buffers()))


def _stem_statistics(weight: torch.Tensor, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of the stem's convolution over batch, time and place."""
    x = F.conv3d(clip, weight, stride=(1, 2, 2), padding=(1, 3, 3)).transpose(0, 1).flatten(1)
    return x.mean(1), x.var(1, unbiased=True)


def _support_then_query(network: MetaContrastiveNetwork, clips: list[torch.Tensor]):
    """The two passes of a meta step, the second at other parameters, into one set of buffers."""
    theta, buffers = shared_parameters(network), running_statistics(network)
    adapted = {name: 1.5 * p for name, p in theta.items()}
    call_with(network, theta, buffers, *clips[:2])
    call_with(network, adapted, buffers, *clips[2:])
    return buffers, theta["backbones.0.stem.0.weight"], adapted["backbones.0.stem.0.weight"]


def _assert_stem(buffers: dict[str, torch.Tensor], view: int, passes: list[tuple]):
    """momentum .1: ``running <- .9 running + .1 batch`` for each (weight, clip) in turn."""
    mean, variance = torch.zeros(4).double(), torch.ones(4).double()
    for weight, clip in passes:
        batch_mean, batch_variance = _stem_statistics(weight, clip)
        mean, variance = 0.9 * mean + 0.1 * batch_mean, 0.9 * variance + 0.1 * batch_variance
    stem = f"backbones.{view}.stem.1"
    torch.testing.assert_close(buffers[f"{stem}.running_mean"], mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(buffers[f"{stem}.running_var"], variance, rtol=1e-10, atol=1e-10)
    assert buffers[f"{stem}.num_batches_tracked"] == len(passes)


def test_support_and_query_count_once_a_view():
    """Protocol row 36, by BatchNorm's formula written out for the first layer."""
    network, clips = _network(), _clips(4)
    buffers, theta, adapted = _support_then_query(network, clips)
    for view in (0, 1):
        _assert_stem(buffers, view, [(theta, clips[view]), (adapted, clips[2 + view])])


def test_support_and_query_with_mixed_statistics_count_all_four_passes():
    network, clips = _network(statistics="mixed"), _clips(4)
    buffers, theta, adapted = _support_then_query(network, clips)
    weights = (theta, theta, adapted, adapted)
    _assert_stem(buffers, 0, list(zip(weights, clips, strict=True)))


# ---- pure calls


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("statistics", STATISTICS)
def test_call_with_is_a_forward_at_other_parameters(sharing, statistics):
    options = {"sharing": sharing, "statistics": statistics}
    network, oracle = _network(0, **options), _network(1, **options)
    before, clips, objects = _copies(network), _clips(), list(network.parameters())
    params, buffers = shared_parameters(oracle), running_statistics(oracle)
    out, expected = call_with(network, params, buffers, *clips), oracle(*clips)
    for ours, theirs in zip(out, expected, strict=True):
        assert torch.equal(ours, theirs)
    _assert_same(buffers, dict(oracle.named_buffers()))  # as a plain train-mode forward writes them
    _assert_same(_copies(network), before)
    assert all(a is b for a, b in zip(network.parameters(), objects, strict=True))


def test_call_with_differentiates_only_what_it_was_given():
    network = _network()
    params = {name: p.detach().clone().requires_grad_() for name, p in shared_parameters(network).items()}
    out = call_with(network, params, running_statistics(network), *_clips())
    (out.z1.sum() + out.z2.square().sum() + out.logits.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in params.values())
    assert all(p.grad is None for p in network.parameters())


def test_call_with_in_eval_mode_reads_the_given_buffers():
    network, clips = _network().eval(), _clips()
    buffers = running_statistics(network)
    for name in buffers:
        if name.startswith("backbones.1.") and name.endswith("running_var"):
            buffers[name] *= 4
    kept = {name: b.clone() for name, b in buffers.items()}
    out, plain = call_with(network, shared_parameters(network), buffers, *clips), network(*clips)
    assert torch.equal(out.z1, plain.z1)
    assert not torch.allclose(out.z2, plain.z2)
    _assert_same(buffers, kept)


def test_running_statistics_are_copies():
    network = _network()
    before, buffers = _copies(network), running_statistics(network)
    for buffer in buffers.values():
        buffer.add_(1)
    _assert_same(_copies(network), before)


# ---- ties survive copies and files


@pytest.mark.parametrize(
    "make",
    [
        copy.deepcopy,
        lambda n: n.float(),
        lambda n: (n.load_state_dict(_network(5).state_dict()), n)[1],
        lambda n: torch.load(_saved(n), weights_only=False),
    ],
    ids=["deepcopy", "float", "load_state_dict", "pickle"],
)
def test_weights_stay_shared(make):
    network = make(_network())
    assert _is_tied(network)
    dtype = next(network.parameters()).dtype
    with torch.no_grad():
        network.backbones[0].stem[0].weight.fill_(2.0)
    assert torch.equal(
        network.backbones[1].stem[0].weight, torch.full_like(network.backbones[0].stem[0].weight, 2.0)
    )
    clips = [clip.to(dtype) for clip in _clips()]
    network(*clips)
    means = [b.stem[1].running_mean for b in network.backbones]
    assert not torch.allclose(*means)  # and statistics stay apart


def _saved(network: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("sharing", SHARING)
def test_state_dict_round_trip(sharing):
    network, other = _network(0, sharing=sharing), _network(1, sharing=sharing)
    network(*_clips())
    other.load_state_dict(network.state_dict())
    _assert_same(other.state_dict(), network.state_dict())
    clips = _clips(seed=3)
    for ours, theirs in zip(other.eval()(*clips), network.eval()(*clips), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("view", [0, 1])
def test_backbone_state_is_one_views_and_loads_elsewhere(view):
    network, clips = _network(), _clips()
    network(*clips)
    state = network.backbone_state(view)
    backbone = build_backbone("r3d_small", 4).double()
    backbone.load_state_dict(state)
    with torch.no_grad():
        expected = network.eval().features(clips[view], view)
        assert torch.equal(backbone.eval()(clips[view]), expected)
    state["stem.0.weight"].zero_()
    assert network.backbones[0].stem[0].weight.any()  # a copy, not the weights themselves


def test_backbone_state_has_torchvisions_keys():
    with torch.device("meta"):
        state = MetaContrastiveNetwork("r3d_18").backbone_state()
        theirs = torchvision.models.video.r3d_18().state_dict()
    assert list(state) == [name for name in theirs if not name.startswith("fc.")]


# ---- settings


@pytest.mark.parametrize("fcm_input", FCM_INPUTS)
def test_what_fcm_pairs_up(fcm_input):
    network, clips = _network(fcm_input=fcm_input), _clips()
    seen = []
    network.meta_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = network(*clips)
    h1, h2 = network.features(clips[0], 0), network.features(clips[1], 1)
    expected = {
        "embedding": (out.z1, out.z2),
        "normalised": (F.normalize(out.z1, dim=-1), F.normalize(out.z2, dim=-1)),
        "pooled": (h1, h2),
    }[fcm_input]
    assert torch.equal(seen[0], combine_features(*expected).features)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("fcm_input", FCM_INPUTS)
def test_every_head_and_projection_runs_and_trains(head, projection, fcm_input):
    network = _network(head=head, projection=projection, fcm_input=fcm_input)
    out = network(*_clips())
    dim = 32 if projection == "none" else 8
    assert network.dim == dim
    assert out.z1.shape == out.z2.shape == (4, dim)
    assert out.logits.shape == out.labels.shape == out.group.shape == (16,)
    (out.z1.pow(4).sum() + out.z2.pow(3).sum() + out.logits.square().sum()).backward()
    for name, p in network.named_parameters():
        if projection == "linear_bn" and name == "fc.0.bias":
            continue  # BatchNorm takes the bias away again
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("head", "layers"), [("linear", 1), ("mlp", 2)])
def test_layers_of_the_meta_head(head, layers):
    linear = [m for m in _network(head=head).meta_head.modules() if isinstance(m, nn.Linear)]
    widths = [(m.in_features, m.out_features) for m in linear]
    assert widths == {1: [(16, 1)], 2: [(16, 8), (8, 1)]}[layers]


def test_group_and_pairing_reach_fcm():
    out = _network(fcm_group=2)(*_clips())
    assert out.labels.tolist() == [1, 0, 0, 1] * 2
    assert out.group.tolist() == [0] * 4 + [1] * 4
    assert _network(fcm_pairing="all")(*_clips()).logits.shape == (28,)


@pytest.mark.parametrize("option", ["projection", "head", "fcm_input", "sharing", "statistics"])
def test_a_setting_that_does_not_exist_raises(option):
    with pytest.raises(ValueError, match=f"{option} is one of .*: got 'other'"):
        _network(**{option: "other"})


def test_a_pairing_that_does_not_exist_raises():
    with pytest.raises(ValueError, match="pairing is one of"):
        _network(fcm_pairing="other")(*_clips())
