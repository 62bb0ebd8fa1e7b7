"""A part of the training list to choose settings on, so that the test list chooses nothing (row 42).

Clips cut from one source video look alike: a setting chosen on clips whose siblings were trained on is
chosen for remembering. So whole source videos are held out, where names tell them (for the built-in
synthetic actions whole scenes, which all classes share).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import torch

from mcn.data.datasets import Videos, load_videos
from mcn.errors import MCNError
from mcn.preparation._scenes import MOTIONS
from mcn.run import generator_for
from mcn.settings import DataConfig

#: Share of the training list that ``validation`` holds out.
VALIDATION_SHARE = 0.2

# What a clip's name adds to that of its source, in UCF101 and in HMDB51.
_CLIP_OF = (
    re.compile(r"(.+_g\d+)_c\d+"),
    re.compile(r"(.+)_[fhlu]_(?:cm|nm)_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+"),
)

_SYNTHETIC = re.compile(rf"v_(?P<motion>{'|'.join(MOTIONS)})_(?P<group>g\d+)_c\d+")


def source_of(name: str) -> str:
    """What clips of one source video have in common; the name itself where it does not say.

    In UCF101 and HMDB51 it has the class in it. A group of the built-in synthetic actions is one scene in
    all classes.

    >>> source_of("Archery/v_Archery_g08_c03.avi"), source_of("brush_hair/clip_7.avi")
    ('Archery/v_Archery_g08', 'brush_hair/clip_7.avi')
    >>> source_of("wave/Movie_A_wave_u_nm_np1_fr_goo_12.avi")
    'wave/Movie_A_wave'
    >>> source_of("Sway/v_Sway_g08_c03.mp4"), source_of("Bob/v_Bob_g08_c01.mp4")
    ('g08', 'g08')
    """
    path = PurePosixPath(name)
    if (match := _SYNTHETIC.fullmatch(path.stem)) and path.parent.name == match["motion"]:
        return match["group"]
    for pattern in _CLIP_OF:
        if match := pattern.fullmatch(path.stem):
            return str(path.with_name(match[1]))
    return name


def videos_of(config: DataConfig, subset: str) -> Videos:
    """The list that a run with these settings takes for ``subset``: its data set's, by its split.

    With ``config.validation`` both lists are parts of the training list, the same for every seed, and the
    test list is not opened. Raises :class:`~mcn.errors.MCNError` as :func:`mcn.data.datasets.load_videos`
    and :func:`hold_out` do.
    """
    videos = (
        _validation(config, subset) if config.validation else load_videos(config.data, subset, config.split)
    )
    return of_classes(videos, config.classes) if config.classes and len(videos) else videos


def _validation(config: DataConfig, subset: str) -> Videos:
    every = load_videos(config.data, "train", config.split)
    if not every.labels:
        raise MCNError(f"{config.data} has no labels: --validation holds out a part of each class")
    kept, held = hold_out(every, VALIDATION_SHARE)
    rows = {"train": kept, "test": held}.get(subset, range(len(every)))
    part = part_of(every, rows)
    return replace(part, layout=f"{every.layout}; {subset}: {len(part)} of its {len(every)} training videos")


def list_of(config: DataConfig, subset: str) -> Videos:
    """:func:`videos_of` for a list that an evaluation cannot do without.

    Raises :class:`~mcn.errors.MCNError` for an empty one, too.
    """
    videos = videos_of(config, subset)
    if not len(videos):
        raise MCNError(
            f"{config.data} has no {subset} list: an evaluation needs the split lists of its data set "
            f"(recognised: {videos.layout}); without one, mcn retrieve --query and mcn features work"
        )
    return videos


def labelled_lists(config: DataConfig) -> tuple[Videos, Videos]:
    """The training and the test list, both with labels: what a number of an evaluation takes.

    Raises :class:`~mcn.errors.MCNError` where one of them is missing or has no labels.
    """
    test, train = (list_of(config, subset) for subset in ("test", "train"))
    for videos in (test, train):
        videos.check_labels()
    return train, test


def hold_out(videos: Videos, share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Rows of ``videos`` to train on and rows held out: about ``share`` of each class, whole sources.

    Which sources is drawn from ``seed``, until each class has its share; a source that several classes have
    is held out in all of them. Each class keeps one source at least to train on, so that a class of a single
    source is trained on whole. Raises :class:`~mcn.errors.MCNError` where that is so of every class.
    """
    sources: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(videos.names):
        sources[source_of(name)].append(row)
    groups = list(sources.values())
    left = Counter(label for rows in groups for label in {videos.labels[row] for row in rows})
    wanted = {label: share * count for label, count in Counter(videos.labels).items()}
    held: list[int] = []
    for number in torch.randperm(len(groups), generator=generator_for(seed, "holdout")).tolist():
        videos_a_class = Counter(videos.labels[row] for row in groups[number])
        if min(left[label] for label in videos_a_class) > 1 and any(
            wanted[label] > 0 for label in videos_a_class
        ):
            held += groups[number]
            for label, count in videos_a_class.items():
                left[label] -= 1
                wanted[label] -= count
    if not held:
        raise MCNError(f"{videos.folder} has one source video a class: nothing can be held out")
    out = set(held)
    return [row for row in range(len(videos)) if row not in out], sorted(held)


def of_classes(videos: Videos, classes: Sequence[str]) -> Videos:
    """The list of the videos of some classes, which are numbered anew in the order that they had.

    Raises :class:`~mcn.errors.MCNError` for a class that there is not.
    """
    if unknown := [name for name in classes if name not in videos.classes]:
        known = (
            f"of {len(videos.classes)}: {', '.join(videos.classes[:4])}, ..."
            if videos.classes
            else "it has none"
        )
        raise MCNError(f"{videos.folder} has no class {unknown[0]!r} ({known})")
    numbers = {old: new for new, old in enumerate(n for n, c in enumerate(videos.classes) if c in classes)}
    part = part_of(videos, [row for row, label in enumerate(videos.labels) if label in numbers])
    line = f"{videos.layout}; {len(part)} of its {len(videos)} videos, of {len(numbers)} classes"
    labels = tuple(numbers[label] for label in part.labels)
    return replace(part, labels=labels, classes=tuple(videos.classes[old] for old in numbers), layout=line)


def part_of(videos: Videos, rows: Sequence[int]) -> Videos:
    """The list of some of a list's videos."""
    names, labels, files = (
        tuple(of[row] for row in rows) if of else ()
        for of in (videos.names, videos.labels, videos.files)
    )  # fmt: skip
    return replace(videos, names=names, labels=labels, files=files)  # type: ignore[arg-type]
