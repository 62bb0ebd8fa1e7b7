"""Data sets as they lie on users' disks: recognised, with the right names, labels, classes and files."""

import json
import random
import shutil
import time
import unicodedata
from pathlib import Path

import pytest

from mcn.data.datasets import Videos, load_videos
from mcn.data.manifest import MANIFEST, SETTINGS, Entry
from mcn.data.splits import read_hmdb51, read_kinetics
from mcn.errors import MCNError

LISTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "splits"
SUBSET = LISTS.parent / "ucf101_subset"
official = pytest.mark.skipif(not LISTS.is_dir(), reason="the official lists are not beside the repository")
HEADER = "label,youtube_id,time_start,time_end,split"


def touch(root: Path, *names: str) -> Path:
    for folder in {(root / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).touch()
    return root


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def prepare(source: Path, out: Path) -> Path:
    """A prepared copy of a data set, as far as finding its videos goes."""
    every = load_videos(source, "all")
    for name in (path.name for path in source.iterdir() if path.name in ("splits", "annotations", "lists")):
        shutil.copytree(source / name, out / name)
    for path in source.glob("*.txt"):
        shutil.copy(path, out / path.name)
    entries = [
        Entry(name, source_bytes=1, frames=8, file=f"videos/{Path(name).with_suffix('.mp4').as_posix()}")
        for name in every.names
    ]
    out.mkdir(exist_ok=True)
    (out / MANIFEST).write_text("".join(entry.line for entry in sorted(entries, key=lambda e: e.name)))
    (out / SETTINGS).write_text("{}")
    return out


def same(one: Videos, other: Videos) -> None:
    assert (one.names, one.labels, one.classes) == (other.names, other.labels, other.classes)


def hmdb(root: Path, videos: str, lists: str) -> Path:
    """Two classes, in each one video for training, one for testing and one unused in split 1."""
    for name in ("run", "walk"):
        touch(root / videos / name, *(f"{letter}_{name}.avi" for letter in "abc"))
        for split in (1, 2, 3):
            uses = zip("abc", (1, 2, 0) if split == 1 else (0, 1, 2), strict=True)
            write(
                root / lists / f"{name}_test_split{split}.txt", *(f"{x}_{name}.avi {use} " for x, use in uses)
            )
    return root


@pytest.mark.parametrize("videos", ["hmdb51", "HMDB51", "hmdb51_org", "videos", "."])
@pytest.mark.parametrize(
    "lists", ["testTrainMulti_7030_splits", "test_train_splits", "splits", "annotations", "."]
)
def test_hmdb51(videos: str, lists: str, tmp_path: Path) -> None:
    hmdb(tmp_path, videos, lists)
    train, test = load_videos(tmp_path, "train"), load_videos(tmp_path, "test")
    assert train.names == ("run/a_run.avi", "walk/a_walk.avi")
    assert test.names == ("run/b_run.avi", "walk/b_walk.avi")
    assert train.labels == test.labels == (0, 1)
    assert train.classes == ("run", "walk")
    assert load_videos(tmp_path, "train", split=2).names == test.names
    every = load_videos(tmp_path, "all")
    assert len(every) == 6
    assert every.labels == (0, 0, 0, 1, 1, 1)
    place = "lists at the top" if lists == "." else f"lists in {lists}/"
    where = "folders at the top" if videos == "." else f"{videos}/"
    assert train.layout == f"layout of HMDB51, 2 classes: videos in {where}, {place} (split 1)"
    assert train.root == every.root == tmp_path
    assert all(train.path(index).is_file() for index in (0, 1))
    with pytest.raises(MCNError, match=r"no such list: .*run_test_split4\.txt"):
        load_videos(tmp_path, "train", split=4)


@official
def test_hmdb51_official(tmp_path: Path) -> None:
    lists = sorted((LISTS / "hmdb51_splits").glob("*_split?.txt"))
    touch(tmp_path / "hmdb51", *(row.name for rows in read_hmdb51(lists, 1)[0].values() for row in rows))
    (tmp_path / "testTrainMulti_7030_splits").symlink_to(LISTS / "hmdb51_splits")
    for split in (1, 2, 3):
        train, test = (load_videos(tmp_path, subset, split) for subset in ("train", "test"))
        assert (len(train), len(test)) == (3570, 1530)
        assert not set(train.names) & set(test.names)
        assert train.layout.startswith("HMDB51: videos in hmdb51/, lists in testTrainMulti_7030_splits/")
        assert train.files == ()
    every = load_videos(tmp_path, "all")
    assert len(every) == 6766
    assert every.classes == train.classes


@pytest.mark.parametrize(
    "lists", ["annotations", ".", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "splits"]
)
@pytest.mark.parametrize("videos", ["UCF-101", "ucf101", "videos", "."])
def test_ucf101_lists_elsewhere(videos: str, lists: str, tmp_path: Path) -> None:
    touch(tmp_path / videos, "Archery/1.avi", "Bowling/2.avi", "Bowling/3.avi")
    write(tmp_path / lists / "classInd.txt", "1 Archery", "2 Bowling")
    write(tmp_path / lists / "trainlist01.txt", "Bowling/2.avi 2", "Archery/1.avi 1")
    write(tmp_path / lists / "testlist01.txt", "Bowling/3.avi")
    train, test = load_videos(tmp_path, "train"), load_videos(tmp_path, "test")
    assert (train.names, train.labels) == (("Bowling/2.avi", "Archery/1.avi"), (1, 0))
    assert (test.names, test.labels) == (("Bowling/3.avi",), (1,))
    assert train.root == tmp_path
    assert load_videos(tmp_path, "all").names == ("Archery/1.avi", "Bowling/2.avi", "Bowling/3.avi")
    place = "lists at the top" if lists == "." else f"lists in {lists}/"
    assert train.layout.endswith(f"{place} (split 1)")


def test_the_root_of_hmdb51_may_be_called_like_its_videos(tmp_path: Path) -> None:
    """Its flow belongs into it, not beside it."""
    root = hmdb(tmp_path / "hmdb51", ".", "splits")
    assert load_videos(root, "train").root == root


@pytest.mark.parametrize(
    "listed", ["HandstandPushups/v_HandStandPushups", "HandStandPushups/v_HandstandPushups"]
)
@pytest.mark.parametrize("folder", ["HandstandPushups", "HandStandPushups", "handstandpushups"])
@pytest.mark.parametrize("file", ["v_HandstandPushups", "v_HandStandPushups", "V_HANDSTANDPUSHUPS"])
@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".AVI"])
def test_names_in_any_case(listed: str, folder: str, file: str, suffix: str, tmp_path: Path) -> None:
    on_disk = f"{folder}/{file}_g01_c01{suffix}"
    touch(tmp_path / "UCF-101", on_disk, "Archery/v_Archery_g01_c01.avi")
    write(tmp_path / "splits/classInd.txt", "1 Archery", "2 HandstandPushups")
    write(tmp_path / "splits/trainlist01.txt", f"{listed}_g01_c01.avi 2", "Archery/v_Archery_g01_c01.avi 1")
    train, every = load_videos(tmp_path, "train"), load_videos(tmp_path, "all")
    assert train.names == (f"{listed}_g01_c01.avi", "Archery/v_Archery_g01_c01.avi")
    assert train.labels == (1, 0)
    assert train.path(0) == tmp_path / "UCF-101" / on_disk
    assert set(every.names) == set(train.names)  # one name a video, in every subset
    assert every.classes == ("Archery", "HandstandPushups")
    assert every.path(1) == train.path(0)
    assert every.labels == (0, 1)


