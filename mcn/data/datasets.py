"""Which videos: a folder and its split lists -> paths and labels.

Recognised as they lie on the disk, the videos' folder compared without case:

UCF101
    class folders in ``UCF-101/``, ``videos/`` or at the top; lists (``trainlist01.txt``, ``testlist01.txt``,
    ``classInd.txt``) in ``ucfTrainTestlist/``, ``splits/``, ``annotations/`` or at the top.
HMDB51
    class folders in ``hmdb51/``, ``hmdb51_org/``, ``videos/`` or at the top; the 153 lists in
    ``testTrainMulti_7030_splits/``, ``test_train_splits/`` or one of those above.
Kinetics-400
    ``train/`` and ``val/`` (``videos_train/``, ``train_256/``, ...) with class folders or without, or class
    folders only; csv files (``annotations/train.csv``), MMAction2's ``kinetics400_train_list_videos.txt``,
    or no lists. ``val`` serves as ``test``. Listed videos that are not there are left out and counted.
any folder
    ``train/`` and ``test/`` folders of classes; class folders; a flat folder of videos without labels.
prepared data
    what data preparation made of one of these; names, labels and classes are those of its source.

A name in a list may differ from the file's in case or suffix: ``names`` are the lists', ``files`` the disk's.
Where there are several folders of videos or lists one is used, of lists ``splits/`` before the others, and
:attr:`Videos.layout` names those that are not.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mcn.data.index import VideoIndex
from mcn.data.layouts import EXTENSIONS, VIDEO_FOLDERS, Layout, recognise
from mcn.data.manifest import SETTINGS, Entry, read_manifest
from mcn.data.prepared import open_prepared
from mcn.data.safe import OpenVideo, open_safely
from mcn.data.splits import BENCHMARKS, benchmark
from mcn.data.subsets import Selection, looks_like_kinetics, select
from mcn.data.supervise import TIMEOUT
from mcn.data.videoinfo import VideoError, state_of
from mcn.errors import MCNError

__all__ = ["EXTENSIONS", "Videos", "describe", "load_videos"]


@dataclass(frozen=True)
class Videos:
    """A list of videos.

    ``names`` are what lists and results call them, relative to the folder of the videos; ``files`` are
    their paths relative to ``folder`` (empty: the names are); ``labels`` (empty: unlabelled) count from 0 in
    the order of ``classes``; ``layout`` is a line that says what was recognised; ``home`` is the data
    set's folder (None: follows from ``folder``).
    """

    folder: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    layout: str = ""
    files: tuple[str, ...] = ()
    home: Path | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Path of video ``index``."""
        return self.folder / (self.files or self.names)[index]

    def open(self, index: int, reader: str = "auto", timeout: float = TIMEOUT) -> OpenVideo:
        """Open video ``index`` for reading by frame, in a ``with`` block.

        Prepared data is checked as it is read. Other files are decoded in a supervised child, silent for
        ``timeout`` seconds at most, and what is found out about them is kept in the data set's index.
        Raises :class:`~mcn.data.videoinfo.VideoError` for a video that cannot be read.
        """
        if self._prepared:
            entry = self._prepared.get(self.names[index])
            if entry is None:
                raise VideoError(f"{self.root}: {self.names[index]} is in a list, but was not prepared")
            return open_prepared(entry, self.root)
        file = (self.files or self.names)[index]
        return open_safely(self.path(index), reader, index=self._index, name=file, timeout=timeout)

    def known(self, index: int) -> bool:
        """Whether :meth:`open` needs no decode of all of video ``index``: it is prepared, or in the index."""
        if self._prepared:
            return True
        try:
            state = state_of(self.path(index))
        except VideoError:
            return False
        return self._index.get((self.files or self.names)[index], state) is not None

    def announced(self, size: int) -> str:
        """What a run says of its videos when it begins: number, layout, frames that are too small."""
        return "\n".join(filter(None, (f"{len(self)} videos: {self.layout}", self.enlarged(size))))

    def enlarged(self, size: int) -> str:
        """A line for clips of ``size`` pixels where prepared frames are smaller; empty where none are.

        Other videos are not asked: their sizes are not known before each is opened.
        """
        entries = [self._prepared[name] for name in self.names if name in self._prepared]
        sides = [min(entry.height, entry.width) for entry in entries if entry.file]
        small = [side for side in sides if side < size]
        if not small:
            return ""
        return (
            f"--size {size} enlarges {len(small):,} of {len(sides):,} prepared videos (short side from "
            f"{min(small)} pixels): give --size {min(small)}, or prepare with --short_side {size}"
        )

    def check_labels(self) -> None:
        """Raise :class:`~mcn.errors.MCNError` for videos without labels."""
        if not self.labels:
            raise MCNError(
                f"{self.root} has no labels: put the videos into one folder a class"
                + f" (recognised: {self.layout})" * bool(self.layout)
            )

    def state(self, index: int) -> str:
        """What changes whenever the frames of video ``index`` may have, to know what was computed from them.

        For prepared data the checksums of its bytes, else path, size and time of change of its file. Raises
        :class:`~mcn.data.videoinfo.VideoError` for a file that is missing or empty.
        """
        if self._prepared:
            return repr(self._prepared.get(self.names[index]))
        path = os.path.abspath(self.path(index))
        return repr((path, *state_of(path)))

    @cached_property
    def _index(self) -> VideoIndex:
        return VideoIndex(self.root)

    @cached_property
    def _prepared(self) -> dict[str, Entry]:
        """The manifest's lines, of prepared data."""
        return read_manifest(self.root) if (self.root / SETTINGS).exists() else {}

    @property
    def root(self) -> Path:
        """The data set's folder: the one above ``videos/``, ``UCF-101/`` and the like, or ``folder``."""
        if self.home is not None:
            return self.home
        return self.folder.parent if self.folder.name.lower() in VIDEO_FOLDERS else self.folder


