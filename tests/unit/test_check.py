"""Checking a data set: what is found, what is not, and that it goes on where it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mcn.data.index import NAME
from mcn.data.splits import read_kinetics, read_ucf101
from mcn.data.videoinfo import VideoInfo
from mcn.errors import MCNError
from mcn.preparation import contents
from mcn.preparation.check import Report, check
from mcn.preparation.prepare import PrepareConfig, prepare

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
official = pytest.mark.skipif(not SHARED.is_dir(), reason="the lists and clips are not beside the repository")


def fill(root: Path, *names: str) -> None:
    """Files that are all different and not empty."""
    for folder in {(root / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, 200):
        with (root / name).open("w") as file:
            file.write(name)
            file.truncate(number)  # of many sizes, so that few need be compared


def found(report: Report) -> dict[str, tuple[str, ...]]:
    return {finding.what: finding.items for finding in report.findings}


def wrong(report: Report) -> set[str]:
    return {finding.what for finding in report.findings if finding.wrong}


@pytest.fixture(scope="module")
def whole_ucf101(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 13,320 names, nothing of the videos. Tests leave it as it is."""
    root, lists = tmp_path_factory.mktemp("ucf101"), SHARED / "splits" / "ucfTrainTestlist"
    (root / "ucfTrainTestlist").symlink_to(lists)
    names = [row.name for subset in ("train", "test") for row in read_ucf101(lists, subset, 1)[0]]
    fill(root / "UCF-101", *(name.replace("HandstandPushups/", "HandStandPushups/") for name in names))
    return root


@official
def test_the_whole_of_ucf101(whole_ucf101: Path) -> None:
    report = check(whole_ucf101, quick=True)
    assert report.ok
    assert report.layout == "UCF101: videos in UCF-101/, lists in ucfTrainTestlist/"
    told = str(report)
    for split, train, test in ((1, "9,537", "3,783"), (2, "9,586", "3,734"), (3, "9,624", "3,696")):
        assert f"split {split}, train: {train} of {train} videos are there (official: {train})" in told
        assert f"split {split}, test: {test} of {test} videos are there (official: {test})" in told
    assert "all: 13,320 of 13,320 videos are there (official: 13,320)" in told
    (what,) = found(report)  # HandstandPushups
    assert what.startswith("names differ")
    assert len(report.findings[0].items) == 128
    assert "    and 118 more" in told
    assert told.endswith("nothing is wrong; videos were not decoded")


@official
def test_ucf101_with_all_that_may_be_wrong(whole_ucf101: Path, tmp_path: Path) -> None:
    videos = tmp_path / "UCF-101"
    videos.mkdir()
    for folder in (whole_ucf101 / "UCF-101").iterdir():
        if folder.name in ("Archery", "SoccerJuggling"):
            shutil.copytree(folder, videos / folder.name)
        elif folder.name != "YoYo":
            (videos / folder.name).symlink_to(folder)
    (tmp_path / "ucfTrainTestlist").symlink_to(whole_ucf101 / "ucfTrainTestlist")
    (videos / "Archery/v_Archery_g01_c01.avi").unlink()
    (videos / "Archery/v_Archery_g02_c01.avi").write_bytes(b"")
    fill(videos, "Archery/more.avi")
    copied = "Basketball/v_Basketball_g23_c01.avi", "SoccerJuggling/v_SoccerJuggling_g01_c01.avi"
    shutil.copy(videos / copied[0], videos / copied[1])
    report = check(tmp_path, quick=True)
    assert not report.ok
    things = found(report)
    missing = things["listed videos are not there"]
    assert "Archery/v_Archery_g01_c01.avi" in missing
    assert len([name for name in missing if name.startswith("YoYo/")]) == len(missing) - 1
    assert things["classes or folders have no videos"] == ("YoYo",)
    assert things["videos are in no list"] == ("Archery/more.avi",)
    assert things["videos cannot be read"] == (
        "Archery/v_Archery_g02_c01.avi: the file is empty (0 bytes; fetch it again)",
    )
    assert things["groups of identical files"] == (" = ".join(copied) + " (in train and test of split 1)",)
    assert wrong(report) == {
        "listed videos are not there",
        "classes or folders have no videos",
        "videos cannot be read",
    }  # UCF101 itself has identical files
    assert sum(count.wrong for count in report.counts) == 1  # all: not 13,320
    number = len(missing) + 1
    assert str(report).splitlines()[-1] == (
        f"4 kinds of faults: {number} videos, 1 class or folder, 1 number that is not the official one; "
        "videos were not decoded"
    )
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["ok"] is False
    kept = {finding["what"]: tuple(finding["items"]) for finding in content["findings"]}
    assert kept == things


@official
def test_lists_that_do_not_add_up(whole_ucf101: Path, tmp_path: Path) -> None:
    (tmp_path / "UCF-101").symlink_to(whole_ucf101 / "UCF-101")
    shutil.copytree(SHARED / "splits" / "ucfTrainTestlist", tmp_path / "ucfTrainTestlist")
    path = tmp_path / "ucfTrainTestlist" / "testlist02.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-5]))
    report = check(tmp_path, quick=True)
    assert not report.ok
    assert "split 2, test: 3,729 of 3,729 videos are there (official: 3,734)  WRONG" in str(report)
    assert str(report).endswith(
        "1 kind of faults: 1 number that is not the official one; videos were not decoded"
    )


