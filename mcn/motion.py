"""How well activation maps cover what moves, over a list of videos, with intervals.

Motion lift and AUC are defined in :mod:`mcn.attention`; they are this project's, not the paper's. A
control goes with them: the lift of *another video's* map on the same motion, which says what is due to
where and when things usually move.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mcn.attend import places, watched_networks
from mcn.attention import counted_pixels, motion_coverage, moving_pixels
from mcn.clip_features import evaluation_crops
from mcn.config import AttendConfig
from mcn.data.loader import TestClips, readable_videos
from mcn.errors import MCNError
from mcn.files import csv_text
from mcn.holdout import list_of
from mcn.run import choose_device, generator_for

_MEASURES = "motion lift and AUC are this project's measures, not the paper's; 95 % bootstrap over videos"
_RESAMPLES = 2000


def protocol(config: AttendConfig) -> str:
    """What the numbers of a config are, in a line."""
    return (
        f"{_MEASURES}; moving: residual above {config.threshold}, repeated frames and black bars left out; "
        f"{config.clips} clips, {config.view}, split {config.split}"
    )


@dataclass(frozen=True)
class Interval:
    """A mean over videos and its 95 % bootstrap interval; NaN where there is too little."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of the finite values and the 2.5th and 97.5th percentile of the means of resampled lists.

    >>> bootstrap([2.0, 2.0, math.nan])
    Interval(mean=2.0, low=2.0, high=2.0)
    """
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return Interval(math.nan, math.nan, math.nan)
    mean = float(known.mean())
    if len(known) == 1:
        return Interval(mean, math.nan, math.nan)
    random = np.random.default_rng(seed)
    drawn = (random.integers(len(known), size=(100, len(known))) for _ in range(_RESAMPLES // 100))
    means = np.concatenate([known[rows].mean(axis=1) for rows in drawn])
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


@dataclass
class Measured:
    """One network's coverage of a list of videos: a number a video, the mean over its clips."""

    title: str
    place: str  #: path of its checkpoint
    lift: list[float] = field(default_factory=list)
    auc: list[float] = field(default_factory=list)
    other: list[float] = field(default_factory=list)  #: lift of another video's map on this one's motion


@dataclass
class Motion:
    """What :func:`measure` finds: names and motion of the videos, in order of reading, and each network.

    ``rows``: where each video is in its list.
    """

    networks: list[Measured]
    rows: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    moving: list[float] = field(default_factory=list)
    undecided: Counter[str] = field(default_factory=Counter)  #: reasons of clips that tell nothing

    def lines(self, seed: int = 0) -> list[str]:
        """The result in words."""
        said = []
        for each in self.networks:
            said.append(
                f"{each.title} ({each.place}): motion lift {bootstrap(each.lift, seed)}, "
                f"AUC {bootstrap(each.auc, seed)}"
            )
            said.append(f"    another video's map on the same motion: lift {bootstrap(each.other, seed)}")
        if len(self.networks) == 2:
            lift, auc = (bootstrap(self.gain(of), seed) for of in ("lift", "auc"))
            said.append(f"{self.networks[1].title} minus {self.networks[0].title}: lift {lift}, AUC {auc}")
        decided = sum(math.isfinite(value) for value in self.networks[-1].lift)
        said.append(f"{decided} of {len(self.names)} videos tell still from moving pixels")
        said += [
            f"    not counted, {number} of their clips: {reason}"
            for reason, number in self.undecided.most_common()
        ]
        return said

    def gain(self, of: str) -> list[float]:
        """The second network's number minus the first's, a video."""
        first, second = (getattr(network, of) for network in self.networks)
        return [b - a for a, b in zip(first, second, strict=True)]

    def numbers(self, seed: int = 0) -> dict[str, float]:
        """Every mean and its ends by name, those that are defined."""
        found = {
            f"{each.title}/{of}/{end}": value
            for each in self.networks
            for of in ("lift", "auc", "other")
            for end, value in dataclasses.asdict(bootstrap(getattr(each, of), seed)).items()
        }
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def table(self) -> str:
        """A line a video in the order of their list, as CSV."""
        head = [f"{each.title} {of}" for each in self.networks for of in ("lift", "auc")]
        rows = [["video", "moving", *head]]
        for i in sorted(range(len(self.rows)), key=self.rows.__getitem__):
            values = [value[i] for each in self.networks for value in (each.lift, each.auc)]
            rows.append([self.names[i], *(f"{value:.6g}" for value in (self.moving[i], *values))])
        return csv_text(rows)


def measure(config: AttendConfig, subset: str) -> Motion:
    """Motion lift and AUC of every readable video of a list, averaged over ``config.clips`` clips.

    Videos are read in a random order of the seed, so that each can lend its first clip's map to the next:
    what *that* covers of another video's motion is due to where things usually move, not to seeing it.
    Raises :class:`~mcn.errors.MCNError` for an empty list.
    """
    device = choose_device(config.device)
    videos = list_of(config, subset)
    print(f"{subset}: {videos.announced(config.size)}")
    networks = watched_networks(config, device)
    titles = (network.title for network in networks)
    found = Motion([Measured(*both) for both in zip(titles, places(config), strict=True)])
    clips = TestClips(
        videos, frames=config.frames, stride=config.stride, clips=config.clips,
        reader=config.reader, timeout=config.read_timeout,
    )  # fmt: skip
    order = torch.randperm(len(videos), generator=generator_for(config.seed, "attend")).tolist()
    first: tuple[Tensor, Tensor] | None = None
    last: list[Tensor] = []
    for index, raw in readable_videos(clips, config.workers, config.max_bad, "motion", order):
        crops = evaluation_crops(raw.to(device), config.size)
        shown = crops.cpu()
        moving = moving_pixels(shown, config.threshold)
        counted = torch.stack([counted_pixels(clip) for clip in shown])
        made = [network.maps(crops, config) for network in networks]
        found.rows.append(index)
        found.names.append(videos.names[index])
        _add(found, made, moving, counted)
        if first is None:
            first = (moving[0], counted[0])
        else:
            _lend(found, last, moving[0], counted[0])
        last = [maps[0] for maps in made]
    if first is None:
        raise MCNError(f"none of the {len(videos)} videos of {videos.folder} can be read")
    if len(found.names) > 1:
        _lend(found, last, *first)
    return found


def _add(found: Motion, made: list[Tensor], moving: Tensor, counted: Tensor) -> None:
    """One video's numbers."""
    share = math.nan
    reasons: list[set[str]] = [set() for _ in moving]
    for network, maps in zip(found.networks, made, strict=True):
        each = [motion_coverage(*clip) for clip in zip(maps, moving, counted, strict=True)]
        network.lift.append(_mean([one.lift for one in each]))
        network.auc.append(_mean([one.auc for one in each]))
        reasons = [known | {one.reason} for known, one in zip(reasons, each, strict=True)]
        share = _mean([one.moving for one in each])
    found.moving.append(share)
    found.undecided.update(reason for each_clip in reasons for reason in each_clip - {""})


def _lend(found: Motion, last: list[Tensor], moving: Tensor, counted: Tensor) -> None:
    """How the maps of another video cover this one's motion."""
    for network, attention in zip(found.networks, last, strict=True):
        network.other.append(motion_coverage(attention, moving, counted).lift)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
