"""What preparing a data set brings: clips from prepared files beside decord on the original ones.

Run ``python tests/benchmarks/bench_prepared.py`` for the tables, or ``pytest -m benchmark`` for the bars.
Both sides work on one core, on the same random clips, and take turns video by video, so that a busy
machine slows both; what is compared is the median over rounds of a ratio inside one round.

Training: read 33 frames, augment, make two views, against decord and torchvision.transforms.v2.
Testing: read 10 clips of 33 frames spread over a video, without augmentation, against decord.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from mcn._torchvision import torchvision  # noqa: F401  (mends the import of v2 below)
from mcn.data.augment import AugmentConfig, apply_augmentation, draw_augmentation
from mcn.data.manifest import Entry
from mcn.data.prepared import open_prepared
from mcn.data.sampling import random_clip, uniform_clips
from mcn.preparation.prepare import PrepareConfig, prepare

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FRAMES, SIZE, FILES, ROUNDS = 32, 128, 13, 9
# (kind of original, what is timed, form) -> how many times as fast as decord + v2, at least
BARS = {
    ("ucf101_original", "train", "video"): 4.0,
    ("ucf101_original", "train", "packed"): 5.0,
    ("ucf101_original", "test", "video"): 2.0,
    ("kinetics400", "test", "video"): 4.0,
}
# name: folder of real files; suffix, codec, height, width of what is made up where that is absent
KINDS = {
    "ucf101_original": ("samples/ucf101_original", ".avi", "mpeg4", 240, 320),
    "kinetics400": ("samples/kinetics400", ".mp4", "libx264", 256, 340),
    "ucf101_subset": ("ucf101_subset/videos", ".avi", "libx264", 128, 170),
}
Made = dict[str, tuple[Path, dict[str, Entry]]]


def originals(kind: str, folder: Path) -> Path:
    """A folder with some real files of a kind (as links), or made-up ones."""
    place, suffix, codec, height, width = KINDS[kind]
    folder.mkdir(parents=True)
    real = sorted(p for p in (SHARED / place).rglob("*") if p.suffix == suffix)
    for path in real[:: max(1, len(real) // FILES)][:FILES]:
        os.symlink(path, folder / path.name)
    for seed in range(0 if real else 6):
        _make_up(folder / f"{seed}{suffix}", codec, height, width, seed)
    return folder


def _make_up(path: Path, codec: str, height: int, width: int, seed: int) -> None:
    """180 frames of a moving soft pattern with some noise, B-frames between its keyframes."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 8, width // 16 + 24, 3)).astype(float)
    scene = coarse.repeat(16, 0).repeat(16, 1)
    for axis in (0, 1):  # a running mean of 16 pixels: slopes, not edges
        scene = np.mean([np.roll(scene, shift, axis) for shift in range(16)], 0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options={"g": "60", "bf": "2", "qscale": "4"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for t in range(180):
            view = scene[t // 2 : t // 2 + height, 2 * t : 2 * t + width]
            view = np.clip(view + rng.normal(0, 3, view.shape), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))


def both_forms(source: Path, out: Path) -> Made:
    """Form -> folder and entries of the prepared data set."""
    made: Made = {}
    for form in ("video", "packed"):
        done = prepare(source, out / form, PrepareConfig(form=form), progress=False)
        made[form] = (done.folder, {entry.name: entry for entry in done.entries})
    return made


def train_ours(made: tuple[Path, dict[str, Entry]], name: str, generator: torch.Generator) -> None:
    folder, entries = made
    with open_prepared(entries[name], folder) as video:
        frames = video.frames(random_clip(len(video), FRAMES + 1, 1, generator))
    clip = torch.from_numpy(frames)
    draw = draw_augmentation(AugmentConfig(size=SIZE), clip.shape[1], clip.shape[2], generator)
    _views(apply_augmentation(clip, draw, SIZE))


def train_peer(path: Path, transform: Any, generator: torch.Generator) -> None:
    import decord

    video = decord.VideoReader(str(path), num_threads=1)
    frames = video.get_batch(random_clip(len(video), FRAMES + 1, 1, generator)).asnumpy()
    _views(transform(torch.from_numpy(frames).permute(0, 3, 1, 2)).transpose(0, 1))


def test_ours(made: tuple[Path, dict[str, Entry]], name: str) -> None:
    folder, entries = made
    with open_prepared(entries[name], folder) as video:
        video.frames(_ten_clips(len(video)))


def test_peer(path: Path) -> None:
    import decord

    video = decord.VideoReader(str(path), num_threads=1)
    video.get_batch(_ten_clips(len(video))).asnumpy()


test_ours.__test__ = test_peer.__test__ = False  # type: ignore[attr-defined]  (not test cases)


def _ten_clips(num_frames: int) -> list[int]:
    return [index for clip in uniform_clips(num_frames, FRAMES + 1, 1, 10) for index in clip]


def _views(clip: torch.Tensor) -> torch.Tensor:
    """Both views of ``(3, T + 1, H, W)``, stacked."""
    return torch.stack((clip[:, :-1], (clip[:, 1:] - clip[:, :-1]).abs_()))


def v2_transform() -> Any:
    """The augmentation (protocol row 17) as one would write it with torchvision."""
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


def compare(
    files: Sequence[Path], sides: dict[str, Callable[[Path], None]]
) -> dict[str, tuple[float, float]]:
    """Milliseconds a video (median) and times as fast as ``decord`` (median over rounds) of each side."""
    spent: dict[str, list[float]] = {side: [] for side in sides}
    ratios: dict[str, list[float]] = {side: [] for side in sides}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS):
            total = dict.fromkeys(sides, 0.0)
            for path in files:
                for side, work in sides.items():
                    start = time.perf_counter()
                    work(path)
                    taken = time.perf_counter() - start
                    total[side] += taken
                    spent[side].append(taken)
            for side in sides:
                ratios[side].append(total["decord"] / total[side])
    finally:
        torch.set_num_threads(threads)
    return {side: (1e3 * statistics.median(spent[side]), statistics.median(ratios[side])) for side in sides}


def measure(source: Path, made: Made, what: str) -> dict[str, tuple[float, float]]:
    """:func:`compare` of prepared forms and decord for ``what``, train or test."""
    files = sorted(source.iterdir())
    torch.manual_seed(0)
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    if what == "test":
        return compare(
            files,
            {
                "decord": test_peer,
                "video": lambda path: test_ours(made["video"], path.name),
                "packed": lambda path: test_ours(made["packed"], path.name),
            },
        )
    transform = v2_transform()
    return compare(
        files,
        {
            "decord": lambda path: train_peer(path, transform, generators[0]),
            "video": lambda path: train_ours(made["video"], path.name, generators[1]),
            "packed": lambda path: train_ours(made["packed"], path.name, generators[2]),
        },
    )


@pytest.fixture(scope="module", params=sorted({kind for kind, *_ in BARS}))
def prepared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Made]:
    pytest.importorskip("decord", reason="the comparison reads with decord")
    root = tmp_path_factory.mktemp(request.param)
    source = originals(request.param, root / "in")
    return request.param, source, both_forms(source, root)


