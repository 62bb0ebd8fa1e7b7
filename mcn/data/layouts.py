"""Recognising a data set on the disk: which folder holds the videos, which files are the split lists.

One walk finds the videos; names of lists are looked up in what it found, so that a data set of
240,000 files opens in seconds, on a network disk too.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mcn.data.manifest import MANIFEST, SETTINGS, read_manifest
from mcn.data.splits import kind_of_lists
from mcn.errors import MCNError

EXTENSIONS = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v")
#: Folders that hold a data set's videos, compared without case, the first that is there.
VIDEO_FOLDERS = ("videos", "ucf-101", "ucf101", "hmdb51", "hmdb51_org")
#: Folders that hold split lists, the first that is there; the last is the data set's folder itself.
LIST_FOLDERS = (
    "splits",
    "ucfTrainTestlist",
    "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist",
    "testTrainMulti_7030_splits",
    "test_train_splits",
    "test_train_splits/testTrainMulti_7030_splits",
    "annotations",
    "",
)
_NOTHING_BUT_LISTS = LIST_FOLDERS[:-2]
_PART = re.compile(
    r"(?:videos_)?(?:(train(?:ing)?)|(val(?:id|idate|idation)?)|(test(?:ing)?))(?:_\d+)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Layout:
    """What was recognised.

    ``kind`` is ``ucf101``, ``hmdb51``, ``kinetics`` (by their lists) or ``folder`` (no lists). ``files`` has
    the videos: name relative to the folder of the videos -> path relative to ``folder``; the two
    are the same but in prepared data. ``parts`` are the folders among them that hold a part
    (``train``, ``val``, ``test``) of the data set; ``empty`` folders without any video, and ``unused`` what
    was passed over, each as a short text.
    """

    root: Path
    folder: Path
    kind: str
    files: Mapping[str, str]
    lists: tuple[Path, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    empty: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    prepared: bool = False

    @property
    def list_folder(self) -> Path:
        """The folder of the lists (the data set's own where there are none)."""
        return self.lists[0].parent if self.lists else self.root

    def find(self, name: str) -> str | None:
        """The video that a list means: the same name, or one that differs in case or suffix only.

        Raises :class:`~mcn.errors.MCNError` where several do.
        """
        if name in self.files:
            return name
        found = self._by_stem.get(_stem(name), [])
        if len(found) > 1:  # an .avi and an .mp4, for one: the list's suffix decides
            suffix = os.path.splitext(name)[1].lower()
            found = [other for other in found if os.path.splitext(other)[1].lower() == suffix] or found
        if len(found) > 1:
            raise MCNError(
                f"{self.folder}: {name!r} of the list may be {found[0]!r} or {found[1]!r} (remove one)"
            )
        return found[0] if found else None

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in self.files:
            found[_stem(name)].append(name)
        return found


def _stem(name: str) -> str:
    """What a name is compared by: no case, no suffix of a video, one way to write accents."""
    stem, suffix = os.path.splitext(name)
    return unicodedata.normalize("NFC", (stem if suffix.lower() in EXTENSIONS else name).casefold())


def recognise(root: str | Path) -> Layout:
    """Find the videos and the lists of the data set in ``root``.

    Raises :class:`~mcn.errors.MCNError` for a folder that is missing or without videos, for lists of several
    data sets, a folder of lists without any, and prepared data that are not complete.
    """
    if not str(root):
        raise MCNError(
            "no data set given: add --data FOLDER (make data writes the built-in one to data/synthetic)"
        )
    root = Path(root)
    if not root.is_dir():
        raise MCNError(f"no such folder: {root} (give the folder of a data set)")
    entries = sorted(os.listdir(root))
    kind, lists, unused = _find_lists(root, entries)
    folder, empty = root, tuple[str, ...]()
    prepared = MANIFEST in entries or SETTINGS in entries
    if prepared:
        files = _prepared(root)
    else:
        folder = _video_folder(root, entries)
        if folder != root:
            unused += [f"{n}/" for n in entries if n != folder.name and _has_videos(root / n)]
        files, empty = _scan(folder)
    if not files:
        raise MCNError(f"no videos in {folder}: looked for {', '.join(EXTENSIONS)} in it and its subfolders")
    parts, others = _find_parts(files, bool(lists)) if kind in ("", "kinetics") else ({}, [])
    own = {str(path.parent.relative_to(root)).split("/")[0] for path in lists} if folder == root else set()
    empty = tuple(name for name in empty if name.split("/")[0] not in own)
    unused += others
    return Layout(root, folder, kind or "folder", files, lists, parts, empty, tuple(unused), prepared)


def _video_folder(root: Path, entries: list[str]) -> Path:
    """The folder whose name says that it holds the videos, or the data set's folder itself."""
    named = (name for wanted in VIDEO_FOLDERS for name in entries if name.lower() == wanted)
    return next((root / name for name in named if (root / name).is_dir()), root)


def _has_videos(folder: Path, depth: int = 2) -> bool:
    """Whether there are videos in a folder or the first few of its subfolders; no more than a glance."""
    if not depth or folder.name.startswith(".") or not folder.is_dir():
        return False
    names = os.listdir(folder)
    if any(name.lower().endswith(EXTENSIONS) for name in names):
        return True
    return any(_has_videos(folder / name, depth - 1) for name in names[:5])


def _find_lists(root: Path, entries: list[str]) -> tuple[str, tuple[Path, ...], list[str]]:
    """The kind of the lists, the lists, and what other lists there are."""
    found = []
    for name in LIST_FOLDERS:
        folder = root / name
        if name and (name.split("/")[0] not in entries or not folder.is_dir()):
            continue
        inside = sorted(os.listdir(folder)) if name else entries
        kind, lists = kind_of_lists(folder, inside)
        if lists:
            found.append((name, kind, lists))
        elif name in _NOTHING_BUT_LISTS and not any(f"{name}/{n}" in LIST_FOLDERS for n in inside):
            raise MCNError(
                f"no such list: {folder / 'trainlist01.txt'}, nor another of UCF101, HMDB51 or Kinetics in "
                f"{name}/ (a folder of that name holds a data set's split lists; rename it if it does not)"
            )
    kinds = dict.fromkeys(kind for _, kind, _ in found)
    if len(kinds) > 1:
        places = " and ".join(f"{name or '.'}/ ({kind})" for name, kind, _ in found)
        raise MCNError(f"{root} holds lists of several data sets, {places}: give each a folder of its own")
    if not found:
        beside = [n for n in _NOTHING_BUT_LISTS[1:] if (root.absolute().parent / n).is_dir()]
        return "", (), [f"../{name}/ (give the folder above to use these lists)" for name in beside[:1]]
    return found[0][1], found[0][2], [f"lists in {name or '.'}/" for name, *_ in found[1:]]


def _find_parts(files: Mapping[str, str], with_lists: bool) -> tuple[dict[str, str], list[str]]:
    """Folders such as train/ and val/: ``{"train": "train"}``, and what lies beside them.

    Without lists that say more, they must hold classes, or nothing else be there: ``train`` may also be a
    class, of railways.
    """
    tops: dict[str, bool] = {}  # whether there are folders in it
    for name in files:
        top, slash, rest = name.partition("/")
        if slash:
            tops[top] = tops.get(top, False) or "/" in rest
    found: dict[str, list[str]] = defaultdict(list)
    for top in sorted(tops):
        if match := _PART.fullmatch(top):
            found["train" if match[1] else "val" if match[2] else "test"].append(top)
    others = sorted(set(tops) - {top for folders in found.values() for top in folders})
    if "train" not in found and not with_lists:
        return {}, []
    if others and not with_lists and not any(tops[top] for top in found["train"]):
        return {}, []
    unused = [f"{folder}/" for folders in found.values() for folder in folders[1:]]
    if found:
        loose = sum("/" not in name for name in files)
        unused += [f"{folder}/" for folder in others] + ([f"{loose:,} videos beside them"] if loose else [])
    return {part: folders[0] for part, folders in found.items()}, unused


def _prepared(root: Path) -> dict[str, str]:
    """The videos of prepared data, by the name that their source had, and their files."""
    if not (root / SETTINGS).is_file() or not (root / MANIFEST).is_file():
        raise MCNError(f"{root}: preparation was not finished (run prepare again: it goes on where it was)")
    # A video that could not be prepared stays in the lists; who opens it hears why.
    found = {name: entry.file or f"videos/{name}" for name, entry in read_manifest(root).items()}
    return {name: found[name] for name in sorted(found, key=in_order)}


def in_order(name: str) -> list[str]:
    """Sorts a folder's files together, whatever sorts before a slash."""
    return name.split("/")


def _scan(folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The videos in ``folder``, sorted by name, and the folders that have none."""
    names: list[str] = []
    folders: dict[str, None] = {}
    for prefix, videos in _walk(str(folder), ""):
        folders[prefix] = None
        names += videos
    names.sort(key=in_order)
    used = {""}
    for name in names:
        parent = name.rpartition("/")[0]
        while parent not in used:
            used.add(parent)
            parent = parent.rpartition("/")[0]
    return {name: name for name in names}, tuple(sorted(set(folders) - used))


def _walk(path: str, prefix: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Each folder and the videos in it, as paths relative to the first; links to folders are followed."""
    try:
        status = os.stat(path)
        with os.scandir(path) as listing:
            entries = [entry for entry in listing if not entry.name.startswith(".")]
    except OSError as error:
        raise MCNError(f"{path}: {error.strerror} (the folder of the videos must be readable)") from None
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link back up
        return
    base = f"{prefix}/" if prefix else ""
    videos = [base + entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS)]
    if prefix == "flow" and not videos:  # stored flow: a million images
        return
    yield prefix, videos
    for entry in entries:
        if not entry.name.lower().endswith(EXTENSIONS) and entry.is_dir():
            yield from _walk(entry.path, base + entry.name, (*above, here))
