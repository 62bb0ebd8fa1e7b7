"""How right the answers of a classifier are: per clip, per video, per class, and what is taken for what.

A video's answer is the mean of its clips' probabilities (:eq:`eq-transfer-answer`, protocol row 41). Every
video of a list counts: one that cannot be read has no answer and is wrong. A tie
goes to the class that comes first.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcn.errors import MCNError
from mcn.files import csv_text, write_text


def rank_of(probabilities: Tensor, label: int) -> Tensor:
    """How many classes are placed before ``label``: ``(..., C)`` -> ``(...)`` int64; 0 is right at top-1.

    >>> rank_of(torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]]), 1)
    tensor([0, 1])
    """
    own = probabilities[..., label : label + 1]
    before = (~(probabilities <= own)).sum(-1)  # what is not a number is no answer
    return before + (probabilities[..., :label] == own).sum(-1)


@dataclass(frozen=True)
class ClassScore:
    """One class's line: its test videos, per cent right at top-1 and top-5, what it is mostly taken for."""

    name: str
    videos: int
    top1: float
    top5: float
    taken_for: str  #: the most frequent wrong answer; empty where there is none
    taken_for_videos: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Per cent of a list: ``top1`` and ``top5`` of its videos, ``clip_top1`` and ``clip_top5`` of its clips.

    ``confusion`` is ``(C, C)`` int64: rows are the true classes, columns the answers, in the order of
    ``classes``; a video that cannot be read is in no column. ``right`` ``(V,)`` bool: which videos are right
    at top-1, in the order of the list.
    """

    top1: float
    top5: float
    clip_top1: float
    clip_top5: float
    videos: int
    unreadable: int
    classes: tuple[ClassScore, ...]
    confusion: Tensor
    right: Tensor

    @property
    def chance(self) -> dict[int, float]:
        """Per cent right at top-1 and top-5 of answers that are guessed."""
        return {k: 100.0 * min(k, len(self.classes)) / len(self.classes) for k in (1, 5)}

    def summary(self) -> dict[str, float]:
        """The numbers without the tables."""
        names = ("top1", "top5", "clip_top1", "clip_top5", "videos", "unreadable")
        return {name: getattr(self, name) for name in names}

    def lines(self, clips: int) -> list[str]:
        """What to print of it: accuracies, and the best and worst classes."""
        said = [
            f"top-1 {self.top1:.1f} %, top-5 {self.top5:.1f} % a video, top-1 {self.clip_top1:.1f} %, "
            f"top-5 {self.clip_top5:.1f} % a clip ({self.videos} videos, {clips} clips each; "
            f"chance: top-1 {self.chance[1]:.1f} %, top-5 {self.chance[5]:.1f} %)"
        ]
        ordered = sorted((c for c in self.classes if c.videos), key=lambda c: -c.top1)
        few = len(ordered) <= 6
        best = ", ".join(f"{c.name} {c.top1:.0f} %" for c in (ordered if few else ordered[:3]))
        if few:
            return [*said, f"classes:      {best}"]
        return [*said, f"best classes: {best}", "worst:        " + ", ".join(map(_worst, ordered[:-4:-1]))]

    def save(self, folder: Path) -> None:
        """Write the tables: ``classes.json`` (both), ``classes.csv``, ``confusion.csv``."""
        names = [score.name for score in self.classes]
        rows = [list(vars(score).values()) for score in self.classes]
        write_text(folder / "classes.csv", csv_text([list(ClassScore.__dataclass_fields__), *rows]))
        counts = self.confusion.tolist()
        named = ([name, *row] for name, row in zip(names, counts, strict=True))
        write_text(folder / "confusion.csv", csv_text([["", *names], *named]))
        # A line a class: indented, a matrix of 400 classes would be 160,000 lines.
        scores, matrix = (_lines(of) for of in ([vars(score) for score in self.classes], counts))
        write_text(folder / "classes.json", f'{{"classes": {scores},\n"confusion": {matrix}}}\n')


def _worst(score: ClassScore) -> str:
    taken = f" (taken for {score.taken_for})" if score.taken_for else ""
    return f"{score.name} {score.top1:.0f} %{taken}"


def _lines(rows: Iterable[Any]) -> str:
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]"


class Tally:
    """Takes a list's videos one by one, in any order, and gives their :class:`Evaluation`.

    >>> tally = Tally(labels=[0, 1], classes=["jump", "run"])
    >>> tally.add(0, torch.tensor([[0.9, 0.1], [0.4, 0.6]]))
    >>> tally.add(1, torch.tensor([[0.7, 0.3], [0.6, 0.4]]))
    >>> found = tally.evaluation()
    >>> found.top1, found.clip_top1, found.confusion.tolist()
    (50.0, 25.0, [[1, 0], [1, 0]])
    """

    def __init__(self, labels: Sequence[int], classes: Sequence[str]) -> None:
        self.labels, self.classes = torch.tensor(labels), tuple(classes)
        self._answer = torch.full((len(labels),), -1)  # -1: cannot be read
        self._rank = torch.full((len(labels),), len(classes) + 5)  # behind every top-k
        self._clip_hits = torch.zeros(len(labels), 2, dtype=torch.float64)

    def add(self, video: int, clips: Tensor) -> None:
        """Take the probabilities of one video's clips, ``(clips, C)``.

        Raises :class:`~mcn.errors.MCNError` where they are not numbers.
        """
        if not clips.isfinite().all():
            raise MCNError(f"the network's answer to test video {video} is not a number: it has diverged")
        label, each = int(self.labels[video]), clips.double()
        mean = each.mean(0)
        self._rank[video] = rank_of(mean, label)
        self._answer[video] = (mean == mean.max()).nonzero()[0, 0]
        ranks = rank_of(each, label)
        self._clip_hits[video] = torch.stack([(ranks < k).double().mean() for k in (1, 5)])

    def take(self, other: "Tally") -> None:
        """Take over the videos that another tally of the same list has been given."""
        given = other._answer >= 0
        for own, found in (
            (self._answer, other._answer), (self._rank, other._rank), (self._clip_hits, other._clip_hits),
        ):  # fmt: skip
            own[given] = found[given]

    def evaluation(self) -> Evaluation:
        """The numbers of all videos; those not added are wrong."""
        read = self._answer >= 0
        count = len(self.classes)
        cells = self.labels[read] * count + self._answer[read]
        confusion = torch.bincount(cells, minlength=count * count).view(count, count)
        clip_top1, clip_top5 = (100.0 * self._clip_hits.mean(0)).tolist()
        return Evaluation(
            top1=self._share(slice(None), 1),
            top5=self._share(slice(None), 5),
            clip_top1=clip_top1,
            clip_top5=clip_top5,
            videos=len(self.labels),
            unreadable=int((~read).sum()),
            classes=tuple(self._class(c, confusion[c]) for c in range(count)),
            confusion=confusion,
            right=self._rank < 1,
        )

    def _share(self, of: Any, k: int) -> float:
        """Per cent of videos whose class is among the first ``k`` (0 of none)."""
        ranks = self._rank[of]
        return 100.0 * float((ranks < k).sum()) / max(len(ranks), 1)

    def _class(self, number: int, answers: Tensor) -> ClassScore:
        own = self.labels == number
        wrong = answers.clone()
        wrong[number] = 0
        most = int(wrong.argmax())
        return ClassScore(
            name=self.classes[number],
            videos=int(own.sum()),
            top1=self._share(own, 1),
            top5=self._share(own, 5),
            taken_for=self.classes[most] if wrong[most] else "",
            taken_for_videos=int(wrong[most]),
        )
