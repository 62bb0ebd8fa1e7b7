"""Files opened through a supervised child: the same frames, the same errors, and an index that is right."""

import json
import multiprocessing
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcn.data import index as index_module
from mcn.data import safe
from mcn.data.datasets import load_videos
from mcn.data.index import VideoIndex
from mcn.data.readers import open_video, probe_video
from mcn.data.safe import open_safely
from mcn.data.videoinfo import VideoError, VideoInfo, probe, state_of
from mcn.errors import MCNError


@pytest.fixture
def video(action_data: Path) -> Path:
    return load_videos(action_data, "train").path(0)


def test_frames_are_those_of_the_reader(video: Path) -> None:
    for reader in ("auto", "pyav"):
        with open_safely(video, reader) as here, open_video(video, reader) as there:
            assert (len(here), here.fps, here.info) == (len(there), there.fps, there.info)
            for indices in ([3, 3, 0, 7], range(5), np.array([15, 2])):
                assert np.array_equal(here.frames(indices), there.frames(indices))  # type: ignore[arg-type]


def test_errors_are_those_of_the_reader(video: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="frame 16 does not exist"), open_safely(video) as opened:
        opened.frames([16])
    with pytest.raises(VideoError, match=r"gone\.mp4: No such file"):
        open_safely(tmp_path / "gone.mp4")
    with pytest.raises(MCNError, match="one of auto, decord, pyav"):
        open_safely(video, "opencv")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4: not readable as a video"):
        open_safely(tmp_path / "text.mp4")


def test_a_file_that_goes_away_after_it_was_opened(video: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(video.read_bytes())
    opened = open_safely(copy)
    copy.unlink()
    with pytest.raises(VideoError, match=r"copy\.mp4: not readable as a video \(No such file"):
        opened.frames([0])


def _as_nobody(path: Path, queue: Any) -> None:
    if os.geteuid() == 0:  # whom permissions do not bind
        os.seteuid(65534)
    try:
        queue.put(str(probe(str(path))))
    except VideoError as error:
        queue.put(str(error))


def test_a_file_nobody_may_read(video: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own cannot be entered by others
        Path(folder).chmod(0o755)
        secret = Path(folder, "secret.mp4")
        secret.write_bytes(video.read_bytes())
        secret.chmod(0)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=_as_nobody, args=(secret, queue))
        process.start()
        assert queue.get(timeout=20) == f"{secret}: not readable as a video (Permission denied)"
        process.join(20)


def test_special_files_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.avi")
    (tmp_path / "folder.avi").mkdir()
    for name in ("pipe.avi", "folder.avi"):
        with pytest.raises(VideoError, match="not a file"):
            open_safely(tmp_path / name)


INFOS = [
    VideoInfo(50, 25.0, 64, 96, "jump"),
    VideoInfo(1, 0.0, 2, 2, "", ((0, 0), (12, 12))),
    VideoInfo(7, 29.97, 240, 320, "run", damage="cut short: 12 bytes are missing at its end, é"),
]


def test_an_index_gives_back_what_was_added(tmp_path: Path) -> None:
    written = VideoIndex(tmp_path)
    for number, info in enumerate(INFOS):
        assert written.get(f"a/{number} é.avi", (5, 6)) is None
        written.add(f"a/{number} é.avi", (5, 6), info)
    for index in (written, VideoIndex(tmp_path)):
        assert [index.get(f"a/{number} é.avi", (5, 6)) for number in range(3)] == INFOS
        assert index.get("a/0 é.avi", (5, 7)) is None  # the file has changed
        assert index.get("a/0 é.avi", (4, 6)) is None
    written.add("a/0 é.avi", (5, 7), INFOS[1])
    assert VideoIndex(tmp_path).get("a/0 é.avi", (5, 7)) == INFOS[1]


def test_what_others_add_is_found(tmp_path: Path) -> None:
    mine, theirs = VideoIndex(tmp_path), VideoIndex(tmp_path)
    assert mine.get("a", (1, 1)) is None
    theirs.add("a", (1, 1), INFOS[0])
    assert mine.get("a", (1, 1)) == INFOS[0]


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    index = VideoIndex(tmp_path)
    for name in "abcd":
        index.add(name, (1, 1), INFOS[0])
    lines = index.path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"25.0", b"24.0")
    lines[3] = lines[3][: len(lines[3]) // 2]  # and no end of line
    index.path.write_bytes(b"\n".join(lines[:4]))
    again = VideoIndex(tmp_path)
    assert [again.get(name, (1, 1)) is not None for name in "abcd"] == [True, False, True, False]
    index.path.write_bytes(b"\xff\x00 no index at all\n")
    assert VideoIndex(tmp_path).get("a", (1, 1)) is None


def test_lines_that_follow_other_rules_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VideoIndex(tmp_path).add("a", (1, 1), INFOS[0])
    monkeypatch.setattr(index_module, "_RULES", index_module._RULES + 1)
    assert VideoIndex(tmp_path).get("a", (1, 1)) is None


def test_a_data_set_that_cannot_be_written_has_its_index_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir(mode=0o555)
    (tmp_path / "other").mkdir(mode=0o555)
    index = VideoIndex(tmp_path / "data")
    index.add("a", (1, 1), INFOS[0])
    assert index.path.parent == tmp_path / "cache" / "mcn"
    assert VideoIndex(tmp_path / "data").get("a", (1, 1)) == INFOS[0]
    assert VideoIndex(tmp_path / "other").get("a", (1, 1)) is None


def _add_many(root: Path, who: int) -> None:
    index = VideoIndex(root)
    for number in range(200):
        index.add(f"{who}-{number}", (who, number), VideoInfo(number + 1, 25.0, 64, 96, "x" * 50 * who))


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_many, args=(tmp_path, who)) for who in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    lines = (tmp_path / index_module.NAME).read_bytes().splitlines()
    assert len(lines) == 800
    assert all(line[:8].decode() == f"{zlib.crc32(line[9:]):08x}" and json.loads(line[9:]) for line in lines)
    index = VideoIndex(tmp_path)
    assert index.get("3-77", (3, 77)) == VideoInfo(78, 25.0, 64, 96, "x" * 150)


def test_a_file_is_looked_at_once_and_again_when_it_changes(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    real = safe.supervised
    monkeypatch.setattr(
        safe, "supervised", lambda f, *a, **k: (calls.append(f.__name__), real(f, *a, **k))[1]
    )
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(video.read_bytes())
    for _ in range(3):
        opened = open_safely(copy, index=VideoIndex(tmp_path), name="copy.mp4")
        assert opened.info == probe_video(copy)
    assert calls == ["probe"]
    copy.write_bytes(video.read_bytes()[:-1])
    assert open_safely(copy, index=VideoIndex(tmp_path), name="copy.mp4").info.damage
    assert calls == ["probe", "probe"]
    assert state_of(copy)[0] == len(video.read_bytes()) - 1
