"""bf16, channels_last_3d and checkpointing on a CPU: errors, time and memory, as ratios.

Run ``python tests/benchmarks/bench_precision.py`` for the numbers, or ``pytest -m benchmark`` for the bars.

*Errors of bf16.* g_s at theta, g_q at theta-bar and the Hessian product along v (``fast``), each at *given*
theta, theta-bar and v (those of float32), of Eq. 5 on random clips of 8 frames of 32 x 32, 8 videos, an
untrained network at width 8 (r3d_small: its own 16 halved): relative error and cosine, against float32. On
a copy whose ReLUs are softplus, and as it is, where one rounding flips units. oneDNN is switched off, whose
bf16 gradients of 3-D convolutions are wrong on some CPUs; PyTorch's own convolutions take its place.

*Time* is CPU time of one thread, which other processes hardly touch; the ways take turns, medians.
"""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mcn.backbones import build_backbone
from mcn.config import PretrainConfig
from mcn.memory import counted
from mcn.meta import meta_gradient
from mcn.network import MetaContrastiveNetwork, shared_parameters
from mcn.precision import Precision, prepare
from mcn.stage import Batch, StageLoss

RESNETS = ("r3d_small", "r3d_18", "r2plus1d_18")
ERROR_BAR, COSINE_BAR = 0.1, 0.99  # of smooth networks in bf16
INNER_LR = 0.01


class Error(NamedTuple):
    """Of a gradient in bf16, against float32."""

    relative: float
    cosine: float


def config_of(backbone: str, width: int | None, **more: Any) -> PretrainConfig:
    """Settings of a small network, in float32 unless told otherwise."""
    return PretrainConfig(backbone=backbone, width=width, dim=32, **{"precision": "fp32", **more})  # type: ignore[arg-type]


def network_of(config: PretrainConfig) -> MetaContrastiveNetwork:
    torch.manual_seed(0)
    return MetaContrastiveNetwork(config.backbone, width=config.width, dim=config.dim).train()


