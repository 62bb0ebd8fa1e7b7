"""Archives: official names and layouts, hostile and damaged ones, and processes killed in between.

Every RAR test runs with each tool that is installed here.
"""

import hashlib
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_writers import TOOLS, WRITERS, Members, can_read, number, rar4, rar5, tgz, zipped

from mcn.errors import MCNError
from mcn.preparation import _space, archives
from mcn.preparation._rar import read_rar
from mcn.preparation.archives import extract

SPLITS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "splits"


def film(name: str, size: int = 3000) -> bytes:
    """Bytes that are different for each name and do not compress."""
    return hashlib.shake_128(name.encode()).digest(size)


SAMPLE: Members = {
    "UCF-101": None,
    "UCF-101/HandstandPushups": None,
    "UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi": film("one"),
    "UCF-101/golf/Golf_Tips_-_Hit_The_Driver_300+_Yards!!!_golf_f_nm_np1_fr_med_0.avi": film("two", 100_000),
    "UCF-101/climb/(HQ)_Rock_Climbing_-_[Free]_Solo & 'Speed'_climb_f_cm_np1_le_med_2.avi": film("three"),
    "UCF-101/empty.avi": b"",
}


@pytest.fixture(params=TOOLS)
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One tool, alone."""
    name = str(request.param)
    if not can_read(name):
        pytest.skip(f"{name} is not installed, or reads no RAR as it is packaged here")
    monkeypatch.setattr(archives, "_TOOLS", {name: archives._TOOLS[name]})
    return name


@pytest.fixture
def any_tool() -> str:
    for name in TOOLS:
        if can_read(name):
            return name
    pytest.skip(f"no tool that reads RAR is installed (one of {', '.join(TOOLS)})")


def tree(folder: Path, hidden: bool = False) -> dict[str, bytes]:
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if hidden or not name.startswith(".")}


def files(members: Members) -> dict[str, bytes]:
    return {name: content for name, content in members.items() if content is not None}


def put(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize("kind", ["zip", "tgz", "tar"])
def test_unpacked_as_packed(kind: str, tmp_path: Path) -> None:
    archive = put(tmp_path, "archive", WRITERS[kind](SAMPLE))  # told by content, not by name
    assert extract(archive, tmp_path / "out", progress=False) == tmp_path / "out"
    assert tree(tmp_path / "out") == files(SAMPLE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".archive.extracted", "UCF-101"]


@pytest.mark.parametrize("kind", ["rar4", "rar5"])
def test_rar_unpacked_as_packed(kind: str, tool: str, tmp_path: Path) -> None:
    # unar takes other archives in the folder for volumes of this one (RAR 5): there are some.
    for name in ("-odd 'name1.rar", "-odd 'name3.rar"):
        put(tmp_path / "in", name, WRITERS[kind]({"other": b"other"}))
    archive = put(tmp_path / "in", "-odd 'name2.rar", WRITERS[kind](SAMPLE))
    extract(archive, tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == files(SAMPLE)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_the_headers_of_both_formats(tmp_path: Path) -> None:
    for data in (rar4(SAMPLE), rar4(SAMPLE, end=False), rar5(SAMPLE)):
        entries = read_rar(put(tmp_path, "a.rar", data))
        assert [(e.name, e.kind) for e in entries] == [
            (name, "folder" if content is None else "file") for name, content in SAMPLE.items()
        ]
        sums = {e.name: (e.size, e.crc) for e in entries if e.kind == "file"}
        assert sums == {name: (len(data), zlib.crc32(data)) for name, data in files(SAMPLE).items()}


def test_sizes_beyond_four_gigabytes(tmp_path: Path) -> None:
    """A hand-made header: 5 GiB of content, which only a sparse file has room for."""
    size, raw = 5 << 30, b"long.avi"
    low, high = size & 0xFFFFFFFF, size >> 32
    fields = (0x74, 0x8100, 40 + len(raw), low, low, 3, 7, 0, 20, 0x30, len(raw), 0o100644, high, high)
    body = struct.pack("<BHHIIBIIBBHIII", *fields) + raw
    start = rar4({}, end=False) + struct.pack("<H", zlib.crc32(body) & 0xFFFF) + body
    path = put(tmp_path, "a.rar", start)
    with path.open("r+b") as file:
        file.seek(len(start) + size)
        file.write(rar4({"behind": b""})[len(rar4({}, end=False)) :])
    assert [(e.name, e.size) for e in read_rar(path)] == [("long.avi", size), ("behind", 0)]


def hmdb51(step: int) -> Members:
    """The official names, of each ``step``-th class: an archive with one archive a class."""
    lists = sorted((SPLITS / "hmdb51_splits").rglob("*_test_split1.txt"))[::step]
    if not lists:
        pytest.skip("the official lists are not here (shared/data/splits)")
    outer: Members = {}
    for path in lists:
        name = path.name.removesuffix("_test_split1.txt")
        videos = [line.rsplit(maxsplit=1)[0] for line in path.read_text().splitlines() if line.strip()]
        outer[f"{name}.rar"] = rar4({f"{name}/{v}": film(v, 50) for v in videos})
    return outer


@pytest.mark.parametrize(
    ("step", "classes", "videos"), [(17, 3, 365), pytest.param(1, 51, 6766, marks=pytest.mark.slow)]
)
def test_hmdb51_an_archive_of_archives(
    step: int, classes: int, videos: int, any_tool: str, tmp_path: Path
) -> None:
    outer = hmdb51(step)
    archive = put(tmp_path, "hmdb51_org.rar", rar4(outer))
    extract(archive, tmp_path / "videos", progress=False)
    found = tree(tmp_path / "videos")
    assert len(outer) == classes
    assert len(found) == videos
    assert all(content == film(name.split("/")[1], 50) for name, content in found.items())
    assert not list((tmp_path / "videos").rglob("*.rar"))


@pytest.mark.parametrize(("step", "videos"), [(40, 333), pytest.param(1, 13320, marks=pytest.mark.slow)])
def test_ucf101_with_its_lists(step: int, videos: int, any_tool: str, tmp_path: Path) -> None:
    lists = SPLITS / "ucfTrainTestlist"
    if not lists.is_dir():
        pytest.skip("the official lists are not here (shared/data/splits)")
    names = [
        line.split()[0]
        for path in (lists / "trainlist01.txt", lists / "testlist01.txt")
        for line in path.read_text().splitlines()
        if line.strip()
    ]
    members: Members = {f"UCF-101/{name}": film(name, 20) for name in names[::step]}
    texts: Members = {f"ucfTrainTestlist/{path.name}": path.read_bytes() for path in lists.glob("*.txt")}
    extract(put(tmp_path, "UCF101.rar", rar4(members)), tmp_path / "out", progress=False)
    extract(put(tmp_path, "lists.zip", zipped(texts)), tmp_path / "out", progress=False)
    assert len(members) == videos
    assert tree(tmp_path / "out") == files({**members, **texts})


def test_parts_share_a_folder(tmp_path: Path) -> None:
    """Kinetics comes in hundreds of archives whose videos lie side by side."""
    for part in range(3):
        archive = put(
            tmp_path, f"part_{part}.tar.gz", tgz({f"{part}_{i}.mp4": film(f"{part}{i}") for i in range(9)})
        )
        extract(archive, tmp_path / "train", progress=False)
    assert len(tree(tmp_path / "train")) == 27


def test_what_is_unpacked_is_left_alone(tmp_path: Path) -> None:
    archive, out = put(tmp_path, "a.zip", zipped(SAMPLE)), tmp_path / "out"
    extract(archive, out, progress=False)
    (out / "UCF-101" / "empty.avi").write_bytes(b"mine")
    archive.write_bytes(bytes(archive.stat().st_size))  # not even opened
    extract(archive, out, progress=False)
    assert (out / "UCF-101" / "empty.avi").read_bytes() == b"mine"
    archive.write_bytes(zipped({**SAMPLE, "more": b"x"}))  # another archive under this name
    extract(archive, out, progress=False)
    assert tree(out) == files({**SAMPLE, "more": b"x"})


# --- hostile archives

HOSTILE = ["../x.avi", "a/../../x.avi", "/tmp/x.avi", "..\\x.avi", "C:\\x.avi", "a/..\\..\\x.avi", "\\x.avi"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    archive = put(tmp_path, "evil", WRITERS[kind]({"good.avi": b"x", name: b"evil"}))
    with pytest.raises(MCNError, match=r"evil holds '.*x\.avi', which leads out of the folder") as refused:
        extract(archive, tmp_path / "deep" / "out", progress=False)
    assert "\n" not in str(refused.value)
    assert tree(tmp_path / "deep") == {}
    assert not list(tmp_path.rglob("x.avi"))


def links() -> dict[str, bytes]:
    buffer = {}
    for kind, name in (
        (tarfile.SYMTYPE, "soft.tar"),
        (tarfile.LNKTYPE, "hard.tar"),
        (tarfile.FIFOTYPE, "pipe.tar"),
    ):
        stream, member = io.BytesIO(), tarfile.TarInfo("link")
        member.type, member.linkname = kind, "/etc/passwd"
        with tarfile.open(fileobj=stream, mode="w") as tar:
            tar.addfile(member)
        buffer[name] = stream.getvalue()
    stream, info = io.BytesIO(), zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(info, "/etc/passwd")
    redirection = number(5) + number(0) + number(1) + number(0) + number(11) + b"/etc/passwd"
    return {
        **buffer,
        "link.zip": stream.getvalue(),
        "link4.rar": rar4({"link": b"/etc/passwd"}, mode=0o120777),
        "link5.rar": rar5({"link": b""}, extra=number(len(redirection)) + redirection),
    }


@pytest.mark.parametrize("name", links())
def test_links_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(MCNError, match=rf"{name} holds a link or device, 'link'"):
        extract(put(tmp_path, name, links()[name]), tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == {}


# --- damage


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_one_line(share: float, kind: str, any_tool: str, tmp_path: Path) -> None:
    data = WRITERS[kind](SAMPLE)
    archive = put(tmp_path, "cut.x", data[: int(len(data) * share)])
    if kind == "tar" and share == 0.999:
        archive.write_bytes(data.rstrip(b"\0") + bytes(100))
    with pytest.raises(MCNError, match=r"cut\.x (is damaged|cannot be unpacked).*fetch it again") as refused:
        extract(archive, tmp_path / "out", progress=False)
    assert "\n" not in str(refused.value)
    assert tree(tmp_path / "out") == {}
    archive.write_bytes(data)
    extract(archive, tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == files(SAMPLE)


@pytest.mark.parametrize("kind", ["rar4", "rar5"])
def test_a_changed_byte_is_found_with_every_tool(kind: str, tool: str, tmp_path: Path) -> None:
    """bsdtar 3.6 and unrar-free 0.1 say nothing and return 0: the checksums are compared here."""
    data = bytearray(WRITERS[kind](SAMPLE))
    data[data.index(film("two", 100_000)) + 50_000] ^= 1
    with pytest.raises(MCNError, match=rf"bad\.rar cannot be unpacked \({tool}: .*fetch it again") as refused:
        extract(put(tmp_path, "bad.rar", bytes(data)), tmp_path / "out", progress=False)
    assert "Golf_Tips" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert tree(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", ["zip", "tgz", "tar"])
def test_a_changed_byte_is_found(kind: str, tmp_path: Path) -> None:
    data = bytearray(WRITERS[kind]({"a.avi": film("a", 30_000), "b.avi": film("b", 30_000)}))
    header = data.index(b"b.avi") if kind == "tar" else len(data) // 2  # a tar has checksums of headers only
    data[header] ^= 1
    with pytest.raises(MCNError, match=r"bad is damaged or cut short \("):
        extract(put(tmp_path, "bad", bytes(data)), tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == {}


def test_gzip_without_its_checksum_is_found(tmp_path: Path) -> None:
    data = bytearray(tgz({"a.avi": film("a")}))
    data[-8] ^= 1  # only the sum at the very end, which tarfile does not read
    with pytest.raises(MCNError, match="damaged or cut short"):
        extract(put(tmp_path, "bad.tgz", bytes(data)), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"MZ\x90", b"\x1f\x8b", b"Rar!\x1a\x07\x00\x01"]
)
def test_what_is_no_archive(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(MCNError, match=r"x\.rar is (no rar|a web page|damaged).*fetch it again") as refused:
        extract(put(tmp_path, "x.rar", content), tmp_path / "out", progress=False)
    assert ("a web page" in str(refused.value)) is content.startswith(b"<")
    with pytest.raises(MCNError, match=r"no such archive: .*none\.rar"):
        extract(tmp_path / "none.rar", tmp_path / "out", progress=False)


def test_encrypted_archives_and_volumes(tmp_path: Path) -> None:
    whole, first = rar4({"a": b"a"}), len(rar4({}, end=False))
    flag4 = bytearray(whole)
    flag4[first + 3] |= 4
    main, volume = bytearray(whole), bytearray(whole)
    main[7 + 3] |= 0x80
    volume[7 + 3] |= 1
    lock = number(1) + number(0)
    locked = rar5({"a": b"a"}, extra=number(len(lock)) + lock)
    for data in (bytes(flag4), bytes(main), locked):
        with pytest.raises(MCNError, match=r"a\.rar is encrypted"):
            extract(put(tmp_path, "a.rar", data), tmp_path / "out", progress=False)
    with pytest.raises(MCNError, match=r"a\.rar is one of several volumes"):
        extract(put(tmp_path, "a.rar", bytes(volume)), tmp_path / "out", progress=False)


def test_a_sum_of_another_kind_is_compared_by_size(any_tool: str, tmp_path: Path) -> None:
    archive = put(tmp_path, "a.rar", rar5(SAMPLE, summed=False))
    extract(archive, tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == files(SAMPLE)


# --- tools


def test_without_a_tool_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    pattern = r"a\.rar: no tool here reads RAR archives.*apt install unar.*conda-forge libarchive"
    with pytest.raises(MCNError, match=pattern) as refused:
        extract(put(tmp_path, "a.rar", rar4(SAMPLE)), tmp_path / "out", progress=False)
    assert "\n" not in str(refused.value)
    extract(put(tmp_path, "a.zip", zipped(SAMPLE)), tmp_path / "out", progress=False)  # needs none


def script(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


FALSE_TOOLS = {
    "fails": "echo 'unpacking fail_flic_flac.avi'; echo 'Error: cannot do this'; exit 3",
    "says nothing": "exit 3",
    "does nothing": "exit 0",
    "adds a file": "echo > more",
    "links": "ln -s /etc/passwd more",
    "crashes": "kill -SEGV $$",
}


@pytest.mark.parametrize("fault", FALSE_TOOLS)
def test_a_tool_that_is_wrong_is_not_believed(
    fault: str, any_tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which(any_tool)
    assert real
    other = next(name for name in reversed(TOOLS) if name != "unar")
    script(tmp_path / "bin", "unar", FALSE_TOOLS[fault].replace("echo > more", 'cd "$6"; echo > more'))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    monkeypatch.setattr(archives, "_TOOLS", {"unar": lambda archive, out: ["-f", archive, "", "", "", out]})
    archive = put(tmp_path, "a.rar", rar4(SAMPLE))
    said = {"fails": "unar: Error: cannot do this", "says nothing": "unar: exit status 3"}
    pattern = said.get(fault, "unar: ")
    with pytest.raises(
        MCNError, match=rf"a\.rar cannot be unpacked \({pattern}.*install another tool than unar"
    ):
        extract(archive, tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == {}
    # The next tool is asked.
    tools = {**archives._TOOLS, real: TOOL_ARGUMENTS[any_tool], other: TOOL_ARGUMENTS[other]}
    monkeypatch.setattr(archives, "_TOOLS", tools)
    extract(archive, tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == files(SAMPLE)


TOOL_ARGUMENTS = dict(archives._TOOLS)


def test_room_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=106_000)
    monkeypatch.setattr(_space.shutil, "disk_usage", lambda _: free)
    for kind, write in WRITERS.items():
        with pytest.raises(MCNError, match=rf"out: what {kind} holds will need 0\.00012\d* GB, 0\.000106 GB"):
            extract(put(tmp_path, kind, write({"a": film("a", 120_000)})), tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == {}


# --- killed


def start(archive: Path, out: Path, path: str | None = None) -> subprocess.Popen[bytes]:
    load = "from mcn.preparation.archives import extract"
    call = f"{load}; extract({str(archive)!r}, {str(out)!r}, progress=False)"
    return subprocess.Popen(
        [sys.executable, "-c", call], env={**os.environ, "PATH": path or os.environ["PATH"]}
    )


def kill_when(child: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    while not ready():
        assert child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_killed_while_unpacking(kind: str, tmp_path: Path) -> None:
    members: Members = {f"train/{i:04d}.mp4": film(str(i), 10_000) for i in range(800)}
    archive, out = put(tmp_path, "a", WRITERS[kind](members)), tmp_path / "out"
    child = start(archive, out)
    kill_when(child, lambda: any(out.glob(".a.*.extracting/part-*/content/train/0100.mp4")))
    assert tree(out) == {}
    extract(archive, out, progress=False)
    assert tree(out) == files(members)
    assert sorted(path.name for path in out.iterdir()) == [".a.extracted", "train"]


def test_killed_between_inner_archives(any_tool: str, tmp_path: Path) -> None:
    real, log, out = shutil.which(any_tool), tmp_path / "log", tmp_path / "out"
    script(tmp_path / "bin", any_tool, f'echo run >> {log}; sleep 0.05; exec {real} "$@"')
    inner = {f"class_{i}": {f"class_{i}/{j}.avi": film(f"{i} {j}") for j in range(3)} for i in range(8)}
    archive = put(tmp_path, "outer.rar", rar4({f"{name}.rar": rar4(m) for name, m in inner.items()}))
    for least in (2, 5):
        child = start(archive, out, f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        kill_when(child, lambda least=least: len(list(out.glob("class_*"))) >= least)  # type: ignore[misc]
    assert len(list(out.glob("class_*"))) < 8
    child = start(archive, out, f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert child.wait() == 0
    assert tree(out) == {name: data for members in inner.values() for name, data in members.items()}
    assert (
        9 <= len(log.read_text().split()) <= 9 + 2
    )  # the outer once, each inner once but for the two killed
    assert sorted(path.name for path in out.iterdir()) == [".outer.rar.extracted", *sorted(inner)]


def test_killed_while_moving_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members: Members = {f"{i}.mp4": film(str(i)) for i in range(10)}
    archive, out = put(tmp_path, "a.zip", zipped(members)), tmp_path / "out"
    replace = Path.replace

    def stop(path: Path, to: Path) -> Path:
        if path.name == "5.mp4":
            raise KeyboardInterrupt
        return replace(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(archive, out, progress=False)
    assert len(tree(out)) == 5
    with monkeypatch.context() as patch:  # what is unpacked is not unpacked again
        patch.setattr(archives, "_reader", lambda _: pytest.fail("opened again"))
        extract(archive, out, progress=False)
    assert tree(out) == files(members)


def test_the_bars(any_tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, write in WRITERS.items():
        extract(put(tmp_path, f"a.{kind}", write(SAMPLE)), tmp_path / kind)
        assert f"unpacking a.{kind}" in capsys.readouterr().err
