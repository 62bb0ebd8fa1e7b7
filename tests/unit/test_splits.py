"""Official lists: what is read from them, their counts, and lists that are broken."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from mcn.data.splits import (
    BENCHMARKS,
    KineticsRow,
    benchmark,
    kind_of_lists,
    kinetics_lists,
    read_hmdb51,
    read_kinetics,
    read_paths,
    read_ucf101,
    splits_of,
)
from mcn.errors import MCNError

LISTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "splits"
official = pytest.mark.skipif(not LISTS.is_dir(), reason="the official lists are not beside the repository")
HEADER = "label,youtube_id,time_start,time_end,split"


@official
@pytest.mark.parametrize("split", [1, 2, 3])
def test_ucf101_adds_up(split: int) -> None:
    known = BENCHMARKS["ucf101"]
    rows = [read_ucf101(LISTS / "ucfTrainTestlist", subset, split) for subset in ("train", "test")]
    assert tuple(len(part) for part, _ in rows) == known.subsets[split]
    assert sum(known.subsets[split]) == known.videos
    for part, classes in rows:
        assert benchmark("ucf101", classes) is known
        assert {row.label for row in part} == set(range(101))
    # The lists' own numbers say the same as the names of the folders.
    path = LISTS / "ucfTrainTestlist" / f"trainlist{split:02d}.txt"
    numbers = [int(line.split()[1]) - 1 for line in path.read_text().splitlines() if line.strip()]
    assert numbers == [row.label for row in rows[0][0]]


@official
@pytest.mark.parametrize("split", [1, 2, 3])
def test_hmdb51_adds_up(split: int) -> None:
    kind, lists = kind_of_lists(
        LISTS / "hmdb51_splits", [path.name for path in (LISTS / "hmdb51_splits").iterdir()]
    )
    assert (kind, len(lists)) == ("hmdb51", 153)
    assert splits_of(lists) == {k: ["train", "test"] for k in (1, 2, 3)}
    rows, classes = read_hmdb51(lists, split)
    known = BENCHMARKS["hmdb51"]
    assert (len(rows["train"]), len(rows["test"])) == known.subsets[split]
    assert len({row.name for part in rows.values() for row in part}) == known.videos
    assert benchmark("hmdb51", classes) is known
    for part in rows.values():
        assert all(row.name.split("/")[0] == classes[row.label] for row in part)


@official
def test_the_kinetics_list() -> None:
    rows = read_kinetics(LISTS / "kinetics400" / "kinetics-400_val.csv.gz")
    assert len(rows) == 19906
    assert rows[0] == KineticsRow("abseiling", "0wR5jVB-WPk", 417, 427)
    assert rows[0].stems == ("0wR5jVB-WPk_000417_000427", "0wR5jVB-WPk")
    classes = sorted({row.label for row in rows})
    assert classes == (LISTS / "kinetics400" / "label_map_k400.txt").read_text().splitlines()
    assert benchmark("kinetics", classes) is BENCHMARKS["kinetics"]


def test_other_classes_are_no_benchmark() -> None:
    assert benchmark("ucf101", [f"class{number}" for number in range(101)]) is None
    assert benchmark("folder", ["a"]) is None


def test_classes_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "classInd.txt").write_text("2 Archery\r\n1 Bowling\r\n\r\n")
    (tmp_path / "trainlist01.txt").write_text("\ufeffarchery/a b 7.avi 2\r\nBowling/c.avi 1\r\n")
    rows, classes = read_ucf101(tmp_path, "train", 1)
    assert classes == ("Bowling", "Archery")
    assert rows == [("archery/a b 7.avi", 1), ("Bowling/c.avi", 0)]


def test_names_that_are_not_utf8_are_those_of_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "run_test_split1.txt").write_bytes("T\u00fcrme_run.avi 1\n".encode("latin-1"))
    rows, _ = read_hmdb51([tmp_path / "run_test_split1.txt"], 1)
    assert rows["train"][0].name.encode(errors="surrogateescape") == b"run/T\xfcrme_run.avi"


def test_hmdb51_uses(tmp_path: Path) -> None:
    (tmp_path / "run_test_split1.txt").write_text("a(1)!.avi 1 \nb.avi 2 \nc d.avi 0 \n")
    rows, classes = read_hmdb51([tmp_path / "run_test_split1.txt"], 1)
    assert classes == ("run",)
    assert rows == {"train": [("run/a(1)!.avi", 0)], "test": [("run/b.avi", 0)], "": [("run/c d.avi", 0)]}


def test_a_class_without_a_list_of_the_split(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.txt" for name in ("run_test_split1", "run_test_split2", "walk_test_split1")]
    for path in paths:
        path.write_text("a.avi 1\n")
    assert len(read_hmdb51(paths, 1)[0]["train"]) == 2
    with pytest.raises(MCNError, match=r"no such list: .*walk_test_split2\.txt"):
        read_hmdb51(paths, 2)


@pytest.mark.parametrize("packed", [False, True])
def test_kinetics_csv(packed: bool, tmp_path: Path) -> None:
    text = f'{HEADER},is_cc\n"air drumming",-abcdefghij,7,17,val,0\nyoga,b,8.0,18.0,val,1\n\n'
    path = tmp_path / ("val.csv.gz" if packed else "val.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert read_kinetics(path) == [("air drumming", "-abcdefghij", 7, 17), ("yoga", "b", 8, 18)]


def test_the_test_list_of_kinetics_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\nabc,1,11,test\n")
    assert read_kinetics(tmp_path / "test.csv") == [("", "abc", 1, 11)]


def test_which_lists_serve_which_part(tmp_path: Path) -> None:
    csvs = [tmp_path / name for name in ("kinetics_train.csv", "kinetics-400_val.csv.gz", "test.csv")]
    lists = [tmp_path / "kinetics400_train_list_videos.txt", tmp_path / "kinetics400_val_list_videos.txt"]
    assert kinetics_lists([*lists, *csvs]) == {"train": csvs[0], "val": csvs[1], "test": csvs[2]}
    assert kinetics_lists(lists) == {"train": lists[0], "val": lists[1]}
    assert kinetics_lists([tmp_path / "validate.csv"]) == {"val": tmp_path / "validate.csv"}


def test_other_files_are_no_lists(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,label\na.mp4,0\n")
    (tmp_path / "notes.txt").touch()
    assert kind_of_lists(tmp_path, ["train.csv", "notes.txt"]) == ("", ())
    (tmp_path / "train.csv").write_text(f"{HEADER}\nyoga,a,1,2,train\n")
    assert kind_of_lists(tmp_path, ["train.csv", "notes.txt"]) == ("kinetics", (tmp_path / "train.csv",))
    with pytest.raises(MCNError, match=r"holds lists of two data sets, testlist01\.txt \(UCF101\) and train"):
        kind_of_lists(tmp_path, ["train.csv", "testlist01.txt"])


def _ucf101(text: str, classes: str = "1 A\n2 B\n") -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "classInd.txt").write_text(classes)
        (folder / "trainlist01.txt").write_text(text)
        return read_ucf101(folder, "train", 1)

    return read


def _hmdb51(text: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "run_test_split1.txt").write_text(text)
        return read_hmdb51([folder / "run_test_split1.txt"], 1)

    return read


def _kinetics(text: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "val.csv").write_text(text)
        return read_kinetics(folder / "val.csv")

    return read


def _paths(text: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        (folder / "list.txt").write_text(text)
        return read_paths(folder / "list.txt")

    return read


BROKEN = {
    "no class folder": (
        _ucf101("A/a.avi 1\nb.avi 2\n"),
        r"trainlist01\.txt, line 2: 'b\.avi 2' is not Class/",
    ),
    "leads out": (_ucf101("A/a.avi 1\n../A/b.avi\n"), r"trainlist01\.txt, line 2: '\.\./A/b\.avi' is not"),
    "absolute": (_ucf101("/data/A/a.avi 1\n"), r"line 1: '/data/A/a\.avi 1' is not"),
    "twice": (_ucf101("A/a.avi 1\nB/b.avi\n\nA/a.avi 1\n"), r"line 4: 'A/a\.avi' is in line 1 too"),
    "unknown class": (_ucf101("A/a.avi 1\nC/c.avi 3\n"), r"line 2: class 'C' of C/c\.avi is not in classInd"),
    "nothing in it": (_ucf101("\n\r\n"), r"trainlist01\.txt is empty"),
    "no number": (_ucf101("A/a.avi", "1 A\nBowling\n"), r"classInd\.txt, line 2: 'Bowling' is not a number"),
    "number twice": (_ucf101("A/a.avi", "1 A\n1 B\n"), r"classInd\.txt, line 2: '1 B' has a number"),
    "class twice": (_ucf101("A/a.avi", "1 A\n2 A\n"), r"classInd\.txt, line 2: '2 A' has a number or name"),
    "no id": (_hmdb51("a.avi 1\nb.avi\n"), r"run_test_split1\.txt, line 2: 'b\.avi' is not a file's name"),
    "id 3": (_hmdb51("a.avi 3\n"), r"line 1: 'a\.avi 3' is not a file's name and 0, 1 or 2"),
    "in a folder": (_hmdb51("run/a.avi 1\n"), r"line 1: 'run/a\.avi 1' is not"),
    "no columns": (_kinetics("path,label\na,b\n"), r"val\.csv, line 1: 'path,label' is not label,youtube_id"),
    "no time": (_kinetics(f"{HEADER}\nyoga,a,1,2,val\nyoga,b,x,2,val\n"), r"line 3: 'yoga,b,x,2,val' is not"),
    "too short": (_kinetics(f"{HEADER}\nyoga,a\n"), r"val\.csv, line 2: 'yoga,a' is not a label"),
    "no videos": (_kinetics(f"{HEADER}\n"), r"val\.csv is empty"),
    "no label": (_paths("a/b.mp4 0\na/c.mp4\n"), r"list\.txt, line 2: 'a/c\.mp4' is not a path and"),
    "no paths": (_paths("\n"), r"list\.txt is empty"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_malformed_line_is_named(case: str, tmp_path: Path) -> None:
    read, message = BROKEN[case]
    with pytest.raises(MCNError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MCNError, match=r"no such list: .*testlist02\.txt, .* of split 2 \(there: none\)"):
        read_ucf101(tmp_path, "test", 2)
    (tmp_path / "trainlist01.txt").write_text("Run/a.avi\n")
    with pytest.raises(
        MCNError, match=r"testlist01\.txt, the test list of split 1 \(there: trainlist01"
    ) as none:
        read_ucf101(tmp_path, "test", 1)
    assert "write it, a line a video such as Class/name.avi" in str(none.value)
    assert "or --validation to test on a part of the training list" in str(none.value)
    with pytest.raises(MCNError, match=r"trainlist02\.txt, the train list of split 2 .* another --split$"):
        read_ucf101(tmp_path, "train", 2)
    (tmp_path / "val.csv.gz").write_bytes(gzip.compress(HEADER.encode())[:-9])
    with pytest.raises(MCNError, match=r"val\.csv\.gz: not readable"):
        read_kinetics(tmp_path / "val.csv.gz")