def test_a_name_that_may_be_two_files(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "a/clip.mp4", "a/CLIP.mkv", "b/clip.avi", "b/clip.mp4")
    write(tmp_path / "splits/trainlist01.txt", "a/Clip.MKV", "b/Clip.avi")
    train = load_videos(tmp_path, "train")
    assert train.files == ("a/CLIP.mkv", "b/clip.avi")  # the suffix decides
    write(tmp_path / "splits/trainlist01.txt", "a/clip.avi", "b/clip.avi")
    with pytest.raises(MCNError, match=r"'a/clip\.avi' of the list may be 'a/CLIP\.mkv' or 'a/clip\.mp4'"):
        load_videos(tmp_path, "train")


def test_accents_are_compared_however_they_are_written(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "a/Türme") for form in ("NFC", "NFD"))
    assert composed != apart
    touch(tmp_path / "videos", f"{apart}.avi", "a/b.avi")
    write(tmp_path / "splits/trainlist01.txt", f"{composed}.avi 1", "a/b.avi 1")
    assert load_videos(tmp_path, "train").files == (f"{apart}.avi", "a/b.avi")


def test_two_folders_of_lists_and_of_videos(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "a/1.avi", "b/2.avi")
    touch(tmp_path / "UCF-101", "a/1.avi")
    touch(tmp_path / "more", "a/1.avi")
    touch(tmp_path / "flow/a/1", "flow_x_00001.jpg")
    write(tmp_path / "splits/trainlist01.txt", "a/1.avi 1")
    write(tmp_path / "ucfTrainTestlist/trainlist01.txt", "b/2.avi 1")
    train = load_videos(tmp_path, "train")
    assert train.names == ("a/1.avi",)
    assert train.layout.startswith("layout of UCF101, 1 class: videos in videos/, lists in splits/ (split 1;")
    assert train.layout.endswith("not used: lists in ucfTrainTestlist/, UCF-101/, more/)")