def load_videos(root: str | Path, subset: str = "train", split: int = 1) -> Videos:
    """The videos of one subset: ``"train"``, ``"test"`` or ``"all"``.

    Without lists or folders for its parts every video is in ``train`` and ``all``, and ``test`` is empty.
    Raises :class:`~mcn.errors.MCNError` for a missing or empty folder, and for a list of which most videos
    are not there (the first of them is named).

    >>> load_videos("no/such/folder")
    Traceback (most recent call last):
    ...
    mcn.errors.MCNError: no such folder: no/such/folder (give the folder of a data set)
    """
    layout = recognise(root)
    chosen = select(layout, subset, split)
    lost = ""
    if missing := chosen.missing:
        # A few lost files are a matter for the loader, which counts them; a wrong folder is an error.
        few_are_usual = layout.kind == "kinetics"
        limit = len(chosen.names) - 1 if few_are_usual else len(chosen.names) // 2
        if len(missing) > limit:
            raise MCNError(
                f"{chosen.source} names {len(chosen.names)} videos, {len(missing)} are not in "
                f"{layout.folder} (first: {missing[0]}): is {layout.root} the right folder?"
            )
        if few_are_usual:  # YouTube loses them, nobody has them all
            lost = f"{len(missing):,} of {len(chosen.names):,} listed are not on disk and left out"
            chosen = chosen.present()
    line = describe(layout, chosen, subset, split, lost)
    # A listed video that is not there keeps its name, which the loader will say.
    files = tuple(
        name if found is None else layout.files[found]
        for name, found in zip(chosen.names, chosen.found, strict=True)
    )
    different = () if files == chosen.names else files
    home = layout.root
    return Videos(layout.folder, chosen.names, chosen.labels, chosen.classes, line, different, home)


def describe(layout: Layout, chosen: Selection, subset: str, split: int, lost: str = "") -> str:
    """What was recognised, in a line; ``lost`` is added to it."""
    notes = []
    if layout.kind in ("ucf101", "hmdb51") and subset != "all":
        notes.append(f"split {split}")
    if chosen.part not in ("", subset):
        notes.append(f"{chosen.part} serves as {subset}")
    notes += [lost] if lost else []
    notes += [f"not used: {', '.join(layout.unused)}"] if layout.unused else []
    if layout.kind == "folder" and not layout.parts:
        kind = "class folders" if chosen.classes else "flat folder, no labels"
        line = f"{'prepared videos, ' * layout.prepared}{kind}, no split lists"
    else:
        line = f"{_title(layout, chosen.classes)}: {_place(layout, chosen)}, {_lists(layout)}"
    return f"{line} ({'; '.join(notes)})" if notes else line


def _title(layout: Layout, classes: tuple[str, ...]) -> str:
    kind = "kinetics" if looks_like_kinetics(layout) else layout.kind
    if known := benchmark(kind, classes):
        return known.title
    number = f"{len(classes)} class{'es' * (len(classes) > 1)}" if classes else "no labels"
    return f"layout of {BENCHMARKS[kind].title}, {number}" if kind in BENCHMARKS else f"folders, {number}"


def _place(layout: Layout, chosen: Selection) -> str:
    if layout.prepared:
        return "prepared videos"
    inside = "" if layout.folder == layout.root else f"{layout.folder.name}/"
    parts = [layout.parts[chosen.part]] if chosen.part in layout.parts else sorted(layout.parts.values())
    places = [f"{inside}{part}/" for part in parts] or [inside or "folders at the top"]
    return f"videos in {' and '.join(places)}"


def _lists(layout: Layout) -> str:
    if not layout.lists:
        return "no split lists"
    folder = layout.list_folder.relative_to(layout.root).as_posix()
    return "lists at the top" if folder == "." else f"lists in {folder}/"
