"""The scripts in ``data_scripts/`` as a user runs them, with a server of our own.

The archives have the official names and layouts and a few short videos. Where no tool reads RAR they are
zip files whatever they are called (what an archive is, its content tells).
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from archive_writers import rar4, reads_rar, tgz, zipped
from loopback import CLEAN, Handler, Site

from mcn.data.datasets import load_videos
from mcn.preparation.download import RemoteFile
from mcn.preparation.synthetic import CLASSES
from mcn.preparation.verbs import main

SCRIPTS = Path(__file__).resolve().parents[2] / "data_scripts"
NAMES = ("ucf101", "hmdb51", "kinetics400", "synthetic", "folder")
VERBS = ("get", "extract", "check", "prepare", "flow")
SPLITS = SCRIPTS.parents[1] / "shared" / "data" / "splits"
TINY = ["--classes", "2", "--groups", "3", "--frames", "6", "--size", "16", "--clips_per_group", "1"]
rar = rar4 if reads_rar() else zipped


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def films(action_data: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((action_data / "videos").rglob("*.mp4"))]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """An address, and the folder that it serves."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or "CA_BUNDLE" in name:
            monkeypatch.delenv(name)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    folder = tmp_path / "server"
    folder.mkdir()
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", folder
    running.shutdown()
    running.server_close()


def said_by(source: Any, capsys: pytest.CaptureFixture[str], status: int, *arguments: object) -> str:
    """What a verb prints; without a traceback, whatever happens."""
    capsys.readouterr()
    assert main(source, [str(argument) for argument in arguments]) == status
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return said.out + said.err


UCF = {"ApplyEyeMakeup": ("g01", "g08"), "HandstandPushups": ("g02", "g09")}


def ucf101(folder: Path, films: list[bytes]) -> None:
    """UCF101's two archives with four videos; a name in them differs from its class in case, as in truth."""
    films = films.copy()
    names = [
        f"{label}/v_{label.replace('stand', 'Stand')}_{group}_c01.avi"
        for label, groups in UCF.items()
        for group in groups
    ]
    (folder / "UCF101.rar").write_bytes(rar({f"UCF-101/{name}": films.pop() for name in names}))
    train = "".join(f"{name} {1 + names.index(name) // 2}\r\n" for name in names[1::2])
    test = "".join(f"{name}\r\n" for name in names[::2])
    classes = "".join(f"{i} {label}\r\n" for i, label in enumerate(UCF, 1))
    lists = {"trainlist01.txt": train, "testlist01.txt": test, "classInd.txt": classes}
    (folder / "UCF101TrainTestSplits-RecognitionTask.zip").write_bytes(
        zipped({f"ucfTrainTestlist/{name}": text.encode() for name, text in lists.items()})
    )


def official(name: str, pattern: str = "*.txt") -> dict[str, bytes]:
    """A folder of official lists, as it lies in the archive."""
    if not (SPLITS / name).is_dir():
        pytest.skip("the official lists are not here (shared/data/splits)")
    return {path.name: path.read_bytes() for path in (SPLITS / name).glob(pattern)}


def local(module: Any, address: str, names: list[str]) -> Any:
    """The script's source with files from our own server."""
    files = tuple(RemoteFile(f"{address}/{name}", name) for name in names)
    return replace(module.SOURCE, remotes=lambda *_: files)


