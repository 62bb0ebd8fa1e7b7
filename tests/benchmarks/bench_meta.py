"""The ways to the exact order against the textbook graph: time of a step, memory of a clip.

Run ``python tests/benchmarks/bench_meta.py`` for the numbers, or ``pytest -m benchmark`` for the bars.

The *textbook graph* is MAML as written: one graph through the inner update (``create_graph=True``),
differentiated as a whole. *Time* is of ``r3d_18`` at its full width on 8 frames of 64 x 64, float32, one
thread; the ways take turns, so that a busy machine slows all of them, and medians are compared.

*Memory* is the peak of what PyTorch's CPU allocator has handed out during a step, as its profiler records
every allocation and release; all tensors count, also those of a moment. What does not grow with the batch
(weights, gradients) is taken out: it is the difference of the peaks at two batch sizes, per clip. The
network is ``r3d_18`` at a quarter of its width on the same clips, where activations, as at the paper's
clips of 32 frames of 128 x 128, outweigh weights; layers and their proportions are the same.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mcn.bank import FeatureBank
from mcn.lean import Block
from mcn.losses import classification_loss, meta_loss, multiview_loss
from mcn.meta import Loss, Params, meta_gradient
from mcn.network import (
    MetaContrastiveNetwork,
    Outputs,
    blocks_with,
    call_with,
    running_statistics,
    shared_parameters,
)

TIME_BAR, MEMORY_BAR = 1.35, 0.32  # of lean, as shares of the textbook graph
ROUNDS, VIDEOS = 3, 2
INNER_LR = 0.01

Step = Callable[[Loss, Loss, Params], Params]


class StageLoss:
    """Eq. 5 on random clips, in one piece and as blocks."""

    def __init__(self, network: MetaContrastiveNetwork, videos: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.clips = torch.randn(2, videos, 3, 8, 64, 64, generator=random)
        self.network, self.index = network, torch.arange(videos)
        self.rows = FeatureBank(64, network.dim, generator=random).snapshot()

    def of(self, out: Outputs) -> Tensor:
        contrast = multiview_loss(out.z1, out.z2, self.rows, self.index)
        return meta_loss(classification_loss(out.logits, out.labels, out.group), contrast)

    def __call__(self, params: Params, /) -> Tensor:
        return self.of(call_with(self.network, params, running_statistics(self.network), *self.clips))

    def blocks(self) -> list[Block]:
        return blocks_with(self.network, running_statistics(self.network), *self.clips, self.of)


def textbook(support: Loss, query: Loss, params: Params) -> Params:
    """One graph through the inner update."""
    theta = {name: p.detach().requires_grad_() for name, p in params.items()}
    g = torch.autograd.grad(support(theta), tuple(theta.values()), create_graph=True)
    adapted = {name: p - INNER_LR * d for (name, p), d in zip(theta.items(), g, strict=True)}
    return dict(zip(theta, torch.autograd.grad(query(adapted), tuple(theta.values())), strict=True))


def way(**options: str) -> Step:
    return lambda support, query, params: meta_gradient(support, query, params, INNER_LR, **options).gradients


WAYS: dict[str, Step] = {
    "textbook": textbook,
    "first order": way(order="first"),
    "fast": way(method="fast"),
    "balanced": way(method="balanced"),
    "lean": way(method="lean"),
}


def case(videos: int, width: int) -> tuple[Loss, Loss, Params]:
    torch.manual_seed(0)
    network = MetaContrastiveNetwork("r3d_18", width=width).train()
    return StageLoss(network, videos, 1), StageLoss(network, videos, 2), shared_parameters(network)


def times(ways: dict[str, Step], width: int = 64, rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of a step; the first round warms up."""
    given, spent = case(VIDEOS, width), {name: [] for name in ways}  # type: ignore[var-annotated]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds + 1):
            for name, step in ways.items():
                start = time.perf_counter()
                step(*given)
                spent[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(seconds[1:]) for name, seconds in spent.items()}


def peak(work: Callable[[], object]) -> int:
    """Most bytes that were allocated at a time during ``work``, above what there was before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    total, first = [event["args"]["Total Allocated"] for event in events], events[0]["args"]
    return max(total) - (first["Total Allocated"] - first["Bytes"])


def memory_of_a_clip(
    ways: dict[str, Step], width: int = 16, sizes: tuple[int, int] = (4, 8)
) -> dict[str, float]:
    """Bytes by which the peak of a step grows with each support and query clip."""

    def peaks(videos: int) -> dict[str, int]:
        given = case(videos, width)
        return {name: peak(partial(step, *given)) for name, step in ways.items()}

    small, large = (peaks(videos) for videos in sizes)
    return {name: (large[name] - small[name]) / (sizes[1] - sizes[0]) for name in ways}


def _two() -> dict[str, Step]:
    return {name: WAYS[name] for name in ("textbook", "lean")}


@pytest.mark.benchmark
def test_lean_takes_little_longer_than_the_textbook_graph() -> None:
    seconds = times(_two())
    assert seconds["lean"] <= TIME_BAR * seconds["textbook"]


@pytest.mark.benchmark
def test_lean_takes_a_third_of_the_textbook_graphs_memory() -> None:
    taken = memory_of_a_clip(_two())
    assert taken["lean"] <= MEMORY_BAR * taken["textbook"]


if __name__ == "__main__":
    seconds, taken = times(WAYS), memory_of_a_clip(WAYS)
    print("way           time / textbook   memory of a clip / textbook")
    for name in WAYS:
        print(
            f"{name:12}  {seconds[name] / seconds['textbook']:8.2f}  {taken[name] / taken['textbook']:18.2f}"
        )
