"""Which of the videos on the disk are ``train`` and ``test``, by lists or folders, and their labels."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from mcn.data.layouts import Layout, in_order
from mcn.data.splits import (
    Row,
    kinetics_lists,
    read_hmdb51,
    read_kinetics,
    read_paths,
    read_ucf101,
    splits_of,
)
from mcn.errors import MCNError

#: What :func:`select` takes.
SUBSETS = ("train", "test", "all")
_KINETICS_NAME = re.compile(r"(?:.*/)?[\w-]{11}_\d{6}_\d{6}\.\w+")


@dataclass(frozen=True)
class Selection:
    """A subset, looked up on the disk.

    ``names`` are the lists' (the disk's where there is no list), ``found`` the keys of
    :attr:`Layout.files` that they mean (None: not there), ``labels`` empty where a video has none.
    ``source`` is the list, None without one; ``part`` the part of the data set that serves as this subset.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    found: tuple[str | None, ...]
    classes: tuple[str, ...]
    source: Path | None = None
    part: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the videos that are not there."""
        return tuple(name for name, file in zip(self.names, self.found, strict=True) if file is None)

    def present(self) -> "Selection":
        """The same without the missing."""
        keep = [number for number, file in enumerate(self.found) if file is not None]
        labels = tuple(self.labels[i] for i in keep) if self.labels else ()
        names, found = tuple(self.names[i] for i in keep), tuple(self.found[i] for i in keep)
        return replace(self, names=names, labels=labels, found=found)


def select(layout: Layout, subset: str, split: int = 1) -> Selection:
    """The videos of ``"train"``, ``"test"`` or ``"all"`` (all on the disk, listed or not).

    Raises :class:`~mcn.errors.MCNError` for another subset, a list that is not there, and malformed lists.
    """
    if subset not in SUBSETS:
        raise MCNError(f"subset={subset!r}: one of {', '.join(SUBSETS)}")
    if layout.kind in ("ucf101", "hmdb51"):
        return _listed(layout, subset, split) if subset != "all" else _listed_or_not(layout, split)
    if layout.kind == "kinetics" or layout.parts:
        return _Parts(layout).select(subset)
    names = tuple(layout.files) if subset != "test" else ()
    return _by_folder(layout, names)


def subsets_of(layout: Layout) -> list[tuple[str, int]]:
    """The subsets that there are, and of which split (0: the data set has none)."""
    if layout.kind in ("ucf101", "hmdb51"):
        return [(subset, split) for split, all_ in splits_of(layout.lists).items() for subset in all_]
    there = {*kinetics_lists(layout.lists), *layout.parts}
    if not there:
        return [("train", 0)]
    return [("train", 0)] * ("train" in there) + [("test", 0)] * bool(there - {"train"})


def looks_like_kinetics(layout: Layout) -> bool:
    """Whether the lists, or the names of half of the videos, are those of Kinetics."""
    if layout.kind != "folder":
        return layout.kind == "kinetics"
    return 2 * sum(_KINETICS_NAME.fullmatch(name) is not None for name in layout.files) >= len(layout.files)


def _listed(layout: Layout, subset: str, split: int) -> Selection:
    """A subset of UCF101 or HMDB51."""
    rows, classes = _rows(layout, subset, split)
    return Selection(
        tuple(row.name for row in rows),
        tuple(row.label for row in rows),
        tuple(layout.find(row.name) for row in rows),
        classes,
        layout.list_folder,
    )


def _rows(layout: Layout, subset: str, split: int) -> tuple[list[Row], tuple[str, ...]]:
    if layout.kind == "ucf101":
        return read_ucf101(layout.list_folder, subset, split)
    rows, classes = read_hmdb51(layout.lists, split)
    return rows[subset], classes


def _listed_or_not(layout: Layout, split: int) -> Selection:
    """All videos of UCF101 or HMDB51, under the names that any list has for them."""
    names = listed_names(layout)
    splits = splits_of(layout.lists)
    if not splits:
        raise MCNError(f"no such list: {layout.list_folder / 'trainlist01.txt'} (classInd.txt is not enough)")
    chosen = split if split in splits else min(splits)
    classes = _rows(layout, splits[chosen][0], chosen)[1]
    files = {names.get(file, file): file for file in layout.files}
    every = tuple(sorted(files, key=in_order))
    return _labelled(every, [_parent(name) for name in every], tuple(files[name] for name in every), classes)


def listed_names(layout: Layout) -> dict[str, str]:
    """The videos of UCF101 or HMDB51 on the disk that are in a list: key of ``files`` -> the list's name."""
    names: dict[str, str] = {}
    for split, subsets in splits_of(layout.lists).items():
        if layout.kind == "hmdb51":
            lists: Iterable[list[Row]] = read_hmdb51(layout.lists, split)[0].values()
        else:
            lists = (read_ucf101(layout.list_folder, subset, split)[0] for subset in subsets)
        for row in (row for rows in lists for row in rows):
            if file := layout.find(row.name):
                names.setdefault(file, row.name)
    return names


