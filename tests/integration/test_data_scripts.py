"""The scripts in ``data_scripts/`` as a user runs them, with a server of our own.

The archives have the official names and layouts and a few short videos. They are zip files whatever
they are called (what an archive is, its content tells); RAR is tested in tests/unit/test_archives.py.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from mcn.data.datasets import load_videos
from mcn.preparation.download import RemoteFile
from mcn.preparation.verbs import main

SCRIPTS = Path(__file__).resolve().parents[2] / "data_scripts"
NAMES = ("ucf101", "hmdb51", "kinetics400", "synthetic", "folder")
VERBS = ("get", "extract", "check", "prepare", "flow")


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


def zipped(path: Path, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def tarred(path: Path, content: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, BytesIO(data))


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
    zipped(folder / "UCF101.rar", {f"UCF-101/{name}": films.pop() for name in names})
    train = "".join(f"{name} {1 + names.index(name) // 2}\r\n" for name in names[1::2])
    test = "".join(f"{name}\r\n" for name in names[::2])
    classes = "".join(f"{i} {label}\r\n" for i, label in enumerate(UCF, 1))
    lists = {"trainlist01.txt": train, "testlist01.txt": test, "classInd.txt": classes}
    zipped(
        folder / "UCF101TrainTestSplits-RecognitionTask.zip",
        {f"ucfTrainTestlist/{name}": text.encode() for name, text in lists.items()},
    )


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


def test_hmdb51(
    server: tuple[str, Path], films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, folder = server
    classes = ("brush_hair", "wave")
    clips = {label: [f"{label}_u_nm_np1_ba_goo_{i}.avi" for i in range(3)] for label in classes}
    zipped(
        folder / "hmdb51_org.rar",
        {f"{label}/{name}": films[k] for label in classes for k, name in enumerate(clips[label])},
    )
    lists = {
        f"testTrainMulti_7030_splits/{label}_test_split{split}.txt": "".join(
            f"{name} {use} \n" for name, use in zip(clips[label], (1, 2, 0), strict=True)
        ).encode()
        for label in classes
        for split in (1, 2, 3)
    }
    zipped(folder / "test_train_splits.rar", lists)
    module, root = script("hmdb51"), tmp_path / "hmdb51"
    source = local(module, address, [module.VIDEOS, module.LISTS])
    said_by(source, capsys, 0, "get", root)
    said_by(source, capsys, 0, "extract", root)
    train, test = load_videos(root, "train"), load_videos(root, "test")
    assert "layout of HMDB51, 2 classes: videos in hmdb51_org/" in train.layout
    assert (train.labels, test.labels) == ((0, 1), (0, 1))
    assert said_by(source, capsys, 0, "check", root).count("2 of 2 videos are there") == 6


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
        tarred(folder / f"val/part {number}.tar.gz", {clip: films[number]})
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
    said_by(module.SOURCE, capsys, 0, "check", root)


def test_ones_own_videos_with_bad_ones_among_them(
    films: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, root, small = script("folder").SOURCE, tmp_path / "clips", tmp_path / "small"
    content = {
        "ride/at dusk é.mp4": films[0], "ride/two.mp4": films[1], "walk/three.mp4": films[2],
        "walk/broken.mp4": b"no video", "walk/empty.avi": b"",
    }  # fmt: skip
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    assert "nothing to fetch" in said_by(source, capsys, 0, "get", root)
    assert "no archives in" in said_by(source, capsys, 1, "extract", root)
    said = said_by(source, capsys, 1, "check", root)
    assert "class folders, no split lists" in said
    for name in ("walk/broken.mp4", "walk/empty.avi"):
        assert name in said
    said = said_by(source, capsys, 0, "prepare", root, small, "--short_side", "24", "--form", "packed")
    assert "unreadable: walk/broken.mp4" in said
    assert "unreadable: walk/empty.avi" in said
    videos = load_videos(small, "train")
    assert (len(videos), videos.classes) == (5, ("ride", "walk"))
    pytest.importorskip("cv2", reason="the extra `data` is not installed")
    said = said_by(source, capsys, 1, "flow", small)
    assert "flow of 45 frame pairs" in said
    assert "without flow: walk/broken.mp4" in said or "broken.mp4" in said


def test_the_synthetic_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, root = script("synthetic").SOURCE, tmp_path / "drawn"
    small = ["--classes", "2", "--groups", "3", "--frames", "6", "--size", "16", "--clips_per_group", "1"]
    assert "6 videos" in said_by(source, capsys, 0, "get", root, *small, "--workers", "1")
    assert "nothing to unpack" in said_by(source, capsys, 0, "extract", root)
    assert "nothing is wrong" in said_by(source, capsys, 0, "check", root)
    assert "other settings" in said_by(source, capsys, 1, "get", root, *small, "--seed", "1")


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


def run(name: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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


@pytest.mark.parametrize("form", ["video", "packed"])
def test_preparation_killed_and_started_again_ends_with_the_same_bytes(
    form: str, longer: Path, tmp_path: Path
) -> None:
    arguments = ["--form", form, "--short_side", "32", "--workers", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("folder", "prepare", longer, whole, *arguments).wait(120) == 0
    for number in (3, 12):
        process = run("folder", "prepare", longer, killed, *arguments)
        journal = killed / "manifest.jsonl"
        wait_for(lambda j=journal, n=number: j.exists() and j.read_bytes().count(b"\n") >= n, process)  # type: ignore[misc]
        process.kill()
        process.communicate()
        assert not (killed / "prepared.json").exists()
    assert run("folder", "prepare", longer, killed, *arguments).wait(120) == 0
    assert content_of(killed) == content_of(whole)


def test_interrupting_is_one_line_and_leaves_nobody_behind(longer: Path, tmp_path: Path) -> None:
    process = run("folder", "prepare", longer, tmp_path / "out", "--short_side", "32", "--workers", "1")
    journal = tmp_path / "out" / "manifest.jsonl"
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 2, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].endswith("interrupted; the same command goes on from here")
    alive = [path for path in Path("/proc").glob("[0-9]*/stat") if f" {process.pid} " in _text(path)]
    assert not alive


def _text(path: Path) -> str:
    try:
        return " ".join(path.read_text().rpartition(")")[2].split()[:2]) + " "
    except OSError:
        return ""
