"""Official split lists: what UCF101, HMDB51 and Kinetics say is for training and for testing.

Parsing only; which of the videos are on the disk is a matter of :mod:`mcn.data.subsets`. All readers raise
:class:`~mcn.errors.MCNError` with file, line number and content for a line that they cannot make sense of.
"""

import csv
import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mcn.errors import MCNError

_HMDB51 = re.compile(r"(?P<label>.+)_test_split(?P<split>\d+)\.txt")
_UCF101 = re.compile(r"(?P<use>train|test)list(?P<split>\d\d)\.txt|classInd\.txt")
_PART = r"(?P<part>train|val|validate|validation|test)"
_KINETICS_CSV = re.compile(rf"(?:kinetics.*[-_])?{_PART}\.csv(?:\.gz)?", re.IGNORECASE)
_KINETICS_LIST = re.compile(rf"kinetics.*_{_PART}_list(?:_videos)?\.txt", re.IGNORECASE)
_HMDB51_USE = {"1": "train", "2": "test", "0": ""}


class Row(NamedTuple):
    """One video of a list: its name there, and the number of its class, from 0."""

    name: str
    label: int


class KineticsRow(NamedTuple):
    """One line of a Kinetics csv: seconds ``start`` to ``end`` of a YouTube video; label "" where untold."""

    label: str
    youtube_id: str
    start: int
    end: int

    @property
    def stems(self) -> tuple[str, str]:
        """Names without suffix that the file may have, the usual one first."""
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}", self.youtube_id


@dataclass(frozen=True)
class Benchmark:
    """A published data set: what its lists must add up to.

    ``digest`` is blake2b (8 bytes) of the class names in order, joined by line feeds; ``subsets`` are the
    numbers of train and test videos of each split (empty: they differ from copy to copy), ``videos`` of all.
    """

    title: str
    classes: int
    digest: str
    videos: int = 0
    subsets: dict[int, tuple[int, int]] = field(default_factory=dict)


#: The published data sets, by the kind of their lists.
BENCHMARKS = {
    "ucf101": Benchmark(
        "UCF101", 101, "424796fb30f45581", 13320, {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}
    ),
    "hmdb51": Benchmark("HMDB51", 51, "6e3dbef78875fe48", 6766, dict.fromkeys((1, 2, 3), (3570, 1530))),
    "kinetics": Benchmark("Kinetics-400", 400, "43b2550738e66c69"),
}


