"""How long a training clip takes on one core: ours beside decord + torchvision.transforms.v2.

Run ``python tests/benchmarks/bench_clip.py`` for the table, or ``pytest -m benchmark`` for the bar.
Both sides read the same random clips of the same files, augment them with the same strengths, and
make the same two views. They take turns clip by clip, so that a busy machine slows both; what is
compared is the median over rounds of a ratio inside one round. Our reader counts a file's frames at
the first look; that pass is done before the clock starts and its cost printed apart.
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from mcn._torchvision import torchvision  # noqa: F401  (mends the import of v2 below)
from mcn.data.augment import AugmentConfig, apply_augmentation, draw_augmentation
from mcn.data.readers import open_video, probe_video
from mcn.data.sampling import random_clip

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FRAMES, SIZE, FILES, ROUNDS, BAR = 32, 128, 16, 9, 4.0
Times = dict[str, list[float]]


def video_files(folder: Path) -> list[Path]:
    """Files of UCF101 (13 classes) where present, else made-up ones of the same size in ``folder``."""
    real = sorted((SHARED / "ucf101_subset" / "videos").rglob("*.avi"))
    if real:
        return real[:: len(real) // FILES][:FILES]
    return [_made_up(folder / f"{i}.avi", seed=i) for i in range(FILES)]


def _made_up(path: Path, seed: int) -> Path:
    """180 frames of a moving soft pattern, 170 x 128, coded as the files of UCF101 (13 classes) are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 36, 3)).astype(float)
    scene = coarse.repeat(16, 0).repeat(16, 1)
    for axis in (0, 1):  # a running mean of 16 pixels: slopes, not edges
        scene = np.mean([np.roll(scene, shift, axis) for shift in range(16)], 0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": "30", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 170, 128, "yuv420p"
        for t in range(180):
            view = np.ascontiguousarray(scene[t // 4 : t // 4 + 128, 2 * t : 2 * t + 170], np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def ours(path: Path, generator: torch.Generator, tick: Callable[[str], None]) -> Tensor:
    """Our clip; ``tick`` is told the end of each stage."""
    with open_video(path) as video:
        frames = video.frames(random_clip(len(video), FRAMES + 1, 1, generator))
    tick("decode")
    clip = torch.from_numpy(frames)
    aug = draw_augmentation(AugmentConfig(size=SIZE), clip.shape[1], clip.shape[2], generator)
    clip = apply_augmentation(clip, aug, SIZE)
    tick("augment")
    return _views(clip, tick)


def peers(path: Path, transform: Any, generator: torch.Generator, tick: Callable) -> Tensor:
    """The same with decord and torchvision.transforms.v2."""
    import decord

    video = decord.VideoReader(str(path), num_threads=1)
    frames = video.get_batch(random_clip(len(video), FRAMES + 1, 1, generator)).asnumpy()
    tick("decode")
    clip = transform(torch.from_numpy(frames).permute(0, 3, 1, 2)).transpose(0, 1)
    tick("augment")
    return _views(clip, tick)


def _views(clip: Tensor, tick: Callable[[str], None]) -> Tensor:
    """Both views of ``(3, T + 1, H, W)``, stacked."""
    residual = (clip[:, 1:] - clip[:, :-1]).abs_()
    both = torch.stack((clip[:, :-1], residual))
    tick("views")
    return both


def v2_transform() -> Any:
    """Row 17's augmentation as one would write it with torchvision."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def _timed(make: Callable[[Callable[[str], None]], Tensor], times: Times) -> float:
    """Seconds for one clip; each stage is added to ``times``."""
    start = last = time.perf_counter()

    def tick(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        times[stage].append(now - last)
        last = now

    make(tick)
    return last - start


def measure(files: list[Path], rounds: int = ROUNDS) -> tuple[float, dict[str, Times]]:
    """Median ratio (their time over ours) and the stages' times in seconds, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0)]
    transform, ratios = v2_transform(), []
    stages: dict[str, Times] = {"ours": defaultdict(list), "v2": defaultdict(list)}
    try:
        for _ in range(rounds):
            spent = [0.0, 0.0]
            for path in files:
                spent[0] += _timed(lambda tick: ours(path, generators[0], tick), stages["ours"])  # noqa: B023
                spent[1] += _timed(
                    lambda tick: peers(path, transform, generators[1], tick),  # noqa: B023
                    stages["v2"],
                )
            ratios.append(spent[1] / spent[0])
    finally:
        torch.set_num_threads(threads)
    return statistics.median(ratios), stages


@pytest.mark.benchmark
def test_a_clip_is_four_times_as_fast_as_torchvision_v2(tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="the comparison reads with decord")
    files = video_files(tmp_path)
    for path in files:
        probe_video(path)
    torch.manual_seed(0)
    ratio, _ = measure(files)
    assert ratio >= BAR, f"{ratio:.1f} times as fast as decord + v2; the bar is {BAR}"


def main() -> None:
    """Print the table."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        files = video_files(Path(folder))
        start = time.perf_counter()
        for path in files:
            probe_video(path)
        first_look = (time.perf_counter() - start) / len(files)
        torch.manual_seed(0)
        ratio, stages = measure(files)
    print(f"{len(files)} files, {FRAMES} frames at {SIZE} x {SIZE}, one core; milliseconds a clip (mean)")
    print(f"{'':10s}{'decode':>9s}{'augment':>9s}{'views':>9s}{'total':>9s}{'clips/s':>9s}")
    for name, times in stages.items():
        means = [1e3 * statistics.fmean(times[stage]) for stage in ("decode", "augment", "views")]
        cells = "".join(f"{value:9.2f}" for value in [*means, sum(means), 1e3 / sum(means)])
        print(f"{name:10s}{cells}")
    print(f"ratio (median of {ROUNDS} rounds): {ratio:.2f}; bar {BAR}")
    print(f"first look at a file (counts its frames, once a process): {1e3 * first_look:.2f} ms")


if __name__ == "__main__":
    sys.exit(main())
