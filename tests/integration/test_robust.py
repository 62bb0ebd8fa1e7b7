"""Files as nobody should meet them, in numbers: ``make robust`` (a quarter of an hour).

A thousand damaged copies of real files; every real clip there is, frame by frame; ten thousand opens.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mcn.data.datasets import Videos
from mcn.data.index import VideoIndex
from mcn.data.loader import TrainClips
from mcn.data.plan import Request
from mcn.data.readers import open_video
from mcn.data.safe import open_safely

pytestmark = pytest.mark.robust

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SAMPLES = sorted(p for p in (SHARED / "samples").rglob("*") if p.suffix in (".avi", ".mp4"))
SUBSET = sorted((SHARED / "ucf101_subset" / "videos").rglob("*.avi"))
MUTANTS, FRAMES, TIMEOUT = 1000, 16, 20.0


def mutate(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What bad disks, cables and copies do to a file: a kind of damage and the damaged bytes."""
    kind = rng.choice(list(DAMAGE))
    return kind, bytes(DAMAGE[kind](bytearray(data), rng))


def _flip_bits(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 3, 10, 100, 1000))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _flip_header(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 3, 10))):
        data[rng.randrange(min(4096, len(data)))] = rng.randrange(256)
    return data


def _block(content: Callable[[random.Random, int], bytes]) -> Callable[[bytearray, random.Random], bytearray]:
    def spoil(data: bytearray, rng: random.Random) -> bytearray:
        size = min(len(data) // 2, rng.choice((16, 512, 4096, 65536)))
        start = rng.randrange(len(data) - size)
        data[start : start + size] = content(rng, size)
        return data

    return spoil


def _truncate(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


DAMAGE: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
    "bits flipped": _flip_bits,
    "header garbled": _flip_header,
    "block of zeros": _block(lambda rng, size: bytes(size)),
    "block of noise": _block(lambda rng, size: rng.randbytes(size)),
    "block lost": _block(lambda rng, size: b""),
    "noise put in": _block(lambda rng, size: rng.randbytes(size) * 2),
    "truncated": _truncate,
}


@pytest.mark.skipif(not SAMPLES, reason=f"no sample videos under {SHARED}")
def test_a_thousand_damaged_files_end_as_a_clip_or_a_report(tmp_path: Path) -> None:
    """Each in time; a clip of the right shape, from the file or a replacement; no frame lost in silence."""
    rng = random.Random(0)
    sources = {path: len(open_video(path)) for path in SAMPLES + SUBSET[::50]}
    (tmp_path / "good.avi").symlink_to(SAMPLES[0])
    ends: Counter[str] = Counter()
    slowest = 0.0
    for number in range(MUTANTS):
        source = rng.choice(list(sources))
        kind, data = mutate(source.read_bytes(), rng)
        path = tmp_path / f"mutant{source.suffix}"
        path.write_bytes(data)
        videos = Videos(tmp_path, (path.name, "good.avi"))
        start = time.monotonic()
        clip = TrainClips(videos, frames=FRAMES, timeout=TIMEOUT, seed=number)[Request(0, 0, 0)]
        slowest = max(slowest, time.monotonic() - start)

        what = f"mutant {number}: {kind} of {source.name}"
        assert clip.frames.dtype == torch.uint8, what
        assert (clip.frames.ndim, len(clip.frames), clip.frames.shape[-1]) == (4, FRAMES + 1, 3), what
        if clip.video == 1:
            assert all(name == videos.names[0] for name, _ in clip.bad), what
            assert all(str(path) in reason and "\n" not in reason for _, reason in clip.bad), what
            ends[f"{kind}: replaced"] += 1
        elif clip.damage:
            ends[f"{kind}: used, damage reported"] += 1
        else:
            with open_safely(path) as opened:
                assert len(opened) >= sources[source], f"{what}: {len(opened)} frames and not a word"
            ends[f"{kind}: used, no frame missing"] += 1
    assert sum(ends.values()) == MUTANTS
    assert slowest < 2 * TIMEOUT
    print(*(f"{count:5d}  {end}" for end, count in sorted(ends.items())), sep="\n")
    print(f"slowest {slowest:.1f} s")


@pytest.mark.skipif(not SAMPLES, reason=f"no sample videos under {SHARED}")
@pytest.mark.parametrize("reader", ["auto", "pyav", "decord"])
def test_every_frame_of_every_real_clip(reader: str) -> None:
    """Against the sequential, flushed decode: windows that cover the whole clip, in random order.

    decord reads from frame 0 for each window of an AVI file, so of its windows only the last is asked for;
    its own build of libavcodec may differ by 2 of 255 levels in MPEG-4.
    """
    if reader == "decord":
        pytest.importorskip("decord")
    rng = random.Random(0)
    allowed = 2 if reader == "decord" else 0
    wrong = []
    for path in SAMPLES + SUBSET:
        with av.open(str(path), metadata_errors="ignore") as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        starts = list(range(0, len(frames), 40))
        rng.shuffle(starts)
        starts = [max(starts)] if reader == "decord" else starts
        with open_video(path, reader) as video:
            assert len(video) == len(frames), path
            for start in starts:
                window = range(start, min(start + 40, len(frames)))
                difference = np.abs(video.frames(window).astype(np.int16) - frames[window])
                if difference.max() > allowed:
                    wrong.append((path.name, start))
    assert not wrong, f"{len(wrong)} windows of {len(SAMPLES + SUBSET)} files differ: {wrong[:5]}"


@pytest.mark.skipif(not SUBSET, reason=f"no sample videos under {SHARED}")
def test_memory_stays_flat_over_many_opens(tmp_path: Path) -> None:
    """What a loader does in a day: the memory of this process and of its decoder."""
    files, index, rng = SAMPLES[::4] + SUBSET[::200], VideoIndex(tmp_path), random.Random(0)

    def opens(number: int) -> None:
        for _ in range(number):
            path = rng.choice(files)
            with open_safely(path, index=index, name=str(path)) as video:
                start = rng.randrange(len(video) - 2)
                video.frames(range(start, start + 2))

    opens(500)
    before = _memory()
    opens(10_000)
    growth = (_memory() - before) / 2**20
    print(f"memory of the process and its decoder grew by {growth:.1f} MiB")
    assert growth < 50


def _memory() -> int:
    """Bytes resident in this process and in its children."""
    import psutil

    process = psutil.Process()
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