def benchmark(kind: str, classes: Sequence[str]) -> Benchmark | None:
    """The published data set of this kind that has exactly these classes, if there is one.

    >>> benchmark("hmdb51", ["run", "walk"]) is None
    True
    """
    known = BENCHMARKS.get(kind)
    digest = hashlib.blake2b("\n".join(classes).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return known if known and known.digest == digest else None


def kind_of_lists(folder: Path, names: Sequence[str]) -> tuple[str, tuple[Path, ...]]:
    """Which data set's lists a folder with these entries holds: ``(kind, its list files)``.

    The kind is ``ucf101``, ``hmdb51``, ``kinetics``, or the empty string for none. Raises
    :class:`~mcn.errors.MCNError` where there are lists of two kinds.
    """
    kinds = {
        "ucf101": [folder / name for name in names if _UCF101.fullmatch(name)],
        "hmdb51": [folder / name for name in names if _HMDB51.fullmatch(name)],
        "kinetics": [
            folder / name
            for name in names
            if _KINETICS_LIST.fullmatch(name)
            or (_KINETICS_CSV.fullmatch(name) and _is_kinetics_csv(folder / name))
        ],
    }
    found = {kind: tuple(sorted(paths)) for kind, paths in kinds.items() if paths}
    if len(found) > 1:
        firsts = " and ".join(f"{paths[0].name} ({BENCHMARKS[k].title})" for k, paths in found.items())
        raise MCNError(f"{folder} holds lists of two data sets, {firsts}: give each a folder of its own")
    return next(iter(found.items()), ("", ()))


def splits_of(lists: Sequence[Path]) -> dict[int, list[str]]:
    """The splits that lists of UCF101 or HMDB51 tell of, and the subsets of each."""
    found: dict[int, list[str]] = {}
    for path in lists:
        match = _UCF101.fullmatch(path.name)
        if match and match["split"]:
            found.setdefault(int(match["split"]), []).append(match["use"])
        elif match := _HMDB51.fullmatch(path.name):
            found[int(match["split"])] = ["test", "train"]
    return {split: sorted(found[split], reverse=True) for split in sorted(found)}


def read_ucf101(folder: Path, subset: str, split: int) -> tuple[list[Row], tuple[str, ...]]:
    """Rows and class names of ``trainlist01.txt`` and the like: ``Class/name.avi`` [number], one a line.

    Labels follow from the folder's name, compared without case: the official lists say
    HandstandPushups/v_HandStandPushups_*. The class names are those of ``classInd.txt``, where there is
    none those of all lists of the split.
    """
    path = folder / f"{subset}list{split:02d}.txt"
    if not path.is_file():
        there = ", ".join(sorted(other.name for other in folder.glob("*list*.txt"))) or "none"
        instead = ", or --validation to test on a part of the training list" if subset == "test" else ""
        raise MCNError(
            f"no such list: {path}, the {subset} list of split {split} (there: {there}): write it, a line a "
            f"video such as Class/name.avi, or give another --split{instead}"
        )
    names = _ucf101_names(path)
    if not names:
        raise MCNError(f"{path} is empty: it should name one video a line")
    index = folder / "classInd.txt"
    if index.is_file():
        classes = _ucf101_classes(index)
    else:  # from all lists of the split: a class may be in only one of them
        known = [name for other in folder.glob(f"*list{split:02d}.txt") for name in _ucf101_names(other)]
        classes = tuple(sorted({name.split("/")[0] for name in known}))
    labels = {label.lower(): number for number, label in enumerate(classes)}
    rows = []
    for name, number in names.items():
        label = name.split("/")[0]
        if label.lower() not in labels:
            raise MCNError(f"{path}, line {number}: class {label!r} of {name} is not in classInd.txt")
        rows.append(Row(name, labels[label.lower()]))
    return rows, classes


def _ucf101_names(path: Path) -> dict[str, int]:
    """The videos of a list, with or without a class number behind, and their lines; names may have spaces."""
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        name = re.sub(r"\s+\d+$", "", line)
        if not name.strip("/").count("/") or name.startswith("/") or ".." in name.split("/"):
            raise _malformed(path, number, line, "Class/name.avi, with or without the class's number behind")
        if name in lines:
            raise MCNError(f"{path}, line {number}: {name!r} is in line {lines[name]} too (remove one)")
        lines[name] = number
    return lines


def _ucf101_classes(path: Path) -> tuple[str, ...]:
    """Class names of ``classInd.txt`` in the order of their numbers."""
    names: dict[int, str] = {}
    for number, line in _lines(path):
        match = re.fullmatch(r"(\d+)\s+(.+)", line)
        if match is None:
            raise _malformed(path, number, line, "a number and the name of a class")
        if int(match[1]) in names or match[2] in names.values():
            raise MCNError(f"{path}, line {number}: {line!r} has a number or name that is there already")
        names[int(match[1])] = match[2]
    return tuple(names[number] for number in sorted(names))


def read_hmdb51(lists: Sequence[Path], split: int) -> tuple[dict[str, list[Row]], tuple[str, ...]]:
    """Rows of each use, ``"train"``, ``"test"`` and ``""`` (in neither), and class names of one split.

    A list is ``<class>_test_split<k>.txt`` with lines ``name id``: id 1 is train, 2 test, 0 unused. Names
    become ``<class>/<name>``. Raises :class:`~mcn.errors.MCNError` where a class has no list of this split.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in lists:
        if match := _HMDB51.fullmatch(path.name):
            found.setdefault(match["label"], {})[int(match["split"])] = path
    classes = tuple(sorted(found))
    rows: dict[str, list[Row]] = {use: [] for use in _HMDB51_USE.values()}
    for label, name in enumerate(classes):
        path = lists[0].parent / f"{name}_test_split{split}.txt"
        if split not in found[name]:
            raise MCNError(
                f"no such list: {path} (HMDB51 has one a class and split: add it, or give another --split)"
            )
        for number, line in _lines(path):
            match = re.fullmatch(r"([^/]+?)\s+([012])", line)
            if match is None:
                raise _malformed(path, number, line, "a file's name and 0, 1 or 2")
            rows[_HMDB51_USE[match[2]]].append(Row(f"{name}/{match[1]}", label))
    return rows, classes


def kinetics_lists(lists: Sequence[Path]) -> dict[str, Path]:
    """The list of each part, ``train``, ``val``, ``test``: the csv files, where there is none path lists."""
    for pattern in (_KINETICS_CSV, _KINETICS_LIST):
        found: dict[str, Path] = {}
        for path in lists:
            if match := pattern.fullmatch(path.name):
                part = match["part"].lower()
                found.setdefault("val" if part.startswith("val") else part, path)
        if found:
            return found
    return {}


def read_kinetics(path: Path) -> list[KineticsRow]:
    """The rows of ``label,youtube_id,time_start,time_end,split[,is_cc]`` (``.csv`` or ``.csv.gz``)."""
    reader = csv.reader(_text(path).split("\n"))
    header = next(reader, [])
    columns = [header.index(n) for n in ("youtube_id", "time_start", "time_end") if n in header]
    labels = header.index("label") if "label" in header else None  # the test list has none
    if len(columns) < 3:
        raise _malformed(path, 1, ",".join(header), "label,youtube_id,time_start,time_end,split")
    rows = []
    for cells in reader:
        if not cells:
            continue
        try:
            name, start, end = (cells[column] for column in columns)
            label = cells[labels] if labels is not None else ""
            rows.append(KineticsRow(label.strip(), _youtube_id(name), round(float(start)), round(float(end))))
        except (ValueError, IndexError):
            wanted = "a label, a YouTube id and two times in seconds, parted by commas"
            raise _malformed(path, reader.line_num, ",".join(cells), wanted) from None
    if not rows:
        raise MCNError(f"{path} is empty: it should name one video a line")
    return rows


def read_paths(path: Path) -> list[Row]:
    """The rows of a list with lines ``path label``, as MMAction2 has them; labels count from 0."""
    rows = []
    for number, line in _lines(path):
        match = re.fullmatch(r"(.+?)\s+(\d+)", line)
        if match is None:
            raise _malformed(path, number, line, "a path and the number of its class")
        rows.append(Row(match[1], int(match[2])))
    if not rows:
        raise MCNError(f"{path} is empty: it should name one video a line")
    return rows


def _youtube_id(text: str) -> str:
    if not text or "/" in text:
        raise ValueError(text)
    return text


def _is_kinetics_csv(path: Path) -> bool:
    return "youtube_id" in _text(path, 200).split("\n")[0]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without the blanks around them; empty lines are left out."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def _text(path: Path, length: int = -1) -> str:
    # Names that are not UTF-8 come out as the file system gives them, so that they compare equal.
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read(length).decode("utf-8-sig", errors="surrogateescape")
    except (OSError, EOFError, zlib.error) as error:
        raise MCNError(f"{path}: not readable ({getattr(error, 'strerror', None) or error})") from None
    return text.replace("\r\n", "\n")


def _malformed(path: Path, number: int, line: str, wanted: str) -> MCNError:
    return MCNError(f"{path}, line {number}: {line!r} is not {wanted}")
