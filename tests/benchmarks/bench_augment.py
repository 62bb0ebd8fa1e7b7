"""How long augmentation takes a clip: one by one and together, on the CPU and on a GPU where there is one.

Run ``python tests/benchmarks/bench_augment.py`` for the table, or ``pytest -m benchmark`` for the bar,
which takes a GPU. On a CPU both paths run on one core, in turns; the table shows why the CPU keeps to
clip by clip. On a GPU the time is from the call to the end of its last kernel, copies of the bytes
from pinned memory included.
"""

import statistics
import sys
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mcn.data._batched import augment_together
from mcn.data.augment import Augmentation, AugmentConfig, augment_batch, draw_augmentation

FRAMES, SIZE, SHAPE, ROUNDS, BAR = 33, 128, (128, 171), 7, 1.0
Batch = tuple[list[Tensor], list[Augmentation]]


def batch(count: int, pin: bool = False) -> Batch:
    """Clips of noise as UCF101's are when prepared, with draws of the default strengths."""
    generator = torch.Generator().manual_seed(0)
    size = (FRAMES, *SHAPE, 3)
    clips = [torch.randint(256, size, dtype=torch.uint8, generator=generator) for _ in range(count)]
    augs = [draw_augmentation(AugmentConfig(size=SIZE), *SHAPE, generator) for _ in range(count)]
    return [clip.pin_memory() for clip in clips] if pin else clips, augs


def on_cpu(count: int) -> dict[str, float]:
    """Milliseconds a clip (median of rounds) of both paths on one core."""
    clips, augs = batch(count)
    sigmas = [aug.sigma * SIZE / 128 for aug in augs]
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _medians(
            {
                "clip by clip": lambda: augment_batch(clips, augs, SIZE),
                "together": lambda: augment_together(clips, augs, sigmas, SIZE, cpu),
            },
            count,
        )
    finally:
        torch.set_num_threads(threads)


def on_gpu(count: int) -> dict[str, float]:
    """Milliseconds a clip (median of rounds), in batches of one and all together."""
    clips, augs = batch(count, pin=True)

    def one_by_one() -> None:
        for clip, aug in zip(clips, augs, strict=True):
            augment_batch([clip], [aug], SIZE, device="cuda")

    def together() -> None:
        augment_batch(clips, augs, SIZE, device="cuda")

    return _medians({"one by one": one_by_one, "together": together}, count, torch.cuda.synchronize)


def _medians(
    sides: dict[str, Callable[[], object]], count: int, wait: Callable[[], None] = lambda: None
) -> dict[str, float]:
    spent: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(ROUNDS + 1):
        for side, work in sides.items():
            wait()
            start = time.perf_counter()
            work()
            wait()
            if turn:  # the first warms up
                spent[side].append(1e3 * (time.perf_counter() - start) / count)
    return {side: statistics.median(times) for side, times in spent.items()}


@pytest.mark.benchmark
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_augments_a_batch_faster_than_its_clips() -> None:
    times = on_gpu(28)
    ratio = times["one by one"] / times["together"]
    assert ratio >= BAR, f"{ratio:.1f} times as fast together as one by one; the bar is {BAR}"


def main() -> None:
    """Print the table."""
    print(f"{FRAMES} frames of {SHAPE[0]} x {SHAPE[1]} to {SIZE} x {SIZE}; milliseconds a clip (median)")
    measured = {("CPU, one core", count): on_cpu(count) for count in (1, 8)}
    if torch.cuda.is_available():
        measured |= {(torch.cuda.get_device_name(), count): on_gpu(count) for count in (1, 8, 28, 64)}
    for (device, count), times in measured.items():
        cells = "".join(f"{side:>16s}{each:8.2f}" for side, each in times.items())
        print(f"{device:24s} batch of {count:2d}{cells}")


if __name__ == "__main__":
    sys.exit(main())
