"""Stored flow: right motion, whatever computes it; resumed to the same bytes, in constant memory."""

import multiprocessing
import os
import signal
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mcn.data.datasets import load_videos
from mcn.data.flow import flow_folder, read_flow
from mcn.data.readers import VideoError, open_video
from mcn.data.safe import open_safely
from mcn.errors import MCNError
from mcn.preparation import flow
from mcn.preparation.flow import (
    flow_video,
    quantise,
    read_grey,
    store_pair,
    to_grey,
    write_flow,
    write_flow_of,
)
from mcn.preparation.flow_device import DeviceFlow, device_flow
from mcn.preparation.prepare import PrepareConfig, prepare
from mcn.preparation.tvl1 import tvl1_flow

cv2 = pytest.importorskip("cv2", reason="the extra `data` is not installed")

METHODS = ("opencv", "torch")


def write_moving(path: Path, frames: int, size: int = 44, codec: str = "libx264", speed: int = 1) -> Path:
    """A texture that moves ``speed`` pixels to the right and twice as many down a frame."""
    options = {"qp": "4", "bf": "0"} if codec == "libx264" else {"g": "1", "qmin": "2", "qmax": "2"}
    texture = np.random.default_rng(0).integers(0, 255, (size, size)).astype(np.uint8)
    texture = cv2.GaussianBlur(texture, (0, 0), 2)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for n in range(frames):
            frame = np.roll(texture, (2 * n * speed, n * speed), axis=(0, 1))[..., None].repeat(3, -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moving(tmp_path_factory.mktemp("videos") / "moving.mp4", 7)


@pytest.fixture(scope="module")
def stored(moving: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The flow of ``moving`` by either method, never interrupted."""
    folders = {method: tmp_path_factory.mktemp(method) for method in METHODS}
    for method, folder in folders.items():
        assert write_flow(moving, folder, method) == 6
    return folders


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def test_grey_is_that_of_opencv() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    assert np.array_equal(to_grey(rgb), cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


@pytest.mark.parametrize("method", METHODS)
def test_flow_has_the_motion_of_the_video(method: str, stored: dict[str, Path]) -> None:
    names = {f"flow_{axis}_{n:05d}.jpg" for axis in "xy" for n in range(1, 7)}
    assert set(contents(stored[method])) == names
    for axis, motion in (("x", 1.0), ("y", 2.0)):
        image = np.asarray(Image.open(stored[method] / f"flow_{axis}_00002.jpg")).astype(float)
        inner = image[12:-12, 12:-12]
        assert np.median(inner) == pytest.approx(quantise(np.array(motion)), abs=1.5)


def test_the_methods_store_nearly_the_same(stored: dict[str, Path]) -> None:
    for path in stored["opencv"].iterdir():
        one, other = (np.asarray(Image.open(f), int) for f in (path, stored["torch"] / path.name))
        assert np.abs(one - other).mean() < 0.6  # .1 pixel


@pytest.mark.parametrize("method", METHODS)
def test_flow_goes_on_where_it_stopped(
    method: Any, moving: Path, stored: dict[str, Path], tmp_path: Path
) -> None:
    write_flow(moving, tmp_path, method)
    (tmp_path / "flow_y_00003.jpg").unlink()
    (tmp_path / "flow_x_00006.jpg").unlink()
    (tmp_path / "flow_y_00006.jpg").unlink()
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert write_flow(moving, tmp_path, method) == 6
    changed = [name for name, stamp in before.items() if (tmp_path / name).stat().st_mtime_ns != stamp]
    assert changed == ["flow_x_00003.jpg"]
    assert contents(tmp_path) == contents(stored[method])


@pytest.mark.parametrize("method", METHODS)
def test_flow_that_is_killed_ends_with_the_same_bytes(
    method: Any, moving: Path, stored: dict[str, Path], tmp_path: Path
) -> None:
    spawn = multiprocessing.get_context("spawn")
    for pairs in (1, 4):  # killed soon after so many pairs are there
        process = spawn.Process(target=write_flow, args=(moving, tmp_path, method))
        process.start()
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("flow_y_*.jpg"))) < pairs and time.monotonic() < end:
            time.sleep(0.002)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    time.sleep(0.3)  # its child ends with it
    write_flow(moving, tmp_path, method)
    assert contents(tmp_path) == contents(stored[method])


def test_the_flow_view_reads_what_was_written(stored: dict[str, Path]) -> None:
    clip = read_flow(stored["opencv"], [0, 0, 1, 2], "flow_v", 44, 44)
    assert clip.shape == (3, 44, 44, 3)
    assert (clip[0] == 128).all()  # the repeated first frame
    assert np.median(clip[1, 12:-12, 12:-12]) > 135


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_video_has_the_flow_of_its_readable_part(method: Any, tmp_path: Path) -> None:
    whole = write_moving(tmp_path / "whole.avi", 6, codec="mpeg4")
    cut = tmp_path / "cut.avi"
    data = whole.read_bytes()
    frames = data.index(b"movi")
    cut.write_bytes(data[: frames + (len(data) - frames) * 3 // 4])
    readable = len(open_safely(cut))
    assert 2 < readable < 6
    assert write_flow(cut, tmp_path / "cut", method) == readable - 1
    write_flow(whole, tmp_path / "whole", method)
    known, expected = contents(tmp_path / "cut"), contents(tmp_path / "whole")
    assert len(known) == 2 * (readable - 1)
    sound = [name for name in known if not name.endswith(f"{readable - 1:05d}.jpg")]
    assert all(known[name] == expected[name] for name in sound)


def test_reading_on_decodes_no_frame_twice(moving: Path) -> None:
    video, ticks = open_safely(moving), []
    with open_video(moving) as opened:
        expected = to_grey(opened.frames(range(7)))
    chunks = [
        read_grey(video.path, video, start, count, tick=lambda: ticks.append(1))
        for start, count in ((0, 2), (2, 3), (5, 2))
    ]
    assert np.array_equal(np.concatenate(chunks), expected)
    assert len(ticks) == 7
    assert np.array_equal(read_grey(video.path, video, 3, 2), expected[3:5])  # anywhere else, too
    assert np.array_equal(read_grey(video.path, video, 0, 1), expected[:1])


def test_a_long_video_takes_no_more_memory(tmp_path: Path) -> None:
    video = open_safely(write_moving(tmp_path / "long.mp4", 300, size=64))
    tracemalloc.start()
    count = sum(1 for _ in flow._grey_frames(video, 0, lambda: None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 300
    assert peak < 60 * 64 * 64  # to_grey takes some 30 bytes a pixel


def test_what_cannot_be_done_is_said(moving: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VideoError, match=r"none\.mp4: No such file"):
        write_flow(tmp_path / "none.mp4", tmp_path / "flow")
    method: Any = "farneback"
    with pytest.raises(MCNError, match="method='farneback': one of opencv, torch"):
        write_flow(moving, tmp_path / "flow", method)
    for device in ("tpu9", "cuda:77"):
        with pytest.raises(MCNError, match=f"device='{device}' cannot be used"):
            write_flow(moving, tmp_path / "flow", "torch", device)
        with pytest.raises(MCNError, match=f"device='{device}' cannot be used"):
            write_flow_of(load_videos(moving.parent, "all"), method="torch", device=device)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MCNError, match=r"pip install 'mcn\[data\]'"):
        flow_video(str(moving), str(tmp_path / "flow"))
    assert not (tmp_path / "flow").exists()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three videos of four frames in a class folder; the second is none."""
    folder = tmp_path / "data" / "videos" / "Waving"
    folder.mkdir(parents=True)
    for number in range(3):
        write_moving(folder / f"{number}.mp4", 4, size=32, speed=number)
    (folder / "1.mp4").write_bytes(b"no video")
    return tmp_path / "data"


@pytest.mark.parametrize("method", METHODS)
def test_flow_of_a_data_set(
    method: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = load_videos(data, "all")
    done = write_flow_of(videos, method=method, workers=2)
    assert (done.pairs, done.damaged, len(done.unreadable)) == (6, [], 1)
    assert videos.names[1] in done.unreadable[0]
    assert "flow: 100%" in capsys.readouterr().err
    assert not flow_folder(videos, 1).exists()
    write_flow(videos.path(2), tmp_path / "alone", method)
    assert contents(flow_folder(videos, 2)) == contents(tmp_path / "alone")
    assert read_flow(flow_folder(videos, 2), [1, 2, 3], "flow_u", 32, 32).shape == (2, 32, 32, 3)


@pytest.mark.parametrize("form", ["video", "packed"])
def test_flow_of_prepared_data(form: Any, data: Path, tmp_path: Path) -> None:
    prepare(data, tmp_path / "out", PrepareConfig(form=form, workers=1), progress=False)
    videos = load_videos(tmp_path / "out", "all")
    done = write_flow_of(videos, workers=1, progress=False)
    assert (done.pairs, len(done.unreadable)) == (6, 1)
    for index in (0, 2):
        assert flow_folder(videos, index) == tmp_path / "out" / "flow" / "Waving" / f"{index}"
        with videos.open(index) as video:
            grey = to_grey(video.frames(range(4)))
        for n in (1, 2, 3):
            method: Any = cv2.optflow.createOptFlow_DualTVL1()
            expected = np.moveaxis(method.calc(grey[n - 1], grey[n], None), -1, 0)
            store_pair(tmp_path / f"expected{index}", n, expected)
        assert contents(flow_folder(videos, index)) == contents(tmp_path / f"expected{index}")
    for index in (0, 2):  # of which neither takes the other's frames
        with videos.open(index) as video:
            assert write_flow(video, tmp_path / "torch" / f"{index}", "torch") == 3
    assert contents(tmp_path / "torch/0") != contents(tmp_path / "torch/2")


# --- many threads, one device


def test_threads_that_share_a_device_get_their_own_flow() -> None:
    generator = np.random.default_rng(0)
    device = device_flow("cpu")
    assert device_flow("cpu") is device
    sizes = [(16, 18), (18, 16), (16, 18), (15, 21)] * 2

    stacks = []
    for size in sizes:
        still = cv2.GaussianBlur(generator.integers(0, 255, size).astype(np.uint8), (0, 0), 3)
        stacks.append(np.stack([np.roll(still, n, 1) for n in range(3)]))
    with ThreadPoolExecutor(12) as pool:
        flows = list(pool.map(lambda frames: device(frames[:-1], frames[1:]), stacks))
    for frames, got in zip(stacks, flows, strict=True):
        expected = tvl1_flow(torch.from_numpy(frames[:-1]), torch.from_numpy(frames[1:]))
        assert np.abs(got - expected.numpy()).max() <= 1e-4


def test_what_waits_shares_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[int, ...]] = []
    first, go = threading.Event(), threading.Event()

    def slow(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        batches.append(tuple(before.shape))
        first.set()
        assert go.wait(30)
        return tvl1_flow(before, after)

    monkeypatch.setattr("mcn.preparation.flow_device.tvl1_flow", slow)
    monkeypatch.setattr("mcn.preparation.flow_device.os.cpu_count", lambda: 1)
    device = DeviceFlow(torch.device("cpu"))
    device.pixels = 4 * 16 * 16
    small, other = np.zeros((2, 16, 16), np.uint8), np.zeros((1, 16, 18), np.uint8)
    huge = np.zeros((1, 64, 64), np.uint8)  # more than a batch holds
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(device, small, small)]
        assert first.wait(30)
        for frames in (small, other, small, small, huge):
            waiting.append(pool.submit(device, frames, frames))
            time.sleep(0.05)
        go.set()
        shapes = [job.result(30).shape for job in waiting]
    assert shapes == [(2, 2, 16, 16)] * 2 + [(1, 2, 16, 18)] + [(2, 2, 16, 16)] * 2 + [(1, 2, 64, 64)]
    assert batches[0] == (2, 16, 16)
    assert sorted(batches[1:]) == [(1, 16, 18), (1, 64, 64), (2, 16, 16), (4, 16, 16)]


def test_an_error_on_the_device_reaches_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    frames = np.zeros((1, 16, 16), np.uint8)
    monkeypatch.setattr("mcn.preparation.flow_device.tvl1_flow", full)
    with pytest.raises(MCNError, match="cpu: out of memory"):
        device_flow("cpu")(frames, frames)
    monkeypatch.undo()
    assert device_flow("cpu")(frames, frames).max() == 0  # it goes on