@pytest.mark.benchmark
@pytest.mark.parametrize("what", ["train", "test"])
def test_prepared_files_are_as_fast_as_promised(prepared: tuple[str, Path, Made], what: str) -> None:
    kind, source, made = prepared
    bars = {form: bar for (of, task, form), bar in BARS.items() if (of, task) == (kind, what)}
    if not bars:
        pytest.skip("no bar for this")
    found = measure(source, made, what)
    for form, bar in bars.items():
        assert found[form][1] >= bar, (
            f"{form}: {found[form][1]:.1f} times as fast as decord, the bar is {bar}"
        )


def main() -> None:
    """Print the tables."""
    print(f"{FRAMES} + 1 frames at {SIZE} x {SIZE}, one core; ms a video (median), times as fast as decord")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            source = originals(kind, Path(folder) / "in")
            start = time.perf_counter()
            made = both_forms(source, Path(folder))
            seconds = time.perf_counter() - start
            frames = sum(entry.frames for entry in made["video"][1].values())
            sizes = {form: sum(e.size for e in entries.values()) for form, (_, entries) in made.items()}
            sizes = {"original": sum(p.stat().st_size for p in source.iterdir()), **sizes}
            text = ", ".join(f"{name} {size / 1e3 / frames:.2f}" for name, size in sizes.items())
            print(f"\n{kind}: {frames} frames; KB a frame: {text}; both forms prepared in {seconds:.1f} s")
            for what in ("train", "test"):
                for side, (taken, ratio) in measure(source, made, what).items():
                    print(f"  {what:6s}{side:8s}{taken:9.2f} ms{ratio:8.2f} x")


if __name__ == "__main__":
    sys.exit(main())
