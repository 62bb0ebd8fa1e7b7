"""Index arithmetic: every clip whole, every start as likely, padding on the left."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from mcn.data.sampling import random_clip, uniform_clips
from mcn.errors import MCNError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("frames", "length", "stride"), [(100, 33, 1), (33, 33, 1), (40, 8, 5)])
def test_random_clip_is_whole_and_in_range(frames: int, length: int, stride: int) -> None:
    rng = generator()
    for _ in range(200):
        clip = random_clip(frames, length, stride, rng)
        assert len(clip) == length
        assert clip[0] >= 0
        assert clip[-1] < frames
        assert all(b - a == stride for a, b in pairwise(clip))


def test_random_clip_starts_are_uniform_with_both_ends() -> None:
    rng = generator()
    starts = Counter(random_clip(12, 4, 2, rng)[0] for _ in range(6000))
    assert sorted(starts) == [0, 1, 2, 3, 4, 5]
    assert all(abs(n - 1000) < 150 for n in starts.values())


def test_short_video_repeats_its_first_frame_on_the_left() -> None:
    assert random_clip(3, 6, 1, generator()) == [0, 0, 0, 0, 1, 2]
    assert random_clip(4, 4, 2, generator()) == [0, 0, 1, 3]
    assert random_clip(1, 3, 1, generator()) == [0, 0, 0]
    assert uniform_clips(3, 5, 1, 2) == [[0, 0, 0, 1, 2]] * 2


def test_a_short_video_moves_the_generator_like_a_long_one() -> None:
    short, long = generator(), generator()
    random_clip(2, 8, 1, short)
    random_clip(200, 8, 1, long)
    assert random_clip(500, 8, 1, short) == random_clip(500, 8, 1, long)


@pytest.mark.parametrize("frames", [33, 34, 42, 43, 100, 1000])
def test_uniform_clips_are_evenly_spaced_with_both_ends(frames: int) -> None:
    clips = uniform_clips(frames, 33, 1, 10)
    starts = [clip[0] for clip in clips]
    assert len(clips) == 10
    assert starts[0] == 0
    assert clips[-1][-1] == frames - 1
    gaps = [b - a for a, b in pairwise(starts)]
    assert max(gaps) - min(gaps) <= 1
    assert clips == uniform_clips(frames, 33, 1, 10)


def test_one_uniform_clip_is_the_middle_one() -> None:
    assert uniform_clips(11, 3, 1, 1) == [[4, 5, 6]]
    assert uniform_clips(2, 3, 1, 1) == [[0, 0, 1]]


@pytest.mark.parametrize("sizes", [(0, 4, 1), (5, 0, 1), (5, 4, 0)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(MCNError, match="at least"):
        random_clip(*sizes, generator())
    with pytest.raises(MCNError, match="at least"):
        uniform_clips(*sizes, 2)
    with pytest.raises(MCNError, match="clips=0"):
        uniform_clips(5, 4, 1, 0)