def test_lists_of_two_data_sets(tmp_path: Path) -> None:
    hmdb(tmp_path, "hmdb51", "testTrainMulti_7030_splits")
    write(tmp_path / "ucfTrainTestlist/trainlist01.txt", "a/1.avi 1")
    with pytest.raises(MCNError, match=r"several data sets, ucfTrainTestlist/ \(ucf101\) and testTrain"):
        load_videos(tmp_path)


def test_a_folder_of_lists_without_lists(tmp_path: Path) -> None:
    """Else all of its videos would be for training."""
    touch(tmp_path, "videos/a/1.avi", "splits/readme.txt")
    with pytest.raises(MCNError, match=r"no such list: .*splits/trainlist01\.txt.*split lists; rename it"):
        load_videos(tmp_path)


def test_lists_beside_the_folder_are_pointed_out(tmp_path: Path) -> None:
    touch(tmp_path / "UCF-101", "a/1.avi")
    write(tmp_path / "ucfTrainTestlist/trainlist01.txt", "a/1.avi 1")
    videos = load_videos(tmp_path / "UCF-101")
    assert videos.layout.endswith(
        "(not used: ../ucfTrainTestlist/ (give the folder above to use these lists))"
    )
    assert videos.root == tmp_path / "UCF-101"


def kinetics(root: Path, space: str = " ", flat: bool = False, prefix: str = "") -> Path:
    """Three classes; in train one video of each and one unlisted, in val one each, one of them lost."""
    rows = {"train": [], "val": [], "test": []}
    for number, label in enumerate(("yoga", "air drumming", "tai chi")):
        for part in rows:
            start = 10 * number
            stem = f"{part:_<10}{number}_{start:06d}_{start + 10:06d}"
            rows[part].append(f'"{label}",{part:_<10}{number},{start},{start + 10},{part},0')
            folder = "" if flat else f"{label.replace(' ', space)}/"
            if (part, number) != ("val", 2):
                touch(root, f"{prefix}{part}/{folder}{stem}.mp4")
    touch(root, f"{prefix}train/{'' if flat else 'yoga/'}unlisted.mp4")
    for part, lines in rows.items():
        write(root / "annotations" / f"{part}.csv", f"{HEADER},is_cc", *lines)
    return root