def _by_folder(layout: Layout, names: tuple[str, ...]) -> Selection:
    """Videos without lists: the folder is the class; none where a video lies outside of a folder."""
    parents = [_parent(name) for name in layout.files]
    classes = tuple(sorted(set(parents))) if all(parents) else ()
    return _labelled(names, [_parent(name) if classes else "" for name in names], names, classes)


def _labelled(
    names: tuple[str, ...], classes_of: list[str], found: tuple[str, ...], classes: tuple[str, ...]
) -> Selection:
    """Labels by class name, compared as :func:`_plain` does; classes that are new come behind."""
    known = {_plain(name) for name in classes}
    new = {_plain(name): name for name in sorted(classes_of, reverse=True) if _plain(name) not in known}
    classes = (*classes, *sorted(name for name in new.values() if name))
    numbers = {_plain(name): number for number, name in enumerate(classes)}
    labels = tuple(numbers[_plain(name)] for name in classes_of) if all(classes_of) else ()
    return Selection(names, labels, found, classes)


def _parent(name: str) -> str:
    """Name of the folder that a video is in, empty at the top."""
    return name.rpartition("/")[0].rpartition("/")[2]


@lru_cache(maxsize=1 << 12)
def _plain(label: str) -> str:
    """A class name without case and anything but letters and digits: "air drumming" is air_drumming."""
    return "".join(letter for letter in label.casefold() if letter.isalnum()) or label


@dataclass(frozen=True)
class _Wanted:
    """A line of a list of Kinetics: names that the file may have, and the class's name."""

    keys: tuple[str, ...]
    label: str


