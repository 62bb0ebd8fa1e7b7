"""Frame ``i`` is the ``i``-th of a sequential decode, through every reader; bad files say so."""

import multiprocessing
import os
import random
import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mcn.data import readers
from mcn.data.readers import VideoError, open_video, probe_video, read_clip
from mcn.errors import MCNError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
HAVE = ("auto", "pyav") if readers.decord is None else readers.READERS
# The libraries' builds of libavcodec differ in MPEG-4's inverse transform (levels of 255).
XVID_LEVELS = 2
# name: suffix, codec, options of the encoder
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264-b": (".mp4", "libx264", {"g": "12", "bf": "2"}),
    "h264-mkv": (".mkv", "libx264", {"g": "12", "bf": "2"}),
    "h264-mp4-open-gop": (".mp4", "libx264", {"g": "12", "bf": "2", "x264-params": "open-gop=1"}),
    "vp9": (".webm", "libvpx-vp9", {"g": "12", "deadline": "realtime"}),
    "h264-ts": (".ts", "libx264", {"g": "12", "bf": "2"}),
    "mpeg1-ps": (".mpg", "mpeg1video", {"g": "12"}),
    "h264-avi-b": (".avi", "libx264", {"g": "12", "bf": "2"}),
    "h264-avi": (".avi", "libx264", {"g": "12", "bf": "0"}),
    "h264-open-gop": (".avi", "libx264", {"g": "12", "bf": "0", "x264-params": "open-gop=1"}),
    "mpeg4-avi": (".avi", "mpeg4", {"g": "8"}),
    "mpeg4-avi-b": (".avi", "mpeg4", {"g": "8", "bf": "2"}),
}


