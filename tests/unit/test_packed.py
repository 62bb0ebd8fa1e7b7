"""Shards of raw frames: the scaler's planes to the bit, whole videos, and no changed byte goes unnoticed."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mcn.data.manifest import Entry
from mcn.data.packed import PackedVideo, frame_bytes, planes_of
from mcn.data.prepared import open_prepared
from mcn.data.readers import read_clip
from mcn.data.videoinfo import VideoError, nothing
from mcn.errors import MCNError
from mcn.preparation import _jobs, transcode
from mcn.preparation.prepare import PrepareConfig, prepare
from mcn.preparation.transcode import Target

Made = tuple[Path, Entry, Entry]


def noise(path: Path, frames: int, height: int, width: int, seed: int) -> Path:
    """A lossless video of noise, so that no two frames are alike."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for _ in range(frames):
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    return path


def pack(source: Path, shard: Path, offset: int, side: int = 48) -> Entry:
    target = Target(side, qp=20)
    return transcode.pack(str(source), source.name, target, str(shard), shard.name, offset, tick=nothing)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A shard with two videos, 12 frames of 48 x 64 and 5 of 48 x 70."""
    shard = tmp_path / "shard.bin"
    shard.touch()
    first = pack(noise(tmp_path / "a.mkv", 12, 48, 64, seed=0), shard, 0)
    return shard, first, pack(noise(tmp_path / "b.mkv", 5, 96, 140, seed=1), shard, first.size)


def test_planes_and_colours_are_those_of_the_scaler(made: Made, tmp_path: Path) -> None:
    shard, first, second = made
    assert shard.stat().st_size == first.size + second.size == second.offset + second.size
    assert first.size == 12 * (48 * 64 * 3 // 2 + 4)
    with PackedVideo(first, tmp_path) as video:  # not scaled: as the reader of the source has it
        assert (video.frames(range(12)) == read_clip(tmp_path / "a.mkv", range(12), "pyav")).all()
        assert (video.frames([7, 7, 3]) == read_clip(tmp_path / "a.mkv", [7, 7, 3], "pyav")).all()
    with av.open(str(tmp_path / "b.mkv")) as container, PackedVideo(second, tmp_path) as video:
        sources = container.decode(video=0)
        for ours, source in zip(video.everything(), sources, strict=True):
            assert planes_of(ours) == planes_of(source.reformat(70, 48, "yuv420p", interpolation="BICUBIC"))


def test_every_bit_is_watched(made: Made, tmp_path: Path) -> None:
    shard, first, second = made
    whole, rng = shard.read_bytes(), random.Random(0)
    for entry in (first, second):
        length = frame_bytes(entry.height, entry.width)
        for _ in range(150):
            inside = rng.randrange(entry.size)
            data = bytearray(whole)
            data[entry.offset + inside] ^= 1 << rng.randrange(8)
            shard.write_bytes(data)
            hit = inside // length  # beyond the last frame: the table, which every read needs
            with PackedVideo(entry, tmp_path) as video:
                with pytest.raises(VideoError, match="has changed"):
                    video.frames(range(entry.frames))
                if hit < entry.frames:
                    assert len(video.frames([i for i in range(entry.frames) if i != hit])) == entry.frames - 1
            assert not transcode.check(str(shard), entry, tick=nothing)
            assert transcode.check(str(shard), second if entry is first else first, tick=nothing)


def test_a_shard_that_is_cut_or_gone(made: Made, tmp_path: Path) -> None:
    shard, first, second = made
    shard.write_bytes(shard.read_bytes()[:-1])
    with PackedVideo(second, tmp_path) as video, pytest.raises(VideoError, match="has changed"):
        video.frames([0])
    shard.write_bytes(shard.read_bytes()[: first.size - 5])
    with PackedVideo(first, tmp_path) as video, pytest.raises(VideoError, match="has changed"):
        video.frames([0])
    shard.unlink()
    with PackedVideo(first, tmp_path) as video, pytest.raises(VideoError, match=r"shard\.bin: No such file"):
        video.frames([0])


@pytest.mark.parametrize("indices", [[-1], [12], [0, 99], []])
def test_frames_that_do_not_exist(made: Made, tmp_path: Path, indices: list[int]) -> None:
    with (
        PackedVideo(made[1], tmp_path) as video,
        pytest.raises(VideoError, match=r"shard\.bin: (frame|asked)"),
    ):
        video.frames(indices)


def test_an_attempt_that_failed_leaves_nothing(made: Made, tmp_path: Path) -> None:
    shard, first, second = made
    whole = shard.read_bytes()
    with shard.open("ab") as file:
        file.write(b"half of a video" * 1000)
    assert pack(tmp_path / "b.mkv", shard, first.size) == second
    assert shard.read_bytes() == whole


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(MCNError, match=r"cannot write .*: No such file"):
        pack(noise(tmp_path / "a.mkv", 2, 48, 64, seed=0), tmp_path / "no" / "shard.bin", 0)


@pytest.fixture
def few_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def cut(size: int) -> None:
        monkeypatch.setattr(_jobs, "_PIECES", 1)
        monkeypatch.setattr(_jobs, "_SHARD", size)

    return cut


def test_shards_hold_whole_videos_and_end_in_time(few_pieces: Callable[[int], None], tmp_path: Path) -> None:
    for number in range(5):
        noise(tmp_path / "in" / f"{number}.mkv", 10, 48, 64, seed=number)
    (tmp_path / "in" / "2.mkv").write_text("no video")
    size = 10 * (frame_bytes(48, 64) + 4)
    few_pieces(size + 1)  # full after two videos
    made = prepare(tmp_path / "in", tmp_path / "out", PrepareConfig(form="packed", workers=1), progress=False)
    places = [(entry.file[-5:], entry.offset) for entry in made.entries]
    assert places == [("0.bin", 0), ("0.bin", size), ("", 0), ("1.bin", 0), ("1.bin", size)]
    assert {path.stat().st_size for path in (tmp_path / "out" / "packed").iterdir()} == {2 * size}
    for entry in (made.entries[i] for i in (0, 1, 3, 4)):
        with open_prepared(entry, made.folder) as video:
            assert (video.frames([3]) == read_clip(tmp_path / "in" / entry.name, [3], "pyav")).all()


def test_a_cluster_writes_the_same_bytes(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    for number in range(3):
        noise(tmp_path / "in" / f"{number}.mkv", 5, 48, 64, seed=number)
    here = prepare(tmp_path / "in", tmp_path / "here", PrepareConfig(form="packed"), progress=False)
    settings = {"processes": False, "dashboard_address": None, "host": "127.0.0.1", "protocol": "tcp"}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, **settings) as cluster:
        config = PrepareConfig(form="packed", dask=cluster.scheduler_address)
        there = prepare(tmp_path / "in", tmp_path / "there", config, progress=False)
    assert there.entries == here.entries
    for path in (path.relative_to(here.folder) for path in here.folder.rglob("*.*")):
        assert (here.folder / path).read_bytes() == (there.folder / path).read_bytes()