class _Parts:
    """Kinetics and its like: for each part (train, val, test) a list, a folder, or both."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.sources = kinetics_lists(layout.lists)
        self.lists, names = _read_lists(self.sources)
        # Labels of parts without a list follow from folders, which may be written otherwise.
        known = {_plain(name) for name in names}
        new = {_plain(n): n for n in self._folder_classes() if n and _plain(n) not in known}.values()
        ordered = any(path.suffix == ".txt" for path in self.sources.values())
        self.classes = (*names, *sorted(new)) if ordered else tuple(sorted([*names, *new]))
        self.numbers = {_plain(name): number for number, name in enumerate(self.classes)}

    def select(self, subset: str) -> Selection:
        if subset == "all":
            return self._all()
        part = self._part(subset)
        if part in self.lists:
            return self._from_list(part)
        names = tuple(self._pool(part)) if part else ()
        return self._selection(names, [self._folder_class(name) for name in names], names, part)

    def _part(self, subset: str) -> str:
        """The part that serves as the subset; empty where there is none for ``test``."""
        there = {*self.lists, *self.layout.parts}
        if subset == "train":
            if "train" not in there:
                raise MCNError(f"{self.layout.root} has neither a train/ folder nor a list of its own for it")
            return "train"
        # The labels of Kinetics' test part were kept back for long: everybody evaluates on val.
        order = ("val", "test") if looks_like_kinetics(self.layout) else ("test", "val")
        return next((part for part in order if part in there), "")

    def _pool(self, part: str) -> list[str]:
        """The videos on the disk among which those of a part are."""
        if not self.layout.parts:
            return list(self.layout.files)
        folder = self.layout.parts.get(part)
        return [name for name in self.layout.files if name.startswith(f"{folder}/")] if folder else []

    def _folder_class(self, name: str) -> str:
        """The folder as class; none for a video that lies in the part's own folder."""
        return _parent(name.partition("/")[2] if self.layout.parts else name)

    def _folder_classes(self) -> set[str]:
        bare = [part for part in self.layout.parts if part not in self.lists]
        return {self._folder_class(name) for part in bare for name in self._pool(part)}

    def _selection(
        self, names: Iterable[str], labels: list[str], found: Iterable[str | None], part: str
    ) -> Selection:
        numbers = tuple(self.numbers[_plain(label)] for label in labels) if all(labels) else ()
        return Selection(tuple(names), numbers, tuple(found), self.classes, self.sources.get(part), part)

    def _from_list(self, part: str) -> Selection:
        """What a list names; a video that it names twice counts once."""
        by_stem: dict[str, list[str]] = defaultdict(list)
        for name in self._pool(part):
            by_stem[name.rpartition("/")[2].rpartition(".")[0]].append(name)
        rows: dict[str, tuple[str, str | None]] = {}
        for wanted in self.lists[part]:
            file = self._find(wanted, by_stem, part)
            rows.setdefault(file or wanted.keys[0], (wanted.label, file))
        return self._selection(rows, [row[0] for row in rows.values()], [r[1] for r in rows.values()], part)

    def _find(self, wanted: _Wanted, by_stem: Mapping[str, list[str]], part: str) -> str | None:
        if self.sources[part].suffix == ".txt":
            inside = f"{self.layout.parts[part]}/{wanted.keys[0]}" if part in self.layout.parts else ""
            return self.layout.find(inside) or self.layout.find(wanted.keys[0])
        same = [name for key in wanted.keys for name in by_stem.get(key, ())]
        if len(same) < 2:
            return same[0] if same else None
        label = _plain(wanted.label)
        return next((name for name in same if _plain(self._folder_class(name)) == label), same[0])

    def _all(self) -> Selection:
        labels: dict[str, str] = {}
        for part in self.layout.parts or self.lists:
            for name in self._pool(part):
                folder = self._folder_class(name)
                labels.setdefault(name, folder if _plain(folder) in self.numbers else "")
        for part in self.lists:
            chosen = self._from_list(part)
            for file, number in zip(chosen.found, chosen.labels or (), strict=bool(chosen.labels)):
                if file is not None:
                    labels[file] = self.classes[number]
        names = [name for name in self.layout.files if name in labels]
        return self._selection(names, [labels[name] for name in names], names, "")


def _read_lists(sources: Mapping[str, Path]) -> tuple[dict[str, list[_Wanted]], list[str]]:
    """The lines of each list, and the class names in the order of their numbers."""
    if any(path.suffix == ".txt" for path in sources.values()):
        return _read_path_lists(sources)
    lists = {
        part: [_Wanted(row.stems, row.label) for row in read_kinetics(path)] for part, path in sources.items()
    }
    return lists, sorted({wanted.label for rows in lists.values() for wanted in rows if wanted.label})


def _read_path_lists(sources: Mapping[str, Path]) -> tuple[dict[str, list[_Wanted]], list[str]]:
    """The same for lists with class numbers, whose names are those of the folders in the paths."""
    rows = {part: read_paths(path) for part, path in sources.items()}
    names: dict[int, str] = {}
    for part, path in sources.items():
        for row in rows[part]:
            folder = _parent(row.name)
            if folder and names.setdefault(row.label, folder) != folder:
                raise MCNError(f"{path}: class {row.label} is {names[row.label]!r}, but not for {row.name}")
    last = max(row.label for part in rows for row in rows[part])
    classes = [names.get(number) or f"class {number}" for number in range(last + 1)]
    return {part: [_Wanted((row.name,), classes[row.label]) for row in rows[part]] for part in rows}, classes