def make_video(
    path: Path,
    codec: str = "libx264",
    frames: int = 50,
    width: int = 96,
    height: int = 64,
    pix_fmt: str = "yuv420p",
    times: Callable[[int], int] | None = None,
    **options: str,
) -> Path:
    """A moving pattern, every frame another; ``times`` gives a frame's time in 1/1000 s."""
    scene = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    scene = scene.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for t in range(frames):
            view = np.ascontiguousarray(scene[t : t + height, 2 * t % 96 : 2 * t % 96 + width])
            frame = av.VideoFrame.from_ndarray(view, format="rgb24")
            if times:
                frame.pts, frame.time_base = times(t), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_rotated(path: Path) -> Path:
    """An upright phone's video: stored lying, with a matrix in the header that turns it by 90 degrees."""
    data = bytearray(make_video(path, g="12", bf="2").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def make_packed(path: Path) -> Path:
    """XviD's packed bitstream: a B-frame travels in the packet of the frame after it, then an empty one."""
    plain = make_video(path.with_suffix(".plain.avi"), "mpeg4", g="10", bf="1")
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        kinds = [data[data.index(b"\0\0\1\xb6") + 4] >> 6 for data in packets]  # 0 I, 1 P, 2 B
        empty = b"\0\0\1\xb6\x51\x90\x7f"  # a frame that says it is not coded
        joined: list[bytes] = []
        for data, kind in zip(packets, kinds, strict=True):
            if kind == 2:
                joined[-1:] = [joined[-1] + data, empty]
            else:
                joined.append(data.replace(b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p\0\0\1\xb6", 1))
        for number, data in enumerate(joined):
            packet = av.Packet(data)
            packet.stream, packet.dts, packet.time_base = stream, number, Fraction(1, 25)
            packet.is_keyframe = number < len(kinds) and b"\0\0\1\xb0" in data
            target.mux(packet)
    plain.unlink()
    return path


def truth(path: Path) -> np.ndarray:
    with av.open(str(path), metadata_errors="ignore") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def largest_error(path: Path, frames: np.ndarray, reader: str, draws: int) -> int:
    """Of random frames in random order, against the true ``frames``, in levels of 255."""
    rng, worst = random.Random(0), 0
    with open_video(path, reader) as video:
        assert len(video) == len(frames)
        starts = [frame for _, frame in video.info.restarts]
        for _ in range(draws):
            indices = [rng.randrange(len(frames)) for _ in range(3)] + [rng.choice([0, *starts])]
            got = video.frames(indices).astype(int)
            worst = max(worst, int(np.abs(got - frames[indices]).max()))
    return worst


# What else files are, each made by a function of the path.
ODD: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "variable-rate": (".mp4", lambda p: make_video(p, times=lambda t: 40 * t + 13 * (t % 3), g="12", bf="2")),
    "odd-size": (".mp4", lambda p: make_video(p, width=95, height=63, pix_fmt="yuv444p", g="12")),
    "odd-size-avi": (".avi", lambda p: make_video(p, "mpeg4", width=95, height=63, g="8")),
    "one-frame": (".mp4", lambda p: make_video(p, frames=1)),
    "one-frame-avi": (".avi", lambda p: make_video(p, "mpeg4", frames=1)),
    "ten-bit": (".mkv", lambda p: make_video(p, pix_fmt="yuv420p10le", g="12", bf="2")),
    "grey": (".mp4", lambda p: make_video(p, pix_fmt="gray", g="12", bf="2")),
    "full-range": (".avi", lambda p: make_video(p, "mjpeg", pix_fmt="yuvj420p")),
    "rotated": (".mp4", make_rotated),
    "packed": (".avi", make_packed),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    made = {
        name: make_video(folder / f"{name}{suffix}", codec, **options)
        for name, (suffix, codec, options) in KINDS.items()
    }
    return made | {name: make(folder / f"{name}{suffix}") for name, (suffix, make) in ODD.items()}


@pytest.mark.parametrize("reader", HAVE)
@pytest.mark.parametrize("kind", [*KINDS, *ODD])
def test_random_frames_are_the_sequential_ones(videos: dict[str, Path], kind: str, reader: str) -> None:
    if reader == "decord" and not probe_video(videos[kind]).decord:
        assert kind in ("h264-ts", "mpeg1-ps", "ten-bit", "rotated", "odd-size", "odd-size-avi")
        with pytest.raises(VideoError, match="use reader='auto'"):
            open_video(videos[kind], reader)
        return
    allowed = XVID_LEVELS if reader == "decord" and "mpeg4" in kind else 0
    assert largest_error(videos[kind], truth(videos[kind]), reader, draws=8) <= allowed


def test_the_last_frames_are_flushed(videos: dict[str, Path]) -> None:
    assert len(open_video(videos["h264-b"])) == 50
    assert len(truth(videos["h264-b"])) == 50


@pytest.fixture
def none_is_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test files are so small that auto would leave all of them to PyAV."""
    monkeypatch.setattr(readers, "_TINY", 0)


def test_a_tiny_file_is_left_to_pyav(videos: dict[str, Path]) -> None:
    assert open_video(videos["h264-b"]).reader == "pyav"


@pytest.mark.skipif(readers.decord is None, reason="decord is not installed")
@pytest.mark.usefixtures("none_is_tiny")
def test_where_decord_gives_up_pyav_takes_over(tmp_path: Path) -> None:
    path = make_video(tmp_path / "narrow.mp4", width=48, g="12", bf="0")
    with pytest.raises(VideoError, match="decord failed"):
        read_clip(path, [3, 20], "decord")
    assert (read_clip(path, [3, 20]) == truth(path)[[3, 20]]).all()


@pytest.mark.usefixtures("none_is_tiny")
def test_auto_keeps_decord_where_its_jumps_are_right(videos: dict[str, Path]) -> None:
    safe = ("h264-b", "h264-mkv", "vp9", "variable-rate", "one-frame", "grey") if readers.decord else ()
    assert {kind for kind, path in videos.items() if open_video(path).reader == "decord"} == set(safe)


def test_restarts_are_used_where_nothing_is_reordered(videos: dict[str, Path]) -> None:
    assert [frame for _, frame in probe_video(videos["h264-avi"]).restarts][:3] == [0, 12, 24]
    assert len(probe_video(videos["mpeg4-avi"]).restarts) > 3
    assert probe_video(videos["h264-avi-b"]).restarts == ()
    assert probe_video(videos["mpeg4-avi-b"]).restarts == ()


def test_a_rotation_in_the_header_is_left_alone(videos: dict[str, Path]) -> None:
    with av.open(str(videos["rotated"])) as container:
        assert next(container.decode(video=0)).rotation in (90, -90, 270)
    assert read_clip(videos["rotated"], [0]).shape == (1, 64, 96, 3)


def test_the_colour_range_is_the_declared_one(videos: dict[str, Path]) -> None:
    """The same scene in either range: full range spans 0 to 255, limited 16 to 235, and both are expanded."""
    full, limited = (read_clip(videos[kind], [0]).astype(int) for kind in ("full-range", "h264-avi"))
    assert abs(full.mean() - limited.mean()) < 4


def test_packed_frames_are_packed(videos: dict[str, Path]) -> None:
    with av.open(str(videos["packed"])) as container:
        sizes = [packet.size for packet in container.demux(video=0) if packet.size]
    assert sizes.count(7) > 10
    assert probe_video(videos["packed"]).num_frames == 50


def test_a_stream_of_all_frames(videos: dict[str, Path]) -> None:
    for kind in ("h264-b", "mpeg4-avi-b", "packed"):
        with open_video(videos[kind]) as video:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.stream()])
        assert np.array_equal(frames, truth(videos[kind]))


def test_order_repeats_and_numpy_indices(videos: dict[str, Path]) -> None:
    frames = truth(videos["h264-b"])
    for indices in ([7, 3, 3, 40], [0, 0, 0, 1], range(5), np.array([9, 2])):
        for reader in HAVE:
            clip = read_clip(videos["h264-b"], indices, reader)  # type: ignore[arg-type]
            assert clip.dtype == np.uint8
            assert np.array_equal(clip, frames[list(indices)])


def test_what_a_video_says_of_itself(videos: dict[str, Path]) -> None:
    with open_video(videos["h264-avi"]) as video:
        assert (len(video), video.fps) == (50, 25.0)
        assert (video.info.height, video.info.width) == (64, 96)


@pytest.mark.parametrize("indices", [[-1], [50], [0, 3, 99], []])
def test_frames_that_do_not_exist(videos: dict[str, Path], indices: list[int]) -> None:
    for reader in HAVE:
        with pytest.raises(VideoError, match=r"h264-b\.mp4: (frame|asked)"):
            read_clip(videos["h264-b"], indices, reader)


def test_a_changed_file_is_looked_at_again(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=10)
    assert len(open_video(path)) == 10
    make_video(path, frames=20)
    assert len(open_video(path)) == 20


def make_bad(kind: str, path: Path) -> Path:
    """One of the ways in which a file is no video."""
    if kind == "missing":
        return path
    if kind == "directory":
        path.mkdir()
    elif kind in ("empty", "text"):
        path.write_bytes(b"" if kind == "empty" else b"404 not found\n" * 50)
    elif kind == "audio":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(16000))
    else:
        data = make_video(path, frames=30).read_bytes()
        path.write_bytes(data[: len(data) // 50])  # of the header
    return path


BAD = ("missing", "directory", "empty", "text", "audio", "header")


@pytest.mark.parametrize("reader", HAVE)
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_with_its_path(
    kind: str, suffix: str, reader: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make_bad(kind, tmp_path / f"bad{suffix}")
    capfd.readouterr()  # what the encoder says is not ours
    with pytest.raises(VideoError) as caught:
        read_clip(path, [0], reader)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


# Containers that tell where they should end; the header of these comes first.
CUTTABLE = {
    "avi": ("mpeg4", {"g": "8"}),
    "avi-b": ("mpeg4", {"g": "8", "bf": "2"}),
    "mp4": ("libx264", {"g": "12", "bf": "2"}),
    "mkv": ("libx264", {"g": "12", "bf": "2"}),
}


def cuttable(kind: str, folder: Path) -> tuple[Path, np.ndarray]:
    codec, options = CUTTABLE[kind]
    path = make_video(folder / f"whole.{kind[:3]}", codec, **options)
    if kind == "mp4":  # its index in front, as files for the web have it
        moved = folder / "moved.mp4"
        with av.open(str(path)) as source, av.open(str(moved), "w", options={"movflags": "faststart"}) as to:
            stream = to.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    to.mux(packet)
        path = moved
    return path, truth(path)


@pytest.mark.parametrize("kind", CUTTABLE)
def test_a_truncated_file_has_the_frames_up_to_there_and_says_so(kind: str, tmp_path: Path) -> None:
    path, frames = cuttable(kind, tmp_path)
    data, read = path.read_bytes(), 0
    cut = path.with_stem("cut")
    for tenth in range(1, 10):
        cut.write_bytes(data[: len(data) * tenth // 10])
        try:
            info = probe_video(cut)
        except VideoError:
            continue
        read += 1
        assert 0 < info.num_frames < len(frames)
        assert info.damage
        assert (info.decord, info.restarts) == ("", ())
        with pytest.warns(UserWarning, match=rf"cut.*{info.num_frames} frames are read"):
            opened = open_video(cut)
        got = opened.frames(range(info.num_frames))
        assert np.array_equal(got, frames[: info.num_frames])
        with pytest.raises(VideoError, match=f"frame {info.num_frames} does not exist"):
            opened.frames([info.num_frames])
    assert read >= 4


@pytest.mark.parametrize("kind", CUTTABLE)
def test_a_file_cut_between_two_packets_is_noticed(kind: str, tmp_path: Path) -> None:
    """Nothing fails to decode then: only the container's own length tells."""
    path, frames = cuttable(kind, tmp_path)
    assert probe_video(path).damage == ""
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    cut = path.with_stem("cut")
    cut.write_bytes(data[: ends[len(ends) * 2 // 3]])
    info = probe_video(cut)
    assert len(frames) / 2 < info.num_frames < len(frames)
    assert "cut short" in info.damage or "breaks off" in info.damage


@pytest.mark.parametrize("kind", ["avi", "mp4"])
def test_frames_that_a_damaged_packet_does_not_give_are_reported(kind: str, tmp_path: Path) -> None:
    path, _ = cuttable(kind, tmp_path)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[20:24]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    info = probe_video(path)
    assert 0 < info.num_frames < 50
    assert info.damage


def test_sound_files_are_not_called_damaged(videos: dict[str, Path]) -> None:
    assert {kind: probe_video(path).damage for kind, path in videos.items()} == dict.fromkeys(videos, "")


def test_a_relative_path_that_looks_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_video(tmp_path / "plain.mp4", frames=5)
    os.rename(path, "concat:odd name%d.mp4")
    for reader in HAVE:
        assert len(read_clip("concat:odd name%d.mp4", [0, 4], reader)) == 2


def test_an_unknown_or_absent_reader(videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MCNError, match="reader='opencv': one of auto, decord, pyav"):
        open_video(videos["h264-b"], "opencv")
    monkeypatch.setattr(readers, "decord", None)
    assert open_video(videos["h264-b"]).reader == "pyav"
    with pytest.raises(MCNError, match="not installed"):
        open_video(videos["h264-b"], "decord")


def _count(path: Path, queue: Any) -> None:
    queue.put([int(read_clip(path, [1, 30], reader).sum()) for reader in HAVE])


def test_reading_goes_on_in_a_forked_worker(videos: dict[str, Path]) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    here = [int(read_clip(videos["h264-b"], [1, 30], reader).sum()) for reader in HAVE]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_count, args=(videos["h264-b"], queue))
    worker.start()
    assert queue.get(timeout=20) == here
    worker.join(20)
    assert worker.exitcode == 0


def _real_files() -> list[Path]:
    """Some of each source: the whole of them takes a minute."""
    samples = [path for path in (SHARED / "samples").rglob("*") if path.suffix in (".avi", ".mp4")]
    return sorted(samples)[::3] + sorted((SHARED / "ucf101_subset" / "videos").rglob("*.avi"))[::400]


@pytest.mark.skipif(not _real_files(), reason=f"no sample videos under {SHARED}")
@pytest.mark.parametrize("path", _real_files(), ids=lambda path: path.name)
def test_real_files(path: Path) -> None:
    frames = truth(path)
    for reader in HAVE:
        allowed = XVID_LEVELS if reader == "decord" and path.suffix == ".avi" else 0
        assert largest_error(path, frames, reader, draws=2) <= allowed, reader