@pytest.mark.parametrize("prefix", ["", "videos_", "videos/"])
@pytest.mark.parametrize(("space", "flat"), [(" ", False), ("_", False), ("", True)])
def test_kinetics_with_csv(space: str, flat: bool, prefix: str, tmp_path: Path) -> None:
    kinetics(tmp_path, space, flat, prefix)
    train, test, every = (load_videos(tmp_path, subset) for subset in ("train", "test", "all"))
    assert train.classes == test.classes == every.classes == ("air drumming", "tai chi", "yoga")
    assert train.labels == (2, 0, 1)
    assert test.labels == (2, 0)
    folder = prefix if prefix.endswith("/") else ""
    part = f"{prefix}val/" if not flat else f"{prefix}val/val_______0"
    assert (folder + test.names[0]).startswith(part)
    assert test.path(1).is_file()
    assert "videos in " + prefix + "val/, lists in annotations/ (val serves as test;" in test.layout
    assert "1 of 3 listed are not on disk and left out" in test.layout
    assert "left out" not in train.layout
    assert train.root == tmp_path
    assert len(every) == 3 + 2 + 3 + 1
    if not flat:
        assert sum(label == 2 for label in every.labels) == 4  # the unlisted one by its folder
    else:
        assert every.labels == ()  # nobody knows what the unlisted one is


def test_kinetics_with_bare_ids(tmp_path: Path) -> None:
    write(tmp_path / "val.csv", HEADER, "yoga,abcdefghijk,3,13,val", "tai chi,ABCDEFGHIJK,3,13,val")
    touch(tmp_path / "val", "abcdefghijk.mp4", "yoga/ABCDEFGHIJK.webm")
    test = load_videos(tmp_path, "test")
    assert test.names == ("val/abcdefghijk.mp4", "val/yoga/ABCDEFGHIJK.webm")  # ids differ in case
    assert test.labels == (1, 0)
    with pytest.raises(MCNError, match="has neither a train/ folder nor a list of its own for it"):
        load_videos(tmp_path, "train")


def test_kinetics_with_a_list_of_one_part_only(tmp_path: Path) -> None:
    """The labels of the other come from its folders, and agree."""
    kinetics(tmp_path, "_")
    (tmp_path / "annotations/train.csv").unlink()
    train, test = load_videos(tmp_path, "train"), load_videos(tmp_path, "test")
    assert train.classes == test.classes == ("air drumming", "tai chi", "yoga")
    assert [Path(name).parent.name for name in train.names] == ["air_drumming", "tai_chi", "yoga", "yoga"]
    assert train.labels == (0, 1, 2, 2)
    assert test.labels == (2, 0)


def test_kinetics_of_which_nothing_is_there(tmp_path: Path) -> None:
    kinetics(tmp_path)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(MCNError, match=r"val\.csv names 3 videos, 3 are not in .*first: val_______0_000000"):
        load_videos(tmp_path, "test")


