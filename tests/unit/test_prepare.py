"""A prepared data set: frame for frame the source, the same bytes whatever befell it, checked on reading."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mcn.data import manifest, prepared
from mcn.data.datasets import load_videos
from mcn.data.manifest import read_manifest
from mcn.data.packed import planes_of
from mcn.data.prepared import open_prepared
from mcn.data.readers import open_video
from mcn.data.videoinfo import VideoError
from mcn.errors import MCNError
from mcn.preparation import prepare as module
from mcn.preparation.prepare import PrepareConfig, estimate_bytes, prepare

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
BITS = 8
# name: codec, options, frames, height, width, pixel format, whether times are uneven
SOURCES: dict[str, tuple[str, dict[str, str], int, int, int, str, bool]] = {
    "a/b_frames.avi": ("mpeg4", {"bf": "2", "g": "20"}, 150, 96, 128, "yuv420p", False),
    "a/b_frames.mp4": ("libx264", {"bf": "3", "g": "30", "crf": "20"}, 70, 200, 256, "yuv420p", False),
    "a/uneven.mkv": ("libx264", {"bf": "2", "g": "10", "crf": "20"}, 60, 96, 128, "yuv420p", True),
    "b/odd.avi": ("mpeg4", {"g": "9", "qscale": "2"}, 30, 97, 131, "yuv420p", False),
    "b/one.mp4": ("libx264", {"crf": "20"}, 1, 96, 128, "yuv420p", False),
    "b/ten_bits.mkv": ("libx264", {"bf": "2", "crf": "20"}, 26, 96, 128, "yuv420p10le", False),
}


def write_source(path: Path, codec: str, options: dict[str, str], frames: int, *shape: Any) -> Path:
    """A video whose frames carry their number: a column a bit, black or white."""
    height, width, pixels, uneven = shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pixels
        at = 0
        for number in range(frames):
            bits = [255 * (number >> bit & 1) for bit in range(BITS)]
            image = np.repeat(np.array(bits, np.uint8), -(-width // BITS))[:width]
            image = np.broadcast_to(image[None, :, None], (height, width, 3)).copy()
            image[: height // 4] = number * 3 % 256
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            at += 1 + (number % 4 == 3) * 5 if uneven else 1
            frame.pts, frame.time_base = at, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames carry."""
    columns = np.array_split(frames[:, frames.shape[1] // 2 :], BITS, axis=2)
    means = np.stack(
        [column[:, :, column.shape[2] // 4 : -column.shape[2] // 4].mean((1, 2, 3)) for column in columns]
    )
    return ((means > 128).T @ (1 << np.arange(BITS))).tolist()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    for name, settings in SOURCES.items():
        write_source(root / "videos" / name, *settings)
    (root / "splits").mkdir()
    (root / "splits" / "classInd.txt").write_text("1 a\n2 b\n")
    (root / "splits" / "trainlist01.txt").write_text(
        "a/b_frames.avi 1\na/uneven.mkv 1\nb/odd.avi 2\nb/one.mp4 2\n"
    )
    (root / "splits" / "testlist01.txt").write_text("a/b_frames.mp4\nb/ten_bits.mkv\n")
    return root


def run(source: Path, out: Path, **settings: Any) -> module.PreparedSet:
    return prepare(source, out, PrepareConfig(**{"workers": 2, "short_side": 64, **settings}), progress=False)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module", params=["video", "packed"])
def made(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> module.PreparedSet:
    return run(source, tmp_path_factory.mktemp("made") / "out", form=request.param)


def test_every_frame_is_the_source_s(made: module.PreparedSet) -> None:
    rng = random.Random(0)
    assert [entry.name for entry in made.entries] == sorted(SOURCES)
    for entry in made.entries:
        count = SOURCES[entry.name][2]
        with open_prepared(entry, made.folder) as video:
            assert len(video) == count
            assert numbers(video.frames(range(count))) == list(range(count))
            for _ in range(20):  # jumps, repeats, any order
                indices = [rng.randrange(count) for _ in range(rng.randrange(1, 6))]
                assert numbers(video.frames(indices)) == indices


def test_shape_rate_and_what_is_not_there(made: module.PreparedSet) -> None:
    sizes = {
        "a/b_frames.avi": (64, 86),
        "a/b_frames.mp4": (64, 82),
        "b/odd.avi": (64, 86),
        "b/one.mp4": (64, 86),
    }
    entries = {entry.name: entry for entry in made.entries}
    for name, size in sizes.items():
        with open_prepared(entries[name], made.folder) as video:
            assert video.frames([0]).shape == (1, *size, 3)
            assert (video.info.height, video.info.width, video.fps) == (*size, 25.0)
            for indices in ([-1], [len(video)], []):
                with pytest.raises(VideoError, match=r"frame|asked for no"):
                    video.frames(indices)


def test_names_labels_and_lists_are_the_source_s(made: module.PreparedSet, source: Path) -> None:
    for subset in ("train", "test", "all"):
        ours, theirs = load_videos(made.folder, subset), load_videos(source, subset)
        assert (ours.names, ours.labels, ours.classes) == (theirs.names, theirs.labels, theirs.classes)
    assert all(ours.path(i).is_file() for i in range(len(ours)))


def test_the_number_of_workers_does_not_show(made: module.PreparedSet, source: Path, tmp_path: Path) -> None:
    form = "packed" if made.entries[0].packed else "video"
    run(source, tmp_path / "out", workers=1, form=form)
    assert tree(tmp_path / "out") == tree(made.folder)


def test_a_complete_set_is_left_alone(made: module.PreparedSet, source: Path) -> None:
    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in made.folder.rglob("*")}

    before = times()
    again = run(source, made.folder, form="packed" if made.entries[0].packed else "video")
    assert again == made
    assert times() == before


def test_any_bit_that_flips_is_caught_and_mended(
    made: module.PreparedSet, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, rng = Path(shutil.copytree(made.folder, tmp_path / "out")), random.Random(0)
    for _ in range(120):
        entry = rng.choice(made.entries)
        path, at = out / entry.file, entry.offset + rng.randrange(entry.size)
        data = bytearray(path.read_bytes())
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises(VideoError, match=r"changed.*prepare again"), open_prepared(entry, out) as video:
            video.frames(range(len(video)))
        data[at] = (made.folder / entry.file).read_bytes()[at]
        path.write_bytes(data)
    assert capfd.readouterr().err == ""  # told of once, by us
    data[at] ^= 1
    path.write_bytes(data)
    (out / made.entries[0].file).unlink()
    run(source, out, form="packed" if entry.packed else "video")
    assert tree(out) == tree(made.folder)


def test_only_the_blocks_that_are_read_are_checked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files longer than a block: no damaged byte gets to the decoder, and a clip needs not all of them."""
    path = tmp_path / "set" / "long.avi"
    write_source(path, "mpeg4", {"qscale": "2"}, 250, 96, 128, "yuv420p", False)
    made = run(path.parent, tmp_path / "out", qp=2)
    monkeypatch.setattr(manifest, "BLOCK", 2048)
    monkeypatch.setattr(prepared, "BLOCK", 2048)
    file = made.folder / made.entries[0].file
    entry = module.Entry(**{**vars(made.entries[0]), "checksums": manifest.checksums_of(file)})
    whole, rng, fine = file.read_bytes(), random.Random(0), 0
    for _ in range(60):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        start = rng.randrange(240)
        with suppress(VideoError), open_prepared(entry, made.folder) as video:
            assert numbers(video.frames(range(start, start + 5))) == list(range(start, start + 5))
            fine += 1
    assert 0 < fine < 60


# Noting a video is slowed, so that a fast machine is not done before it is killed.
KILLED = """
import sys, time
from mcn.data.manifest import Entry
from mcn.preparation.prepare import PrepareConfig, prepare
line = Entry.line.fget
Entry.line = property(lambda entry: (time.sleep(0.05), line(entry))[1])
prepare(sys.argv[1], sys.argv[2], PrepareConfig(short_side=64, form=sys.argv[3], workers=2), progress=False)
"""


@pytest.mark.parametrize("form", ["video", "packed"])
def test_kill_9_and_go_on(form: str, tmp_path: Path) -> None:
    out, plain, rng = tmp_path / "out", tmp_path / "plain", random.Random(0)
    for number in range(8):
        write_source(tmp_path / "in" / f"{number}.avi", "mpeg4", {}, 160, 96, 128, "yuv420p", False)
    run(tmp_path / "in", plain, form=form)
    for done in (1, 3) if form == "video" else (2,):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "in"), str(out), form])
        journal, deadline = out / "manifest.jsonl", time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= done:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        with pytest.raises(MCNError, match="not finished"):
            load_videos(out)
    with journal.open("ab") as file:
        file.write(b'{"name": "7.avi", "sou')  # what a kill in the midst of a write leaves
    (out / ".left.1.partial").write_bytes(b"of a killed worker")
    kept = {path: path.stat().st_mtime_ns for e in read_manifest(out).values() for path in [out / e.file]}
    run(tmp_path / "in", out, form=form)
    assert tree(out) == tree(plain)
    assert kept
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())


def test_damaged_and_unreadable_sources_are_told(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "in"
    whole = (source / "videos/a/b_frames.avi").read_bytes()
    (root / "c").mkdir(parents=True)
    (root / "c/cut.avi").write_bytes(whole[: len(whole) // 2])
    (root / "c/fine.avi").write_bytes(whole)
    (root / "c/text.mp4").write_text("404 not found")
    for form in ("video", "packed"):
        made = run(root, tmp_path / form, form=form)
        (cut,), (text,) = made.damaged, made.unreadable
        with open_prepared(cut, made.folder) as video:
            assert 10 < len(video) < 150
            assert numbers(video.frames(range(len(video)))) == list(range(len(video)))
            assert video.info.damage
        assert text.name == "c/text.mp4"
        assert str(root) not in text.damage
        with pytest.raises(VideoError, match=r"c/text.mp4 could not be prepared \(.+\)"):
            open_prepared(text, made.folder)
        assert len(load_videos(made.folder, "all")) == 3  # it is missed where it is wanted
        assert [line.split(":")[0] for line in made.report[1:]] == [
            f"damaged, {cut.frames} frames are kept",
            "unreadable",
        ]
    shutil.copy(root / "c/fine.avi", root / "c/text.mp4")  # fetched again
    mended = run(root, tmp_path / "video")
    assert not mended.unreadable
    fresh = run(root, tmp_path / "fresh")
    assert tree(fresh.folder) == tree(mended.folder)


def test_other_settings_are_refused(made: module.PreparedSet, source: Path) -> None:
    form = "packed" if made.entries[0].packed else "video"
    with pytest.raises(MCNError, match="short_side is 64, not 96"):
        run(source, made.folder, form=form, short_side=96)
    with pytest.raises(MCNError, match=r"form is .*, not "):
        run(source, made.folder, form={"packed": "video", "video": "packed"}[form])


def test_folders_that_are_not_for_us(source: Path, tmp_path: Path) -> None:
    for out in (source, source / "videos", source / "videos" / "a" / "out", source.parent):
        with pytest.raises(MCNError, match=r"neither in nor around|something else"):
            run(source, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("!")
    with pytest.raises(MCNError, match="something else is there"):
        run(source, tmp_path / "mine")


def test_another_data_set_is_refused(made: module.PreparedSet, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "videos" / "b", tmp_path / "in" / "b")
    form = "packed" if made.entries[0].packed else "video"
    with pytest.raises(MCNError, match=r"holds 3 videos that are not in .* \(first: a/b_frames.avi\)"):
        run(tmp_path / "in", made.folder, form=form)


def test_room_is_asked_for_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    with pytest.raises(MCNError, match=r"6 prepared videos need .* GB, 1e-06 GB are free"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_guess_of_the_room_is_fair(made: module.PreparedSet, source: Path) -> None:
    if made.entries[0].packed:  # H.264 depends on what is in the pictures, and ours are empty
        guess = estimate_bytes(load_videos(source, "all"), PrepareConfig(short_side=64, form="packed"))
        assert 0.8 < guess / made.totals["bytes"] < 1.4  # the uneven one is taken to be longer


@pytest.mark.parametrize(
    "settings",
    [{"short_side": 8}, {"form": "jpeg"}, {"qp": 0}, {"qp": 51}],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(MCNError, match=next(iter(settings))):
        PrepareConfig(**settings)


def test_settings_say_what_was_made(made: module.PreparedSet) -> None:
    settings = json.loads((made.folder / "prepared.json").read_text())
    assert (
        settings["frames"]
        == sum(entry.frames for entry in made.entries)
        == sum(s[2] for s in SOURCES.values())
    )
    assert settings["bytes"] == sum(
        (made.folder / e.file).stat().st_size for e in made.entries if not e.packed
    ) or (settings["form"] == "packed")
    assert settings["versions"]["av"] == av.__version__


def _real() -> list[Path]:
    found = [p for p in (SHARED / "samples").rglob("*") if p.suffix in (".avi", ".mp4")]
    return sorted(found)[::8]


@pytest.mark.skipif(not _real(), reason=f"no sample videos under {SHARED}")
@pytest.mark.parametrize("form", ["video", "packed"])
def test_real_clips_keep_their_frames(form: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for path in _real():
        (tmp_path / "in" / path.name).symlink_to(path)
    made = prepare(tmp_path / "in", tmp_path / "out", PrepareConfig(form=form), progress=False)
    for entry in made.entries:
        with open_video(tmp_path / "in" / entry.name, "pyav") as original:
            assert entry.frames == len(original)
            indices = [0, len(original) // 2, len(original) - 1]
            frames = [frame for i, frame in enumerate(original.stream()) if i in indices]
        small = [f.reformat(entry.width, entry.height, "yuv420p", interpolation="BICUBIC") for f in frames]
        with open_prepared(entry, made.folder) as video:
            ours = [planes_of(frame) for i, frame in enumerate(video.everything()) if i in indices]
        for mine, theirs in zip(ours, map(planes_of, small), strict=True):
            error = np.mean(
                (np.frombuffer(mine, np.uint8) - np.frombuffer(theirs, np.uint8).astype(float)) ** 2
            )
            assert error == 0 if form == "packed" else 10 * np.log10(255**2 / error) > 40
