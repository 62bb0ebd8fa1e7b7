"""What a probe of frozen features may ask for beside the class: the source (scene), the direction of motion.

Each question is a pair of lists with labels of its own: fit on the first, score on the second. Together they
say what features encode: a network that tells sources apart within a class sees scenes, one that tells which
way an object turns sees motion.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import torch

from mcn.data.datasets import Videos
from mcn.errors import MCNError
from mcn.features import Features
from mcn.holdout import part_of, source_of
from mcn.preparation.synthetic import read_settings, turning, video_key

TARGETS = ("class", "group", "direction")
#: What each is, for the line of protocol.
MEANING = {
    "class": "",
    "group": "target: the source video (scene) among those of its class, on the test list; each half of a "
    "source's clips is scored by a fit to the other",
    "direction": "target: whether the object turns clockwise, within each action that turns",
}
_NEEDS = {
    "group": "a class with two sources of two test videos, by names as UCF101, HMDB51 and the synthetic "
    "actions have them",
    "direction": "an action that turns (Spin, Orbit, SwaySpin), with both directions among its training "
    "videos",
}
DIRECTIONS = ("anticlockwise", "clockwise")


class Question(NamedTuple):
    """Features to fit to and features to score, with the labels that are asked for."""

    train: Features
    test: Features


def questions(target: str, train: Features, test: Features) -> list[Question]:
    """The questions of a target, whose answers are counted together.

    * ``class``: one, the lists as they are.
    * ``group``: which source a clip was cut from, a class at a time, so that to know the class does not help.
      A group of the built-in synthetic actions is a scene that all classes share, which is asked of all at
      once. Of the **test list** alone: pre-training has not seen its videos, so no memory of them counts.
      Every other clip of a source is scored by a fit to the rest, and the other way round; sources of a
      single clip are left out.
    * ``direction``: which way the object turns, of each of the synthetic actions that turn.

    Raises :class:`~mcn.errors.MCNError` for a target that the data does not have.
    """
    if target == "class":
        return [Question(train, test)]
    found = list(_groups(test)) if target == "group" else list(_directions(train, test))
    if not found:
        raise MCNError(f"{test.videos.root}: --target {target} needs {_NEEDS[target]}")
    return found


def _groups(test: Features) -> Iterable[Question]:
    sources = [source_of(name) for name in test.videos.names]
    classes_of = defaultdict(set)
    for source, label in zip(sources, test.videos.labels, strict=True):
        classes_of[source].add(label)
    shared = any(len(classes) > 1 for classes in classes_of.values())
    for wanted in [None] if shared else range(len(test.videos.classes)):
        clips = defaultdict(list)  # rows of each source
        for row, (source, label) in enumerate(zip(sources, test.videos.labels, strict=True)):
            if wanted in (None, label):
                clips[source].append(row)
        several = {source: rows for source, rows in clips.items() if len(rows) > 1}
        if len(several) < 2:
            continue
        halves = [
            _part(
                test, {row: n for n, rows in enumerate(several.values()) for row in rows[start::2]}, several
            )
            for start in (0, 1)
        ]
        yield Question(halves[0], halves[1])
        yield Question(halves[1], halves[0])


def _directions(train: Features, test: Features) -> Iterable[Question]:
    for label in range(len(test.videos.classes)):
        lists = []
        for features in (train, test):
            turns = _turns(features.videos, label)
            lists.append(_part(features, {row: int(turn > 0) for row, turn in turns.items()}, DIRECTIONS))
        if len(set(lists[0].videos.labels)) == len(DIRECTIONS) and len(lists[1].x):
            yield Question(*lists)


def _turns(videos: Videos, label: int) -> dict[int, int]:
    """Which way the object turns in the videos of a class, by row; those that do not turn are left out."""
    config = read_settings(videos.root)
    found = {}
    for row, name in enumerate(videos.names):
        if videos.labels[row] == label and (turn := turning(config, *video_key(PurePosixPath(name).name))):
            found[row] = turn
    return found


def _part(features: Features, labels: dict[int, int], classes: Iterable[str]) -> Features:
    """Some rows with labels of their own."""
    rows: Sequence[int] = list(labels)
    videos = dataclasses.replace(
        part_of(features.videos, rows), labels=tuple(labels.values()), classes=tuple(classes)
    )
    return Features(features.x[torch.tensor(rows, dtype=torch.int64)], videos)