def test_kinetics_in_class_folders_of_all_parts(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", HEADER, "yoga,aaaaaaaaaaa,3,13,train", "yoga,aaaaaaaaaaa,3,13,train")
    write(tmp_path / "val.csv", HEADER, "yoga,bbbbbbbbbbb,3,13,val")
    touch(tmp_path / "videos/yoga", "aaaaaaaaaaa.mp4", "bbbbbbbbbbb.mp4")
    assert load_videos(tmp_path, "train").names == ("yoga/aaaaaaaaaaa.mp4",)  # listed twice, there once
    assert load_videos(tmp_path, "test").names == ("yoga/bbbbbbbbbbb.mp4",)


def test_kinetics_without_lists(tmp_path: Path) -> None:
    kinetics(tmp_path, "_")
    shutil.rmtree(tmp_path / "annotations")
    (tmp_path / "train/yoga/unlisted.mp4").unlink()
    touch(tmp_path, "replacement_for_corrupted_k400/x.mp4")
    train, test = load_videos(tmp_path, "train"), load_videos(tmp_path, "test")
    assert train.classes == test.classes == ("air_drumming", "tai_chi", "yoga")  # val has two of them
    assert train.labels == (0, 1, 2)
    assert test.labels == (0, 2)
    assert test.layout.startswith(
        "layout of Kinetics-400, 3 classes: videos in val/, no split lists (val serves"
    )
    assert test.layout.endswith("not used: replacement_for_corrupted_k400/)")


def test_path_lists(tmp_path: Path) -> None:
    kinetics(tmp_path, "_", prefix="videos_")
    shutil.rmtree(tmp_path / "annotations")
    trained = sorted(
        path.relative_to(tmp_path / "videos_train").as_posix() for path in tmp_path.glob("videos_train/*/t*")
    )
    write(tmp_path / "kinetics400_train_list_videos.txt", *(f"{n} {i}" for i, n in enumerate(trained)))
    write(
        tmp_path / "kinetics400_val_list_videos.txt", "yoga/val_______0_000000_000010.mp4 2", "yoga/no.mp4 2"
    )
    train, test = load_videos(tmp_path, "train"), load_videos(tmp_path, "test")
    assert train.names == tuple(f"videos_train/{name}" for name in trained)
    assert train.labels == (0, 1, 2)
    assert train.classes == test.classes == ("air_drumming", "tai_chi", "yoga")
    assert test.labels == (2,)
    assert "lists at the top (val serves as test; 1 of 2 listed are not on disk" in test.layout
    write(tmp_path / "kinetics400_val_list_videos.txt", "yoga/val_______0_000000_000010.mp4 1")
    with pytest.raises(MCNError, match=r"val_list_videos\.txt: class 1 is 'tai_chi', but not for yoga/"):
        load_videos(tmp_path, "train")


@official
def test_kinetics_official(tmp_path: Path) -> None:
    shutil.copytree(LISTS / "kinetics400", tmp_path / "annotations")
    rows = read_kinetics(tmp_path / "annotations" / "kinetics-400_val.csv.gz")
    touch(tmp_path / "val", *(f"{row.stems[0]}.mp4" for row in rows[1234:]))
    test = load_videos(tmp_path, "test")
    assert len(test) == 19906 - 1234
    assert list(test.classes) == (tmp_path / "annotations/label_map_k400.txt").read_text().splitlines()
    assert test.layout == (
        "Kinetics-400: videos in val/, lists in annotations/ "
        "(val serves as test; 1,234 of 19,906 listed are not on disk and left out)"
    )
    labels = {f"val/{row.stems[0]}.mp4": row.label for row in rows}
    assert all(labels[n] == test.classes[i] for n, i in zip(test.names, test.labels, strict=True))


def test_own_train_and_test_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/1.mp4", "train/walk/2.mp4", "val/run/3.mp4", "test/walk/4.mp4", "5.mp4")
    train, test = load_videos(tmp_path, "train"), load_videos(tmp_path, "test")
    assert (train.names, train.labels) == (("train/run/1.mp4", "train/walk/2.mp4"), (0, 1))
    assert (test.names, test.labels, test.classes) == (("test/walk/4.mp4",), (1,), ("run", "walk"))
    assert (
        test.layout == "folders, 2 classes: videos in test/, no split lists (not used: 1 videos beside them)"
    )
    shutil.rmtree(tmp_path / "test")
    assert load_videos(tmp_path, "test").names == ("val/run/3.mp4",)
    assert "(val serves as test;" in load_videos(tmp_path, "test").layout


def test_unlabelled_train_and_test_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.mp4", "test/2.mp4")
    test = load_videos(tmp_path, "test")
    assert (test.names, test.labels, test.classes) == (("test/2.mp4",), (), ())
    assert "no labels" in test.layout


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.mp4", "plane/2.mp4", "test/3.mp4")
    train = load_videos(tmp_path, "train")
    assert (train.classes, train.labels) == (("plane", "test", "train"), (0, 1, 2))


def test_an_unknown_subset(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.mp4")
    with pytest.raises(MCNError, match="subset='val': one of train, test, all"):
        load_videos(tmp_path, "val")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.mp4")
    root = touch(tmp_path / "data", "run/2.mp4")
    (root / "walk").symlink_to(tmp_path / "elsewhere")
    (root / "run/back").symlink_to(root)
    assert load_videos(root).names == ("run/2.mp4", "walk/1.mp4")


def test_stored_flow_is_not_searched(tmp_path: Path) -> None:
    touch(tmp_path, "run/1.mp4", "flow/run/1/flow_x_00001.jpg", "flow/run/1/odd.mp4")
    assert load_videos(tmp_path).names == ("run/1.mp4",)
    touch(tmp_path, "flow/2.mp4")  # a class
    assert load_videos(tmp_path).classes == ("1", "flow", "run")


@pytest.mark.parametrize(
    "kind", ["ucf101", "hmdb51", "kinetics", "flat kinetics", "parts", "classes", "flat"]
)
def test_prepared_data_is_as_its_source(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if kind == "ucf101":
        touch(source / "UCF-101", "HandStandPushups/v_1.avi", "HandStandPushups/v_2.avi", "Archery/v_1.avi")
        write(source / "splits/trainlist01.txt", "HandstandPushups/v_1.avi 2", "Archery/v_1.avi 1")
        write(source / "splits/testlist01.txt", "HandstandPushups/V_2.avi")
    elif kind == "hmdb51":
        hmdb(source, "videos", "splits")
    elif kind.endswith("kinetics"):
        kinetics(source, flat=kind.startswith("flat"))
    else:
        names = {"parts": "{}/a/{}.avi", "classes": "{}/{}.avi", "flat": "{}-{}.avi"}[kind]
        parts = ("run", "walk") if kind == "classes" else ("train", "test")
        touch(source, *(names.format(part, number) for part in parts for number in range(3)))
    out = prepare(source, tmp_path / "out")
    for subset in ("train", "test", "all"):
        before, after = load_videos(source, subset), load_videos(out, subset)
        same(before, after)
        assert after.root == after.folder == out
        assert len(after.files) == len(after)
        for index, name in enumerate(after.names):
            assert after.path(index) == out / "videos" / Path(name).with_suffix(".mp4")
        assert "prepared" in after.layout


@pytest.mark.skipif(not SUBSET.is_dir(), reason="the subset of UCF101 is not beside the repository")
def test_the_subset_of_ucf101(tmp_path: Path) -> None:
    train, test = load_videos(SUBSET, "train"), load_videos(SUBSET, "test")
    assert (len(train), len(test), len(load_videos(SUBSET, "all"))) == (1260, 503, 1763)
    assert train.layout == "layout of UCF101, 13 classes: videos in videos/, lists in splits/ (split 1)"
    out = prepare(SUBSET, tmp_path / "out")
    for split in (1, 2, 3):
        same(load_videos(SUBSET, "test", split), load_videos(out, "test", split))


def test_preparation_that_was_not_finished(tmp_path: Path) -> None:
    touch(tmp_path / "source", "run/1.mp4")
    out = prepare(tmp_path / "source", tmp_path / "out")
    (out / SETTINGS).unlink()
    with pytest.raises(MCNError, match=r"out: preparation was not finished \(run prepare again"):
        load_videos(out)


def test_a_video_that_could_not_be_prepared_stays_in_the_lists(tmp_path: Path) -> None:
    touch(tmp_path / "source", "run/1.mp4", "run/2.mp4")
    out = prepare(tmp_path / "source", tmp_path / "out")
    lines = [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]
    lines[1] |= {"file": "", "damage": "no frame could be decoded"}
    write(out / MANIFEST, *map(json.dumps, lines))
    assert load_videos(out).names == ("run/1.mp4", "run/2.mp4")


@pytest.mark.slow
def test_240_000_videos_load_in_seconds(tmp_path: Path) -> None:
    chance, letters = random.Random(0), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
    lines, names = [HEADER], []
    for number in range(240_000):
        label, name = f"class {number % 400:03d}", "".join(chance.choices(letters, k=11))
        lines.append(f"{label},{name},{number % 300},{number % 300 + 10},train")
        stem = f"{name}_{number % 300:06d}_{number % 300 + 10:06d}"
        names.append(f"train/{label.replace(' ', '_')}/{stem}.mp4")
    write(tmp_path / "annotations/train.csv", *lines)
    touch(tmp_path, *names)
    start = time.perf_counter()
    train = load_videos(tmp_path, "train")
    assert time.perf_counter() - start < 30  # 5 s on two busy cores
    assert train.names == tuple(names)
    assert train.labels == tuple(number % 400 for number in range(240_000))