def test_ucf101_from_its_archives_to_prepared_clips(
    server: tuple[str, Path], films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, folder = server
    ucf101(folder, films)
    module, root, small = script("ucf101"), tmp_path / "ucf101", tmp_path / "small"
    source = local(module, address, [remote.name for remote in module.FILES])
    said = said_by(source, capsys, 0, "get", root)
    assert "research" in said
    assert "2 files" in said
    assert "next: ucf101.py extract" in said
    assert "2 archives unpacked" in said_by(source, capsys, 0, "extract", root)
    # Two classes are not UCF101: said, and counted by its own lists.
    said = said_by(source, capsys, 0, "check", root, "--json", tmp_path / "report.json")
    assert "layout of UCF101, 2 classes: videos in UCF-101/, lists in ucfTrainTestlist/" in said
    assert "split 1, train: 2 of 2 videos are there" in said
    assert "\n  2 of 101 classes\n" in said
    assert json.loads((tmp_path / "report.json").read_text())["ok"]
    assert "4 videos" in said_by(source, capsys, 0, "prepare", root, small, "--short_side", "24")
    assert "nothing is wrong" in said_by(source, capsys, 0, "check", small)
    for subset in ("train", "test", "all"):
        raw, prepared = load_videos(root, subset), load_videos(small, subset)
        assert (raw.names, raw.labels, raw.classes) == (prepared.names, prepared.labels, prepared.classes)
        for index in range(len(raw)):
            with raw.open(index) as one, prepared.open(index) as other:
                assert len(one) == len(other) == 16
    for verb in ("get", "extract", "prepare"):  # again: nothing is left to do, and nothing changes
        before = {path: path.stat().st_mtime_ns for path in (*root.rglob("*.avi"), *small.rglob("*.mp4"))}
        said_by(source, capsys, 0, verb, root, *[small, "--short_side", "24"] * (verb == "prepare"))
        assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_archives_that_are_here_already(
    server: tuple[str, Path], films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = server
    ucf101(folder, films)
    module = script("ucf101")
    source = local(module, "http://127.0.0.1:9", [remote.name for remote in module.FILES])  # nobody there
    said_by(source, capsys, 0, "get", tmp_path / "ucf101", "--from", folder)
    said_by(source, capsys, 0, "extract", tmp_path / "ucf101")
    assert len(load_videos(tmp_path / "ucf101", "all")) == 4
    # The official sizes are in the script: another file of that name is refused, and left as it is.
    said = said_by(module.SOURCE, capsys, 1, "get", tmp_path / "other", "--from", folder)
    assert "bytes, 6932971618 are expected" in said
    assert (folder / "UCF101.rar").exists()
    # Of a folder with much else in it only what belongs to the data set is unpacked.
    (folder / "holidays.zip").write_bytes(zipped({"beach.mp4": films[0]}))
    said = said_by(source, capsys, 0, "extract", tmp_path / "third", "--archives", folder)
    assert "2 archives unpacked" in said
    assert len(list((tmp_path / "third").rglob("*.*4"))) == 0
    said = said_by(source, capsys, 1, "extract", tmp_path / "x", "--archives", tmp_path / "third")
    assert "has no archives of UCF101 (looked for UCF101.rar and UCF101Train" in said


def test_ucf101_against_its_official_lists(
    films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists, folder, root = official("ucfTrainTestlist"), tmp_path / "here", tmp_path / "ucf101"
    folder.mkdir()
    names = [
        f"{name}_{clip}.avi"
        for name in ("HandstandPushups/v_HandStandPushups_g01", "YoYo/v_YoYo_g25")
        for clip in ("c01", "c02")
    ]
    clips = {f"UCF-101/{name}": film for name, film in zip(names, films, strict=False)}
    (folder / "UCF101.rar").write_bytes(rar(clips))
    zip_name = "UCF101TrainTestSplits-RecognitionTask.zip"
    (folder / zip_name).write_bytes(zipped({f"ucfTrainTestlist/{name}": d for name, d in lists.items()}))
    module = script("ucf101")
    source = local(module, "http://127.0.0.1:9", ["UCF101.rar", zip_name])
    said_by(source, capsys, 0, "get", root, "--from", folder)
    said_by(source, capsys, 0, "extract", root)
    said = said_by(source, capsys, 1, "check", root, "--quick")
    assert "UCF101: videos in UCF-101/, lists in ucfTrainTestlist/" in said
    assert "split 1, train: 2 of 9,537 videos are there (official: 9,537)" in said
    assert "split 1, test: 2 of 3,783 videos are there (official: 3,783)" in said
    assert "all: 4 of 4 videos are there (official: 13,320)  WRONG" in said
    assert "WRONG, listed videos are not there: 13,316" in said
    assert "\n  2 of 101 classes\n" in said  # with videos: the lists have all
    assert "    ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n" in said
    videos = load_videos(root, "all")
    assert [videos.classes[label] for label in videos.labels] == ["HandstandPushups"] * 2 + ["YoYo"] * 2
    assert videos.names == tuple(names)
    said_by(source, capsys, 0, "prepare", root, tmp_path / "small", "--short_side", "24")
    said = said_by(source, capsys, 1, "check", tmp_path / "small", "--quick")
    assert "WRONG, listed videos are not there: 13,316" in said
    assert load_videos(tmp_path / "small", "all").labels == videos.labels


def test_a_wrong_published_checksum(
    server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, folder = server
    (folder / "UCF101.rar").write_bytes(b"not what was published")
    files = (RemoteFile(f"{address}/UCF101.rar", "UCF101.rar", size=22, sha256="ab" * 32),)
    source = replace(script("ucf101").SOURCE, remotes=lambda *_: files)
    said = said_by(source, capsys, 1, "get", tmp_path / "ucf101")
    line = said.strip().splitlines()[-1]
    assert line.startswith(f"ucf101.py get: {tmp_path}/ucf101/archives/UCF101.rar: its SHA-256 is ")
    assert f"the published one {'ab' * 32}: it is kept as UCF101.rar.corrupt; run again to fetch" in line
    assert not (tmp_path / "ucf101/archives/UCF101.rar").exists()
    files = (RemoteFile(f"{address}/gone.rar", "gone.rar"),)
    said = said_by(replace(source, remotes=lambda *_: files), capsys, 1, "get", tmp_path / "ucf101")
    assert "HTTP 404" in said.strip().splitlines()[-1]


def test_hmdb51(
    server: tuple[str, Path], films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive of one archive a class, and the official lists cut to two videos a class."""
    if not reads_rar():
        pytest.skip("no tool that reads RAR is installed")
    address, folder = server
    lists, clips = official("hmdb51_splits", "*_test_split?.txt"), dict[str, list[str]]()
    for name, data in lists.items():
        label = name.partition("_test_split")[0]
        lines = [line for line in data.decode().splitlines() if line.strip()]
        if label not in clips:
            clips[label] = [next(li for li in lines if li.split()[1] == use).split()[0] for use in "12"]
        first = clips[label][0]
        lists[name] = "".join(f"{clip} {1 if clip == first else 2} \n" for clip in clips[label]).encode()
    assert len(lists) == 153
    content = [films[k % 40] + bytes([k]) for k in range(102)]
    inner = {
        f"{label}.rar": rar({f"{label}/{name}": content.pop() for name in names})
        for label, names in sorted(clips.items())
    }
    (folder / "hmdb51_org.rar").write_bytes(rar(inner))
    named = {f"testTrainMulti_7030_splits/{name}": data for name, data in lists.items()}
    (folder / "test_train_splits.rar").write_bytes(rar(named))
    module, root = script("hmdb51"), tmp_path / "hmdb51"
    source = local(module, address, [module.VIDEOS, module.LISTS])
    said_by(source, capsys, 0, "get", root)
    assert "2 archives unpacked" in said_by(source, capsys, 0, "extract", root)
    train, test = load_videos(root, "train", 2), load_videos(root, "test", 2)
    where = "HMDB51: videos in hmdb51_org/, lists in testTrainMulti_7030_splits/"
    assert train.layout == f"{where} (split 2)"
    assert train.labels == test.labels == tuple(range(51))
    assert train.classes == tuple(sorted(clips))
    assert train.names == tuple(f"{label}/{clips[label][0]}" for label in train.classes)
    said = said_by(source, capsys, 1, "check", root, "--quick")
    assert "split 3, train: 51 of 51 videos are there (official: 3,570)  WRONG" in said
    assert "\n  51 of 51 classes\n" in said
    assert "split 3, test: 51 of 51 videos are there (official: 1,530)  WRONG" in said


def test_a_drive_that_sends_a_page_names_the_browser(
    server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, folder = server
    (folder / "ask").mkdir()
    (folder / "ask/index.html").write_text("<html>This file is too large to be scanned. Go on?</html>")
    files = (RemoteFile(f"{address}/ask/", "hmdb51_org.rar"),)
    source = replace(script("hmdb51").SOURCE, remotes=lambda *_: files)
    said = said_by(source, capsys, 1, "get", tmp_path / "hmdb51")
    assert "browser" in said
    assert "--from" in said
    assert not list((tmp_path / "hmdb51").rglob("*.rar"))


def test_kinetics_by_parts(
    server: tuple[str, Path],
    films: list[bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, folder = server
    module, root = script("kinetics400"), tmp_path / "kinetics400"
    monkeypatch.setattr(module, "BASE", address)
    parts = [f"{address}/val/part {number}.tar.gz" for number in (0, 1)]
    (folder / "val").mkdir()
    (folder / "val/k400_val_path.txt").write_text("\n".join(part.replace(" ", "%20") for part in parts))
    for number in (0, 1):
        clip = f"abcdefghij{number}_000010_000020.mp4"
        (folder / f"val/part {number}.tar.gz").write_bytes(tgz({clip: films[number]}))
    rows = "".join(f"waving,abcdefghij{i},10,20,val,0\n" for i in range(3))  # the third is lost
    (folder / "annotations").mkdir()
    (folder / "annotations/val.csv").write_text(f"label,youtube_id,time_start,time_end,split,is_cc\n{rows}")
    assert "there is no 'eval', only train, val, test" in said_by(
        module.SOURCE, capsys, 1, "get", root, "--parts", "eval"
    )
    said_by(module.SOURCE, capsys, 0, "get", root, "--parts", "val")
    said_by(module.SOURCE, capsys, 0, "extract", root)
    assert sorted(path.name for path in (root / "val").glob("*.mp4")) == [
        f"abcdefghij{number}_000010_000020.mp4" for number in (0, 1)
    ]
    test = load_videos(root, "test")
    assert (len(test), test.classes) == (2, ("waving",))
    assert "1 of 3 listed are not on disk and left out" in test.layout
    said = said_by(module.SOURCE, capsys, 0, "check", root)
    assert "note, listed videos are not there: 1\n    " in said
    assert "\n  1 of 400 classes\n" in said
    assert "nothing is wrong" in said


def test_kinetics_from_archives_that_are_here(
    films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked, and parts whose archives have the same names are not mixed up."""
    module, here = script("kinetics400"), tmp_path / "here"
    monkeypatch.setattr(module, "BASE", "http://127.0.0.1:9")
    (here / "annotations").mkdir(parents=True)
    for number, part in enumerate(("train", "val")):
        (here / f"k400_{part}_path.txt").write_text(f"http://127.0.0.1:9/{part}/part_0.tar.gz\n")
        row = f"waving,abcdefghij{number},10,20,{part},0\n"
        (here / f"annotations/{part}.csv").write_text(
            f"label,youtube_id,time_start,time_end,split,is_cc\n{row}"
        )
        (here / part).mkdir()
        archive = tgz({f"abcdefghij{number}_000010_000020.mp4": films[number]})
        (here / part / "part_0.tar.gz").write_bytes(archive)
    get = ("get", tmp_path / "k", "--parts", "train, val,val", "--from", here)
    assert "4 files" in said_by(module.SOURCE, capsys, 0, *get)
    assert "2 archives unpacked" in said_by(module.SOURCE, capsys, 0, "extract", tmp_path / "k")
    for number, subset in enumerate(("train", "test")):
        videos = load_videos(tmp_path / "k", subset)
        assert videos.path(0).read_bytes() == films[number]
        assert videos.labels == (0,)
    said = said_by(module.SOURCE, capsys, 1, "get", tmp_path / "k2", "--from", tmp_path / "none")
    assert said.startswith(f"kinetics400.py get: no such folder or file: {tmp_path}/none (--from takes")
    # Archives that lie there without their part's folder could be any part's.
    said = said_by(module.SOURCE, capsys, 1, "extract", tmp_path / "x", "--archives", here / "train")
    assert "train has no archives of Kinetics-400 (looked for train/part_0.tar.gz and the like" in said


def cut(frames: int) -> bytes:
    """An AVI whose second half is missing."""
    file = BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.codec_context.gop_size = 4
        for image in np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()[: len(file.getvalue()) // 2]


def test_ones_own_videos_with_bad_ones_among_them(
    films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, root, small = script("folder").SOURCE, tmp_path / "clips", tmp_path / "small"
    content = {
        "ride/at dusk é.mp4": films[0], "ride/two.mp4": films[1], "walk/three.mp4": films[2],
        "walk/broken.mp4": b"no video", "walk/empty.avi": b"", "walk/cut.avi": cut(40),
        "walk/\udcff no name.mp4": b"no video",
    }  # fmt: skip
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    assert "nothing to fetch" in said_by(source, capsys, 0, "get", root)
    said = said_by(source, capsys, 1, "extract", root)
    assert f"no such folder: {root}/archives: give --archives FOLDER" in said
    said = said_by(source, capsys, 1, "check", root)
    assert "class folders, no split lists" in said
    unreadable = ("walk/broken.mp4", "walk/empty.avi", "walk/\\udcff no name.mp4")
    assert "WRONG, videos cannot be read: 3\n" in said
    assert all(f"\n    {name}: " in said for name in unreadable)
    assert "WRONG, videos are damaged: 1\n    walk/cut.avi: " in said
    assert said.count(f"{root}") == 1  # what is wrong is not told with the whole path again and again
    said = said_by(source, capsys, 0, "prepare", root, small, "--short_side", "24", "--form", "packed")
    assert "4 videos, " in said
    assert all(f"\nunreadable: {name}: " in said for name in unreadable)
    kept = int(said.partition("damaged, ")[2].split()[0])
    assert f"damaged, {kept} frames are kept: walk/cut.avi: " in said
    assert 2 <= kept < 40
    videos = load_videos(small, "train")
    assert (len(videos), videos.classes) == (7, ("ride", "walk"))
    said = said_by(source, capsys, 1, "check", small)
    assert all(f"\n    {name}: " in said for name in unreadable)
    assert said.count(f"{small}") == 1
    pytest.importorskip("cv2", reason="the extra `data` is not installed")
    said = said_by(source, capsys, 1, "flow", small)
    assert f"flow of {3 * 15 + kept - 1} pairs of frames" in said
    assert "without flow: " in said
    assert "broken.mp4" in said


def test_a_flat_folder(films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, root = script("folder").SOURCE, tmp_path / "my clips"
    root.mkdir()
    for number in range(2):
        (root / f"{number}.mp4").write_bytes(films[number])
    said = said_by(source, capsys, 0, "check", root)
    assert "flat folder, no labels" in said
    said = said_by(source, capsys, 0, "prepare", root, tmp_path / "my small", "--short_side", "24")
    assert f"next: mcn pretrain --data '{tmp_path}/my small' ..." in said  # to be copied as it is
    assert load_videos(tmp_path / "my small").names == ("0.mp4", "1.mp4")


def test_the_synthetic_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, root = script("synthetic").SOURCE, tmp_path / "drawn"
    said = said_by(source, capsys, 0, "get", root, *TINY, "--workers", "1")
    assert f"{root}: 6 videos (next: synthetic.py check {root})" in said
    assert "drawing: 100%" in said
    assert "nothing to unpack" in said_by(source, capsys, 0, "extract", root)
    assert "nothing is wrong" in said_by(source, capsys, 0, "check", root)
    said = said_by(source, capsys, 0, "prepare", root, tmp_path / "small", "--short_side", "16")
    assert "6 videos, 36 frames, " in said
    assert "other settings" in said_by(source, capsys, 1, "get", root, *TINY, "--seed", "1")
    assert "workers is 0" in said_by(source, capsys, 1, "get", root, *TINY, "--workers", "0")
    (tmp_path / "file").write_text("")
    said = said_by(source, capsys, 1, "get", tmp_path / "file", *TINY)
    assert "cannot write" in said.strip().splitlines()[-1]
    pytest.importorskip("cv2", reason="the extra `data` is not installed")
    assert "flow of 30 pairs of frames" in said_by(source, capsys, 0, "flow", tmp_path / "small")


@pytest.mark.parametrize("name", NAMES)
def test_help_and_mistakes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = script(name).SOURCE
    assert source.script == f"{name}.py"
    said = said_by(source, capsys, 0, "--help")
    assert all(f"\n  {verb} " in said for verb in VERBS)
    assert "usage" in said_by(source, capsys, 2)
    assert "unknown verb 'fetch'" in said_by(source, capsys, 2, "fetch", tmp_path)
    for verb in VERBS:
        with pytest.raises(SystemExit) as stopped:
            main(source, [verb, "--help"])
        assert stopped.value.code == 0
        said = said_by(source, capsys, 2, verb, tmp_path, "--nonsense", "1")
        assert len(said.strip().splitlines()) == 1
    nowhere = tmp_path / "nowhere"
    for arguments in (["check", nowhere], ["prepare", nowhere, tmp_path / "out"], ["flow", nowhere]):
        said = said_by(source, capsys, 1, *arguments)
        assert "no such folder" in said
        assert len(said.strip().splitlines()) == 1


MISTAKES = {
    "check x --workers two": "--workers takes a whole number, not 'two'",
    "get x --classes ten": "--classes takes a whole number, not 'ten'",
    "get x --hard_positives maybe": "--hard_positives takes true or false, not 'maybe'",
    "flow x --method best": "--method takes opencv or torch, not 'best'",
    "check": "the following arguments are required: root",
    "prepare x": "the following arguments are required: out",
    "check x --json": "argument --json: expected one argument",
    "check x --quic": "unrecognized arguments: --quic (did you mean --quick?)",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_flags_are_told_of_in_words(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = said_by(script("synthetic").SOURCE, capsys, 2, *line.split())
    verb = line.split()[0]
    assert said == f"synthetic.py {verb}: {MISTAKES[line]} (see synthetic.py {verb} --help)\n"


def test_lines_that_nobody_takes(films: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").write_bytes(films[0])
    command = [sys.executable, str(SCRIPTS / "folder.py"), "check", str(tmp_path / "clips"), "--quick"]
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (
            1,
            "folder.py check: writing what was found: No space left on device\n",
        )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


# --- killed and interrupted

_LOCAL = """
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from mcn.preparation.download import RemoteFile
from mcn.preparation.verbs import main
spec = spec_from_file_location("script", sys.argv[1])
module = module_from_spec(spec)
spec.loader.exec_module(module)
files = tuple(RemoteFile(f"{sys.argv[2]}/{remote.name}", remote.name) for remote in module.FILES)
sys.exit(main(replace(module.SOURCE, remotes=lambda *_: files), sys.argv[3:]))
"""


def run(name: str, *arguments: object, address: str = "", path: str = "") -> "subprocess.Popen[str]":
    """A script in a process (and group) of its own; its files come from ``address``, where one is given."""
    command = [sys.executable, str(SCRIPTS / f"{name}.py")]
    if address:
        command = [sys.executable, "-c", _LOCAL, command[1], address]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**CLEAN, "PATH": f"{path}:{CLEAN['PATH']}" if path else CLEAN["PATH"]},
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", status: int = 0) -> str:
    """Wait for it; what it printed, without a traceback."""
    said = "".join(process.communicate(timeout=120))
    assert "Traceback" not in said
    assert process.returncode == status, said
    return said


def wait_for(ready: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 60
    while process.poll() is None and not ready() and time.monotonic() < end:
        time.sleep(0.005)


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def longer(films: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty videos, so that there is something to kill."""
    root = tmp_path_factory.mktemp("longer")
    for number, film in enumerate(films[:30]):
        path = root / f"class {number % 3}" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(film)
    return root


def family(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that it has started."""
    return psutil.Process(process.pid).children(recursive=True)


def gone(others: list[psutil.Process]) -> bool:
    """Whether all of them end, within a moment."""
    _, alive = psutil.wait_procs(others, timeout=5)
    return all(other.status() == psutil.STATUS_ZOMBIE for other in alive)


def kill_when(process: "subprocess.Popen[str]", ready: Callable[[], bool]) -> None:
    """SIGKILL, which leaves nobody behind."""
    wait_for(ready, process)
    assert process.poll() is None, process.communicate()
    others = family(process)
    process.kill()
    process.wait()
    assert gone(others)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["video", "packed"])
def test_preparation_killed_and_started_again_ends_with_the_same_bytes(
    form: str, longer: Path, tmp_path: Path
) -> None:
    arguments = ["--form", form, "--short_side", "32", "--workers", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(run("folder", "prepare", longer, whole, *arguments))
    journal = killed / "manifest.jsonl"
    for number in (3, 12):
        kill_when(
            run("folder", "prepare", longer, killed, *arguments),
            lambda n=number: journal.exists() and journal.read_bytes().count(b"\n") >= n,  # type: ignore[misc]
        )
        assert not (killed / "prepared.json").exists()
    finish(run("folder", "prepare", longer, killed, *arguments))
    assert content_of(killed) == content_of(whole)


@pytest.fixture
def slow_site() -> Iterator[Site]:
    """A server that takes its time: 300 kB of the same for every name."""
    site = Site(body=bytes(range(250)) * 1200, pause=0.03)
    running = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"site": site}))
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    site.url = f"http://127.0.0.1:{running.server_port}"
    yield site
    running.shutdown()
    running.server_close()


def test_get_killed_and_started_again(slow_site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "ucf101/archives"
    for name in ("UCF101.rar", "UCF101TrainTestSplits-RecognitionTask.zip"):
        part = folder / f"{name}.partial"
        kill_when(
            run("ucf101", "get", tmp_path / "ucf101", address=slow_site.url),
            lambda part=part: part.exists() and part.stat().st_size > 50_000,  # type: ignore[misc]
        )
    slow_site.pause = 0
    assert "2 files, 600 kB" in finish(run("ucf101", "get", tmp_path / "ucf101", address=slow_site.url))
    content = content_of(folder)
    assert sorted(content) == ["SHA256SUMS", "UCF101.rar", "UCF101TrainTestSplits-RecognitionTask.zip"]
    assert all(data == slow_site.body for name, data in content.items() if name != "SHA256SUMS")
    assert sum(wanted == "" for wanted in slow_site.gets) == 2  # each begun once, then continued


def slow_tool(folder: Path) -> str:
    """A folder with a tool for RAR that takes its time and is found before the others."""
    folder.mkdir()
    (folder / "unar").write_text('#!/bin/sh\nsleep 0.1\necho x\nPATH=/usr/bin:/bin exec unar "$@"\n')
    (folder / "unar").chmod(0o755)
    return str(folder)


@pytest.mark.skipif(not Path("/usr/bin/unar").exists(), reason="unar is not installed")
def test_extract_killed_and_started_again(films: list[bytes], tmp_path: Path) -> None:
    tool, root = slow_tool(tmp_path / "bin"), tmp_path / "hmdb51"
    clips = {f"class{i}": {f"class{i}/{j}.avi": films[4 * i + j] for j in range(4)} for i in range(8)}
    root.joinpath("archives").mkdir(parents=True)
    outer = rar4({f"{label}.rar": rar4(members) for label, members in clips.items()})
    (root / "archives/hmdb51_org.rar").write_bytes(outer)
    for number in (1, 4):
        kill_when(
            run("hmdb51", "extract", root, path=tool),
            lambda n=number: len(list(root.glob("hmdb51_org/class*"))) >= n,  # type: ignore[misc]
        )
    finish(run("hmdb51", "extract", root))
    found = {name: data for name, data in content_of(root / "hmdb51_org").items() if name[0] != "."}
    assert found == {name: data for members in clips.values() for name, data in members.items()}


def test_synthetic_actions_killed_and_started_again(tmp_path: Path) -> None:
    size = ["--classes", "2", "--groups", "33", "--frames", "6", "--size", "32", "--workers", "2"]
    size += ["--clips_per_group", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(script("synthetic").SOURCE, ["get", str(whole), *size]) == 0
    kill_when(run("synthetic", "get", killed, *size), lambda: any(killed.glob("videos/*/*.mp4")))
    assert not (killed / "synthetic.json").exists()
    left = killed / f"videos/{CLASSES[0]}/.v_x.mp4.1.partial"
    left.write_bytes(b"begun by a process that was killed")
    finish(run("synthetic", "get", killed, *size))
    assert content_of(killed) == content_of(whole)


@pytest.mark.slow
def test_flow_killed_and_started_again(films: list[bytes], tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="the extra `data` is not installed")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
        for number in range(3):
            (root / f"{number}.mp4").write_bytes(films[number])
    finish(run("folder", "flow", whole))
    kill_when(run("folder", "flow", killed), lambda: len(list(killed.rglob("flow_y*.jpg"))) >= 5)
    for left in killed.rglob(".*.partial"):
        os.utime(left, (0, 0))
    assert "flow of 45 pairs" in finish(run("folder", "flow", killed))
    assert content_of(killed / "flow") == content_of(whole / "flow")


LAST = "interrupted; the same command goes on from here"


def interrupt(process: "subprocess.Popen[str]", ready: Callable[[], bool], everyone: bool) -> None:
    """Ctrl-C (which a terminal sends to all of the group), or SIGINT to the one process."""
    wait_for(ready, process)
    assert process.poll() is None, process.communicate()
    others = family(process)
    (os.killpg if everyone else os.kill)(process.pid, signal.SIGINT)
    said = finish(process, 130)
    assert said.strip().splitlines()[-1].endswith(LAST)
    assert gone(others)


@pytest.mark.parametrize("everyone", [True, False])
def test_interrupting_is_one_line_and_leaves_nobody_behind(
    everyone: bool, longer: Path, slow_site: Site, tmp_path: Path
) -> None:
    process = run("folder", "prepare", longer, tmp_path / "out", "--short_side", "32", "--workers", "1")
    journal = tmp_path / "out" / "manifest.jsonl"
    interrupt(process, lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 2, everyone)
    root = tmp_path / "drawn"
    process = run("synthetic", "get", root, "--frames", "60", "--size", "96", "--workers", "2")
    interrupt(process, lambda: any(root.glob("videos/*/*.mp4")), everyone)
    process = run("ucf101", "get", tmp_path / "ucf101", address=slow_site.url)
    interrupt(process, lambda: any(tmp_path.glob("ucf101/archives/*.partial")), everyone)


@pytest.mark.skipif(not Path("/usr/bin/unar").exists(), reason="unar is not installed")
@pytest.mark.parametrize("everyone", [True, False])
def test_interrupting_a_tool(everyone: bool, tmp_path: Path) -> None:
    tool, root = tmp_path / "bin", tmp_path / "hmdb51"
    slow_tool(tool)
    (tool / "unar").write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nexec sleep 60\n")
    (root / "archives").mkdir(parents=True)
    (root / "archives/hmdb51_org.rar").write_bytes(rar4({"a": b"a"}))
    process = run("hmdb51", "extract", root, path=str(tool))
    interrupt(process, (tmp_path / "begun").exists, everyone)


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [True, False])
@pytest.mark.parametrize("verb", ["check", "flow"])
def test_interrupting_what_decodes(verb: str, everyone: bool, longer: Path, tmp_path: Path) -> None:
    root = tmp_path / "clips"
    shutil.copytree(longer, root)
    process = run("folder", verb, root, "--workers", "1")
    done = {"check": root / "mcn-index.jsonl", "flow": root / "flow"}[verb]
    interrupt(process, done.exists, everyone)