def batch_of(videos: int, shape: tuple[int, int, int], seed: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    view1, view2 = torch.randn(2, videos, 3, *shape, generator=random)
    rows = nn.functional.normalize(torch.randn(2, 64, 32, generator=random), dim=-1)
    return Batch(view1, view2, torch.arange(videos), rows, None, seed)


def smooth(module: nn.Module) -> None:
    for name, part in module.named_children():
        if isinstance(part, nn.ReLU):
            setattr(module, name, nn.Softplus())
        else:
            smooth(part)


def gradient_and_product(
    loss: StageLoss, at: dict[str, Tensor], v: list[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    theta = [p.detach().requires_grad_() for p in at.values()]
    g = torch.autograd.grad(loss(dict(zip(at, theta, strict=True))), theta, create_graph=v is not None)
    return [x.detach() for x in g], list(torch.autograd.grad(g, theta, v)) if v is not None else []


def compared(found: list[Tensor], expected: list[Tensor]) -> Error:
    a, b = (torch.cat([x.flatten() for x in each]).double() for each in (found, expected))
    return Error(((a - b).norm() / b.norm()).item(), torch.cosine_similarity(a, b, dim=0).item())


def errors_of_bf16(backbone: str, made_smooth: bool) -> dict[str, Error]:
    """Errors of g_s, g_q and H v."""
    config = config_of(backbone, None if backbone == "s3d" else 8)
    half = dataclasses.replace(config, precision="bf16")
    network = network_of(config)
    if made_smooth:
        smooth(network)
    support, query = (batch_of(8, (8, 32, 32), seed) for seed in (1, 2))
    theta = {name: p.detach() for name, p in shared_parameters(network).items()}
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        g_s, _ = gradient_and_product(StageLoss(network, support, config), theta, None)
        adapted = {name: p - INNER_LR * g for (name, p), g in zip(theta.items(), g_s, strict=True)}
        g_q, _ = gradient_and_product(StageLoss(network, query, config), adapted, None)
        _, product = gradient_and_product(StageLoss(network, support, config), theta, g_q)
        h_s, h_product = gradient_and_product(StageLoss(network, support, half), theta, g_q)
        h_q, _ = gradient_and_product(StageLoss(network, query, half), adapted, None)
    finally:
        torch.backends.mkldnn.enabled = before
    return {"g_s": compared(h_s, g_s), "g_q": compared(h_q, g_q), "H v": compared(h_product, product)}


def medians(ways: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of CPU time; ways take turns, and the first round warms up."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds + 1):
            for name, work in ways.items():
                start = time.process_time()
                work()
                spent[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(each[1:]) for name, each in spent.items()}


def step_of(config: PretrainConfig, network: MetaContrastiveNetwork) -> Callable[[], object]:
    """A gradient of 4 + 4 videos of 8 frames of 64 x 64."""
    support, query = (batch_of(4, (8, 64, 64), seed) for seed in (1, 2))
    params = shared_parameters(network)

    def step() -> object:
        losses = (StageLoss(network, batch, config) for batch in (support, query))
        if config.order == "none":
            return meta_gradient(None, list(losses)[1], params, 0.0, inner_steps=0)
        return meta_gradient(*losses, params, INNER_LR, order=config.order, method=config.method)

    return step


STEPS = {
    "none": ("none", "auto"),
    "first": ("first", "auto"),
    "fast": ("exact", "fast"),
    "lean": ("exact", "lean"),
}


def channels_last_time(backbone: str, width: int | None, step: str) -> float:
    """Time of a step with channels last, as a share of the time without."""
    order, method = STEPS[step]
    config = config_of(backbone, width, order=order, method=method)
    network = network_of(config)
    other = prepare(copy.deepcopy(network), dataclasses.replace(config, channels_last=True))
    taken = medians({"plain": step_of(config, network), "last": step_of(config, other)})
    return taken["last"] / taken["plain"]


def checkpointing_cost(backbone: str, width: int | None) -> tuple[float, float]:
    """Memory kept for the way back, and time of a plain step, as shares of those without."""
    plain = config_of(backbone, width, order="none")
    again = dataclasses.replace(plain, checkpointing=True)
    network, kept = network_of(plain), []
    for config in (plain, again):
        with counted() as found:
            StageLoss(network, batch_of(4, (8, 64, 64), 1), config)(shared_parameters(network))
        kept.append(found.bytes)
    taken = medians({"plain": step_of(plain, network), "again": step_of(again, network)})
    return kept[1] / kept[0], taken["again"] / taken["plain"]


def bf16_features(backbone: str, width: int | None) -> tuple[float, float]:
    """Relative error of pooled features in bf16, and their time as a share of float32's."""
    torch.manual_seed(0)
    module = build_backbone(backbone, width)
    clips = torch.randn(8, 3, 8, 64, 64)

    @torch.no_grad()
    def made(name: str) -> Tensor:
        with Precision(name).autocast():
            return module(clips).float()

    for _ in range(20):  # running statistics
        made("fp32")
    module.eval()
    full, half = made("fp32"), made("bf16")
    taken = medians({name: lambda name=name: made(name) for name in ("fp32", "bf16")})  # type: ignore[misc]
    return ((half - full).norm() / full.norm()).item(), taken["bf16"] / taken["fp32"]


@pytest.mark.benchmark
@pytest.mark.parametrize("backbone", RESNETS)
def test_bf16_gradients_of_smooth_networks_are_float32s_but_for_rounding(backbone: str) -> None:
    for error in errors_of_bf16(backbone, made_smooth=True).values():
        assert error.relative <= ERROR_BAR
        assert error.cosine >= COSINE_BAR


@pytest.mark.benchmark
def test_channels_last_is_off_because_it_slows_some_networks() -> None:
    assert channels_last_time("r2plus1d_18", 16, "fast") > 1


@pytest.mark.benchmark
def test_checkpointing_keeps_less() -> None:
    assert checkpointing_cost("r3d_18", 16)[0] < 0.6


if __name__ == "__main__":
    sizes = {"r3d_small": None, "r3d_18": 32, "r2plus1d_18": 16, "s3d": None}
    print("channels_last_3d: time / time without")
    for backbone, width in sizes.items():
        ratios = {step: channels_last_time(backbone, width, step) for step in STEPS}
        print(f"  {backbone:12}", "  ".join(f"{step} {r:.2f}" for step, r in ratios.items()), flush=True)
    print("checkpointing, order none: memory kept, time")
    for backbone, width in sizes.items():
        print(
            f"  {backbone:12} {'  '.join(f'{x:.2f}' for x in checkpointing_cost(backbone, width))}",
            flush=True,
        )
    print("features in bf16: relative error, time / float32's")
    for backbone, width in sizes.items():
        print(f"  {backbone:12} {'  '.join(f'{x:.4f}' for x in bf16_features(backbone, width))}", flush=True)
    print("gradients in bf16: relative error, cosine")
    for made_smooth in (True, False):
        for backbone in (*sizes, "r3d_10", "r2plus1d_10"):
            errors = errors_of_bf16(backbone, made_smooth)
            words = (f"{name} {e.relative:.3f} {e.cosine:.3f}" for name, e in errors.items())
            print(f"  {'smooth' if made_smooth else 'ReLU':7}{backbone:12}", "  ".join(words), flush=True)
