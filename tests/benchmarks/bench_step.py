"""What a training step spends outside the network: the bank's loss, and the loop around it.

Run ``python tests/benchmarks/bench_step.py`` for the numbers, or ``pytest -m benchmark`` for the bars.
Both are shares of one run with ``r3d_18``, so a busy machine slows numerator and denominator alike.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mcn.loop
import mcn.pretrain
from mcn.bank import FeatureBank, draw_negatives
from mcn.config import PretrainConfig
from mcn.losses import multiview_loss
from mcn.network import MetaContrastiveNetwork
from mcn.preparation.synthetic import SyntheticConfig, write_synthetic_actions

BAR = 0.05
UCF101_TRAIN, VIDEOS, ROUNDS = 9537, 4, 5


def timed(work: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bank_share(negatives: int | None) -> float:
    """Bank work (snapshot, draw, both losses and their gradient, update) as a share of a plain step.

    ``r3d_18`` on 16 frames of 64 x 64, a sixteenth of the pixels of the paper's clip, so the share
    at the paper's size is smaller still; the bank has UCF101's size.
    """
    network = MetaContrastiveNetwork("r3d_18").train()
    bank = FeatureBank(UCF101_TRAIN, 128)
    clip = torch.randn(VIDEOS, 3, 16, 64, 64)
    index = torch.arange(VIDEOS)

    def step() -> None:
        out = network(clip, clip)
        (out.z1.sum() + out.z2.sum() + out.logits.sum()).backward()

    def banking() -> None:
        z1, z2 = (torch.randn(VIDEOS, 128, requires_grad=True) for _ in range(2))
        drawn = None if negatives is None else draw_negatives(index, len(bank), negatives)
        multiview_loss(z1, z2, bank.snapshot(), index, negatives=drawn).backward()
        bank.update(index, z1, z2)

    step(), banking()
    return statistics.median(timed(banking) / timed(step) for _ in range(ROUNDS))


def loop_share(folder: Path) -> float:
    """Everything in ``mcn pretrain`` that is not forward, backward or decoding, as a share of a step.

    ``r3d_18`` on 16 frames of 112 x 112. Augmentation, views, bank, optimiser, logging and progress all
    count as overhead here.
    """
    data = write_synthetic_actions(folder / "data", SyntheticConfig(classes=4, groups=4, frames=24))
    spent = {"network": 0.0, "decode": 0.0}
    ends: list[float] = []
    gradient, steps = mcn.pretrain.meta_gradient, mcn.loop.train_steps

    def timed_gradient(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = gradient(*args, **options)
        spent["network"] += time.perf_counter() - start
        return result

    def timed_steps(*args: Any, **options: Any) -> Iterator[Any]:
        inner = steps(*args, **options)
        while True:
            ends.append(time.perf_counter())
            item = next(inner, None)
            spent["decode"] += time.perf_counter() - ends[-1]
            if item is None:
                return
            yield item

    config = PretrainConfig(
        data=str(data), out=str(folder / "run"), frames=16, size=112, batch_size=VIDEOS, epochs=2, workers=0,
        order="none", checkpoint_every=1000,
    )  # fmt: skip
    mcn.pretrain.meta_gradient, mcn.loop.train_steps = timed_gradient, timed_steps
    try:
        mcn.pretrain.pretrain(config)
    finally:
        mcn.pretrain.meta_gradient, mcn.loop.train_steps = gradient, steps
    total = ends[-1] - ends[0]
    return (total - spent["network"] - spent["decode"]) / total


@pytest.mark.benchmark
@pytest.mark.parametrize("negatives", [1024, None])
def test_the_bank_costs_little(negatives: int | None) -> None:
    assert bank_share(negatives) < BAR


@pytest.mark.benchmark
def test_the_loop_costs_little(tmp_path: Path) -> None:
    assert loop_share(tmp_path) < BAR


if __name__ == "__main__":
    for k in (1024, None):
        print(f"bank's loss, {'whole bank' if k is None else f'k = {k}'}: {bank_share(k):.2%} of a step")
    with tempfile.TemporaryDirectory() as folder:
        print(f"loop's overhead: {loop_share(Path(folder)):.2%} of the run")
