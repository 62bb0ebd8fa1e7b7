"""A part of the training list to choose settings on, so that the test list chooses nothing (row 42).

Clips cut from one source video look alike: a setting chosen on clips whose siblings were trained on is
chosen for remembering. So whole source videos are held out, where names tell them.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import torch

from mcn.data.datasets import Videos
from mcn.errors import MCNError
from mcn.run import generator_for

# What a clip's name adds to that of its source, in UCF101 and in HMDB51.
_CLIP_OF = (
    re.compile(r"(.+_g\d+)_c\d+"),
    re.compile(r"(.+)_[fhlu]_(?:cm|nm)_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+"),
)


def source_of(name: str) -> str:
    """What clips of one source video have in common; the name itself where it does not say.

    >>> source_of("Archery/v_Archery_g08_c03.avi"), source_of("brush_hair/clip_7.avi")
    ('Archery/v_Archery_g08', 'brush_hair/clip_7.avi')
    >>> source_of("wave/Movie_A_wave_u_nm_np1_fr_goo_12.avi")
    'wave/Movie_A_wave'
    """
    path = PurePosixPath(name)
    for pattern in _CLIP_OF:
        if match := pattern.fullmatch(path.stem):
            return str(path.with_name(match[1]))
    return name


def hold_out(videos: Videos, share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Rows of ``videos`` to train on and rows held out: about ``share`` of each class, whole sources.

    Which sources is drawn from ``seed``. A class of a single source is trained on whole. Raises
    :class:`~mcn.errors.MCNError` where that is so of every class.
    """
    sources: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, (name, label) in enumerate(zip(videos.names, videos.labels, strict=True)):
        sources[label][source_of(name)].append(row)
    held: list[int] = []
    for label, groups in sources.items():
        held += _some(list(groups.values()), share, seed, label)
    if not held:
        raise MCNError(f"{videos.folder} has one source video a class: nothing can be held out for --sweep")
    out = set(held)
    return [row for row in range(len(videos)) if row not in out], sorted(held)


def _some(groups: list[list[int]], share: float, seed: int, label: int) -> list[int]:
    """Rows of whole groups until they are ``share`` of all, one group at least left over."""
    wanted = share * sum(map(len, groups))
    order = torch.randperm(len(groups), generator=generator_for(seed, "holdout", label)).tolist()
    taken: list[int] = []
    for number in order[:-1]:
        if len(taken) >= wanted:
            break
        taken += groups[number]
    return taken


def part_of(videos: Videos, rows: Sequence[int]) -> Videos:
    """The list of some of a list's videos."""
    names, labels, files = (
        tuple(of[row] for row in rows) if of else ()
        for of in (videos.names, videos.labels, videos.files)
    )  # fmt: skip
    return replace(videos, names=names, labels=labels, files=files)  # type: ignore[arg-type]
