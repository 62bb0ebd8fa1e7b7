"""Which videos: a folder and its split lists -> paths and labels.

Recognised: class folders (at the top, or under ``videos/`` or ``UCF-101/``) with UCF101's lists
(``trainlist01.txt``, ``testlist01.txt``, ``classInd.txt``) in ``splits/`` or ``ucfTrainTestlist/``;
class folders without lists; a flat folder of videos without labels.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mcn.errors import MCNError

EXTENSIONS = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v")
_VIDEO_FOLDERS = ("videos", "UCF-101")
_LIST_FOLDERS = ("splits", "ucfTrainTestlist")


@dataclass(frozen=True)
class Videos:
    """A list of videos: ``names`` relative to ``folder``, labels (empty: unlabelled) and class names."""

    folder: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    layout: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Path of video ``index``."""
        return self.folder / self.names[index]

    @property
    def root(self) -> Path:
        """The data set's folder: the one above ``videos/`` or ``UCF-101/``, else the folder itself."""
        return self.folder.parent if self.folder.name in _VIDEO_FOLDERS else self.folder


def load_videos(root: str | Path, subset: str = "train", split: int = 1) -> Videos:
    """The videos of one subset: ``"train"``, ``"test"`` or ``"all"``.

    Without split lists every video is in ``train`` and ``all``, and ``test`` is empty. Raises
    :class:`~mcn.errors.MCNError` for a missing or empty folder, and for a list that names videos that are not
    there (the first of them is named).
    """
    if not str(root):
        raise MCNError(
            "no data set given: add --data FOLDER (make data writes the built-in one to data/synthetic)"
        )
    root = Path(root)
    if not root.is_dir():
        raise MCNError(f"no such folder: {root} (--data takes the folder of a data set)")
    folder = next((root / name for name in _VIDEO_FOLDERS if (root / name).is_dir()), root)
    lists = next((root / name for name in _LIST_FOLDERS if (root / name).is_dir()), None)
    if lists is None or subset == "all":
        return _from_folder(folder, with_lists=lists is not None, empty=lists is None and subset == "test")
    return _from_list(folder, lists, subset, split)


def _from_folder(folder: Path, with_lists: bool, empty: bool) -> Videos:
    found = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")
    )
    if not found:
        raise MCNError(f"no videos in {folder}: looked for {', '.join(EXTENSIONS)} in it and its subfolders")
    names = [str(path.relative_to(folder)) for path in found]
    parents = [path.parent.name if path.parent != folder else "" for path in found]
    classes = tuple(sorted(set(parents)))
    layout = "class folders" if all(parents) else "flat folder, no labels"
    layout += " with split lists" if with_lists else ", no split lists"
    if empty:
        return Videos(folder, (), (), classes if all(parents) else (), layout)
    labels = tuple(classes.index(parent) for parent in parents) if all(parents) else ()
    return Videos(folder, tuple(names), labels, classes if labels else (), layout)


def _from_list(folder: Path, lists: Path, subset: str, split: int) -> Videos:
    path = lists / f"{subset}list{split:02d}.txt"
    if not path.is_file():
        raise MCNError(f"no such list: {path} (a data set with {lists.name}/ has one a subset and split)")
    names = _names(path)
    if not names:
        raise MCNError(f"{path} is empty: it should name one video a line")
    index = lists / "classInd.txt"
    if index.is_file():
        classes = tuple(
            line.split(maxsplit=1)[-1].strip() for line in index.read_text().splitlines() if line.strip()
        )
    else:  # from all lists of the split: a class may be in only one of them
        known = [name for other in lists.glob(f"*list{split:02d}.txt") for name in _names(other)]
        classes = tuple(sorted({name.split("/")[0] for name in known}))
    missing = [name for name in names if not (folder / name).exists()]
    # A few lost files are a matter for the loader, which counts them; a wrong folder is an error.
    if len(missing) > len(names) // 2:
        raise MCNError(
            f"{path} names {len(names)} videos, {len(missing)} are not in {folder} (first: {missing[0]}): "
            "is --data the right folder?"
        )
    return Videos(
        folder, tuple(names), tuple(_label(name, classes, path) for name in names), classes, "UCF101 lists"
    )


def _names(path: Path) -> list[str]:
    """The videos of a list, one a line, with or without a class number behind; names may have spaces."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [re.sub(r"\s+\d+$", "", line) for line in lines if line]


def _label(name: str, classes: tuple[str, ...], path: Path) -> int:
    # The official lists say HandstandPushups/v_HandStandPushups_*: compare without case.
    lower = [c.lower() for c in classes]
    parent = name.split("/")[0].lower()
    if parent not in lower:
        raise MCNError(f"{path}: class {name.split('/')[0]!r} of {name} is not in classInd.txt")
    return lower.index(parent)