def test_copies(tmp_path: Path) -> None:
    """Same bytes, whatever the size of the file; nothing else."""
    big = bytes(contents._HEAD) * 2
    for name, content in {
        "train/a/1": big + b"x",
        "train/a/2": big + b"y",
        "test/a/3": big + b"x",
        "train/b/4": b"small",
        "train/b/5": b"small",
        "train/b/6": b"Small",
        "test/b/7": big[1:] + b"x",
    }.items():
        path = tmp_path / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    report = check(tmp_path, quick=True)
    assert found(report)["groups of identical files"] == (
        "test/a/3.mp4 = train/a/1.mp4 (in train and test)",
        "train/b/4.mp4 = train/b/5.mp4",
    )
    assert not report.ok
    shutil.rmtree(tmp_path / "test/a")
    assert check(tmp_path, quick=True).ok  # copies within a subset do no harm


@official
def test_kinetics_is_never_whole(tmp_path: Path) -> None:
    shutil.copytree(SHARED / "splits" / "kinetics400", tmp_path / "annotations")
    rows = read_kinetics(tmp_path / "annotations" / "kinetics-400_val.csv.gz")
    kept = [*{row.label: row for row in rows}.values()]
    fill(tmp_path / "val", *(f"{row.stems[0]}.mp4" for row in kept), "odd.mp4")
    report = check(tmp_path, quick=True)
    assert report.ok
    assert [(c.subset, c.listed, c.found) for c in report.counts[:1]] == [("test", 19906, len(kept))]
    assert len(found(report)["listed videos are not there"]) == 19906 - len(kept)
    assert found(report)["videos are in no list"] == ("val/odd.mp4",)


def test_empty_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, "run/1.mp4")
    (tmp_path / "walk").mkdir()
    report = check(tmp_path, quick=True)
    assert found(report) == {"classes or folders have no videos": ("walk",)}
    assert not report.ok


def test_names_that_are_not_utf8_can_be_printed(tmp_path: Path) -> None:
    name = b"run/T\xfcrme.mp4".decode(errors="surrogateescape")
    fill(tmp_path, "run/1.mp4")
    (tmp_path / name).touch()
    report = check(tmp_path, quick=True)
    assert r"run/T\udcfcrme.mp4: the file is empty" in str(report)
    report.save(tmp_path / "report.json")
    json.loads((tmp_path / "report.json").read_text())


def test_every_video_is_decoded_once(own_data: Path) -> None:
    videos = own_data / "videos"
    broken, torn = sorted(path.relative_to(videos).as_posix() for path in videos.glob("*/*"))[:2]
    (videos / broken).write_bytes(b"no video")
    whole = bytearray((videos / torn).read_bytes())
    whole[len(whole) // 3 : len(whole) // 2] = bytes(len(whole) // 2 - len(whole) // 3)
    (videos / torn).write_bytes(whole)
    report = check(own_data, workers=2)
    told = found(report)
    assert [item.split(":")[0] for item in told["videos cannot be read"]] == [broken]
    assert [item.split(":")[0] for item in told["videos are damaged"]] == [torn]
    assert not report.ok
    assert str(report).endswith("2 kinds of faults: 2 videos; every video was decoded")

    asked: list[str] = []

    def again(path: str) -> VideoInfo | str:
        asked.append(Path(path).relative_to(videos.absolute()).as_posix())
        return "still broken"

    second = check(own_data, examine=again)
    assert asked == [broken]  # what could be decoded is known
    assert found(second) == told | {"videos cannot be read": (f"{broken}: still broken",)}


def test_an_interrupted_check_goes_on_where_it_was(own_data: Path) -> None:
    class Interrupted(Exception):
        pass

    def examine(stop_at: int) -> tuple[list[str], Callable[[str], VideoInfo | str]]:
        asked: list[str] = []

        def look(path: str) -> VideoInfo | str:
            if len(asked) == stop_at:
                raise Interrupted
            asked.append(path)
            return VideoInfo(16, 25.0, 32, 32, "jump")

        return asked, look

    first, look = examine(10)
    with pytest.raises(Interrupted):
        check(own_data, workers=1, examine=look)
    assert (own_data / NAME).exists()
    rest, look = examine(-1)
    assert check(own_data, workers=1, examine=look).ok
    assert len(rest) == 30
    assert not set(first) & set(rest)


@official
def test_real_clips(tmp_path: Path) -> None:
    for name in ("hmdb51", "ucf101_original", "kinetics400"):
        shutil.copytree(
            SHARED / "samples" / name, tmp_path / name, ignore=shutil.ignore_patterns("mcn-index*")
        )
        report = check(tmp_path / name)
        assert report.ok, str(report)
        assert report.decoded


@official
def test_copies_in_the_subset_of_ucf101() -> None:
    report = check(SHARED / "ucf101_subset", quick=True)
    assert report.ok
    groups = found(report)["groups of identical files"]
    assert len(groups) == 4
    assert not any("train and test" in group for group in groups)


@pytest.mark.parametrize("form", ["video", "packed"])
def test_prepared_data(form: str, own_data: Path, tmp_path: Path) -> None:
    first, second = sorted((own_data / "videos").glob("*/*"))[:2]
    second.write_bytes(first.read_bytes())
    out = tmp_path / "prepared"
    prepare(own_data, out, PrepareConfig(short_side=32, form=form, workers=1))
    report = check(out)
    names = [path.relative_to(own_data / "videos").as_posix() for path in (first, second)]
    assert [group.startswith(" = ".join(names)) for group in found(report)["groups of identical files"]] == [
        True
    ]
    assert not wrong(report) - {"groups of identical files"}
    broken = sorted((out / ("videos" if form == "video" else "packed")).rglob("*.*"))[0]
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    assert len(found(check(out))["videos cannot be read"]) == 1
    assert "videos cannot be read" not in found(check(out, quick=True))


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(MCNError, match="no videos in"):
        check(tmp_path)
