"""What exactness and supervision cost: a clip through the loader's way of reading, beside plain decord.

Run ``python tests/benchmarks/bench_reader.py`` for the table, or ``pytest -m benchmark`` for the bar: on
files of which decord gives the right frames, reading takes at most a quarter longer. Both read the same
random clips in turns; what is compared is the median of the ratios. Ours goes through a supervised child
and knows the file from the data set's index, as in a run after its first epoch.
"""

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from mcn.data.index import VideoIndex
from mcn.data.safe import open_safely

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FRAMES, ROUNDS, BAR, LEVELS = 33, 15, 1.25, 2  # levels by which builds of libavcodec differ


def sets_of_files() -> dict[str, list[Path]]:
    """Real files by where they come from."""
    return {
        "UCF101, originals (AVI, XviD)": sorted((SHARED / "samples" / "ucf101_original").rglob("*.avi")),
        "Kinetics-400 (MP4, H.264)": sorted((SHARED / "samples" / "kinetics400").rglob("*.mp4")),
        "UCF101, 13 classes (AVI, H.264)": sorted((SHARED / "ucf101_subset" / "videos").rglob("*.avi"))[
            ::250
        ],
    }


def compare(path: Path, index: VideoIndex, rng: random.Random) -> tuple[list[float], bool]:
    """Ratios (our time over decord's) for random clips of a file; whether decord's frames were right."""
    import decord

    ratios, right = [], True
    for _ in range(ROUNDS):
        with open_safely(path, index=index, name=str(path)) as known:
            start = rng.randrange(max(1, len(known) - FRAMES))
            wanted = range(start, min(start + FRAMES, len(known)))
        begin = time.perf_counter()
        with open_safely(path, index=index, name=str(path)) as video:
            ours = video.frames(wanted)
        middle = time.perf_counter()
        theirs = decord.VideoReader(str(path), num_threads=1).get_batch(list(wanted)).asnumpy()
        ratios.append((middle - begin) / (time.perf_counter() - middle))
        right = right and int(np.abs(ours.astype(int) - theirs).max()) <= LEVELS
    return ratios[1:], right  # the first opens what the operating system has not seen yet


def measure() -> dict[str, tuple[float, int, int]]:
    """For each set: the median ratio on files where decord is right, how many those are, and of how many."""
    rng, table = random.Random(0), {}
    with tempfile.TemporaryDirectory() as folder:
        index = VideoIndex(Path(folder))
        for name, files in sets_of_files().items():
            found = [compare(path, index, rng) for path in files]
            ratios = [ratio for some, right in found if right for ratio in some]
            number = sum(right for _, right in found)
            table[name] = (statistics.median(ratios) if ratios else float("nan"), number, len(files))
    return table


@pytest.mark.benchmark
@pytest.mark.skipif(not any(sets_of_files().values()), reason=f"no sample videos under {SHARED}")
def test_exact_reading_costs_less_than_a_quarter_more_than_decord() -> None:
    pytest.importorskip("decord", reason="the comparison reads with decord")
    for name, (ratio, right, _) in measure().items():
        assert not right or ratio <= BAR, f"{name}: {ratio:.2f} times decord's time; the bar is {BAR}"


def main() -> None:
    """Print the table."""
    print(f"{FRAMES} frames, our time over decord's (median of {ROUNDS - 1} clips a file; bar {BAR})")
    for name, (ratio, right, number) in measure().items():
        print(f"  {name:34}{ratio:6.2f}   decord's frames are right in {right} of {number} files")


if __name__ == "__main__":
    sys.exit(main())
