"""Bars of the ways to the exact order, as ``mcn bench step`` measures them: time of a step, memory of a clip.

Run ``pytest -m benchmark tests/benchmarks/bench_meta.py``. Bars are those of a network at a quarter of its
width on 8 frames of 64 x 64, where activations outweigh weights as they do at the paper's clips, one thread.
"""

from typing import Any

import pytest

from mcn.bench import bench_step
from mcn.config import BenchConfig


@pytest.fixture(scope="module", params=[("r3d_18", 2.5), ("r2plus1d_18", 2.25)], ids=lambda param: param[0])
def measured(request: pytest.FixtureRequest) -> tuple[dict[str, Any], float]:
    backbone, most = request.param
    config = BenchConfig(
        backbone=backbone, width=16, frames=8, size=64, batch_size=4, rounds=5, threads=1, device="cpu",
        ways=("fast", "balanced", "lean"),
    )  # fmt: skip
    return bench_step(config)["ways"], most


@pytest.mark.benchmark
def test_fast_is_no_more_work_than_the_textbook(measured: tuple[dict[str, Any], float]) -> None:
    ways, most = measured
    assert ways["fast"]["operations_to_textbook"] <= 1
    assert ways["fast"]["time_to_plain"] <= most


@pytest.mark.benchmark
@pytest.mark.parametrize(("way", "time", "memory"), [("balanced", 1.15, 0.70), ("lean", 1.35, 0.32)])
def test_less_memory_costs_little_time(
    way: str, time: float, memory: float, measured: tuple[dict[str, Any], float]
) -> None:
    assert measured[0][way]["time_to_textbook"] <= time
    assert measured[0][way]["memory_to_textbook"] <= memory
