"""TV-L1 flow: frame pairs a second in torch beside OpenCV on one core, and how far the two are apart.

Run ``python tests/benchmarks/bench_flow.py`` for the table, or ``pytest -m benchmark`` for the bars. On a
CPU both have one core and take turns, so that a busy machine slows both. A GPU gets all pairs in
batches, many times over.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from mcn.data.readers import open_video
from mcn.preparation.flow import quantise, to_grey
from mcn.preparation.flow_device import device_flow
from mcn.preparation.tvl1 import tvl1_flow

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PAIRS, BAR_GPU, BAR_PIXELS = 24, 10.0, 0.1
_GPU_SECONDS = 10.0


def frame_pairs() -> tuple[Tensor, Tensor, str]:
    """Grey pairs (B, H, W) from the middle of UCF101 (13 classes) where present, else made-up ones."""
    files = sorted((SHARED / "ucf101_subset" / "videos").rglob("*.avi"))
    if not files:
        return *_made_up(), "made-up pairs"
    pairs = []
    for path in files[:: len(files) // PAIRS][:PAIRS]:
        with open_video(path) as video:
            pairs.append(to_grey(video.frames([len(video) // 2, len(video) // 2 + 1])))
    size = pairs[0].shape
    both = torch.from_numpy(np.stack([pair for pair in pairs if pair.shape == size]))
    return both[:, 0].contiguous(), both[:, 1].contiguous(), "UCF101 (13 classes)"


def _made_up() -> tuple[Tensor, Tensor]:
    """Soft textures, 170 x 128, that move by up to 3 pixels."""
    noise = torch.rand(PAIRS, 1, 16, 20, generator=torch.Generator().manual_seed(0))
    scenes = torch.nn.functional.interpolate(noise, size=(134, 176), mode="bicubic").clamp(0, 1)[:, 0] * 255
    after = torch.stack([scene[i % 4 :][:128, (i // 4) % 4 :][:, :170] for i, scene in enumerate(scenes)])
    return scenes[:, 2:130, 2:172].round(), after.round()


class Result(NamedTuple):
    """Medians of seconds a pair, of the ratio within a turn, and what is between the two flows."""

    opencv: float
    torch: float
    ratio: float
    pixels: np.ndarray
    levels: np.ndarray


def on_one_core(before: Tensor, after: Tensor, rounds: int = 1) -> Result:
    """Both methods by turns on one core."""
    cv2: Any = pytest.importorskip("cv2")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    method = cv2.optflow.createOptFlow_DualTVL1()
    seconds, pixels, levels = [], [], []
    step = 3  # pairs that torch takes at a time, as mcn.preparation.flow does at this size
    try:
        for _ in range(rounds):
            for first in range(0, len(before), step):
                one, other = before[first : first + step], after[first : first + step]
                start = time.perf_counter()
                expected = [
                    method.calc(a.byte().numpy(), b.byte().numpy(), None)
                    for a, b in zip(one, other, strict=True)
                ]
                middle = time.perf_counter()
                flow = tvl1_flow(one, other).movedim(1, -1).numpy()
                end = time.perf_counter()
                seconds.append(((middle - start) / len(one), (end - middle) / len(one)))
                pixels.append(np.linalg.norm(flow - np.stack(expected), axis=-1))
                levels.append(np.abs(quantise(flow).astype(int) - quantise(np.stack(expected))))
    finally:
        torch.set_num_threads(threads)
    theirs, ours = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratio = statistics.median(a / b for a, b in seconds)
    return Result(theirs, ours, ratio, np.concatenate(pixels), np.concatenate(levels))


def on_gpu(before: Tensor, after: Tensor) -> float:
    """Seconds a pair on the GPU, in batches as large as :mod:`mcn.preparation.flow_device` makes them."""
    device = torch.device("cuda")
    size = before[0].numel()
    times = max(1, device_flow("cuda").pixels // (len(before) * size))
    one, other = before.to(device).repeat(times, 1, 1), after.to(device).repeat(times, 1, 1)
    tvl1_flow(one, other)  # the first call loads kernels
    torch.cuda.synchronize()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < _GPU_SECONDS:
        tvl1_flow(one, other).cpu()
        done += len(one)
    return (time.perf_counter() - start) / done


@pytest.mark.benchmark
def test_torch_agrees_with_opencv_and_is_not_slower_on_a_core() -> None:
    before, after, _ = frame_pairs()
    result = on_one_core(before, after)
    assert result.pixels.mean() <= BAR_PIXELS
    assert result.ratio > 0.8, f"{result.ratio:.2f} times as fast as OpenCV on one core"


@pytest.mark.benchmark
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_is_ten_times_as_fast_as_opencv_on_a_core() -> None:
    before, after, _ = frame_pairs()
    ratio = on_one_core(before, after).opencv / on_gpu(before, after)
    assert ratio >= BAR_GPU, f"{ratio:.1f} times as fast as OpenCV on one core; the bar is {BAR_GPU}"


def main() -> int:
    """Print the table."""
    before, after, source = frame_pairs()
    height, width = before.shape[1:]
    result = on_one_core(before, after, rounds=3)
    print(f"{len(before)} pairs of {source}, {width} x {height}")
    print(f"OpenCV, one core   {1 / result.opencv:7.2f} pairs/s")
    print(f"torch, one core    {1 / result.torch:7.2f} pairs/s  {result.ratio:5.2f} times as fast (by turns)")
    if torch.cuda.is_available():
        gpu = on_gpu(before, after)
        name = torch.cuda.get_device_name()
        print(f"torch, {name} {1 / gpu:7.2f} pairs/s  {result.opencv / gpu:5.1f} times as fast")
    else:
        print("torch, GPU         not measured: none here")
    p, q = result.pixels, result.levels
    print(f"apart: mean {p.mean():.4f} pixel, 95 % within {np.quantile(p, 0.95):.4f}, worst {p.max():.2f}")
    print(f"stored: {(q > 0).mean():.1%} of bytes differ, by {q.mean():.3f} levels of .157 pixel on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
