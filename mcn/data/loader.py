"""Clips for training: workers decode, the main process augments on the device.

Every draw (order of videos, where a clip starts, its augmentation) has a generator of its own,
seeded by (run seed, epoch, position). So the clips of a step do not depend on the number of workers
and a resumed run goes on exactly where it was by starting the plan at a later step.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mcn.data.augment import Augmentation, AugmentConfig, augment_batch, center_crop, draw_augmentation
from mcn.data.datasets import Videos
from mcn.data.flow import flow_folder, read_flow
from mcn.data.readers import VideoError, open_video
from mcn.data.sampling import random_clip, uniform_clips
from mcn.errors import MCNError
from mcn.run import generator_for
from mcn.views import make_views

_REPLACEMENTS = 20  # draws before a clip is given up


class Request(NamedTuple):
    """One clip to be drawn: which video, and what seeds the draw."""

    video: int
    epoch: int
    position: int


class Clip(NamedTuple):
    """One decoded clip, not yet augmented."""

    frames: Tensor  #: uint8 (T + 1, H, W, 3)
    flow: Tensor | None  #: uint8 (T, H, W, 3) for the flow views
    augmentation: Augmentation | None
    video: int  #: the one it came from, which is a replacement's if the one asked for was bad
    bad: tuple[tuple[str, str], ...]  #: (name, reason) of videos that could not be read


class Step(NamedTuple):
    """The videos of one outer step; ``support`` is empty without meta stages."""

    support: list[Request]
    query: list[Request]


def steps_per_epoch(num_videos: int, batch_size: int, stages: bool) -> int:
    """Outer steps of one pass: ``D / 2B`` with meta stages, else ``D / B`` (protocol row 21).

    >>> steps_per_epoch(100, 10, stages=True), steps_per_epoch(100, 10, stages=False)
    (5, 10)
    """
    return num_videos // (2 * batch_size if stages else batch_size)


def epoch_plan(
    num_videos: int, batch_size: int, epoch: int, seed: int, stages: bool, redraw: bool = True
) -> list[Step]:
    """The steps of an epoch: a seeded permutation, cut into support and query halves (row 20).

    ``redraw=False`` keeps the halves of the first epoch and only changes the order within them.

    >>> [len(step.support) for step in epoch_plan(10, 2, 0, 0, stages=True)]
    [2, 2]
    """
    order = _permuted(list(range(num_videos)), seed, epoch if redraw else 0)
    half = num_videos // 2 if stages else 0
    support, query = order[:half], order[half:]
    if not redraw:
        support, query = _permuted(support, seed, epoch), _permuted(query, seed, epoch)
    requests = [Request(video, epoch, position) for position, video in enumerate(support + query)]
    return [
        Step(
            requests[i * batch_size : (i + 1) * batch_size] if stages else [],
            requests[half + i * batch_size : half + (i + 1) * batch_size],
        )
        for i in range(steps_per_epoch(num_videos, batch_size, stages))
    ]


def _permuted(videos: list[int], seed: int, epoch: int) -> list[int]:
    order = torch.randperm(len(videos), generator=generator_for(seed, "order", epoch))
    return [videos[i] for i in order.tolist()]


def _check_reader(reader: str) -> None:
    """Refuse a reader that is not installed here: raised in a worker it would be a wall of traceback."""
    with suppress(VideoError):
        open_video("", reader)  # looks at the reader first


class TrainClips(Dataset[Clip]):
    """Random clips of ``frames + 1`` frames, so that ``frames`` residuals exist (row 14).

    A video that cannot be read is replaced by another, drawn from the same generator; the clip says
    which failed and why.
    """

    def __init__(
        self,
        videos: Videos,
        *,
        frames: int,
        stride: int = 1,
        reader: str = "auto",
        augment: AugmentConfig | None = None,
        flow: str | None = None,
        seed: int = 0,
    ) -> None:
        _check_reader(reader)
        self.videos, self.frames, self.stride, self.reader = videos, frames, stride, reader
        self.augment, self.flow, self.seed = augment, flow, seed

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, request: Request) -> Clip:
        generator = generator_for(self.seed, "clip", request.epoch, request.position)
        video = request.video
        bad: list[tuple[str, str]] = []
        for _ in range(_REPLACEMENTS):
            try:
                return self._read(video, generator, tuple(bad))
            except VideoError as error:
                bad.append((self.videos.names[video], str(error)))
                video = int(torch.randint(len(self.videos), (), generator=generator))
        # Not an exception: one raised in a worker would reach the user as a wall of traceback.
        return Clip(torch.empty(0), None, None, video, tuple(bad))

    def _read(self, video: int, generator: torch.Generator, bad: tuple[tuple[str, str], ...]) -> Clip:
        with open_video(self.videos.path(video), self.reader) as opened:
            indices = random_clip(len(opened), self.frames + 1, self.stride, generator)
            frames = torch.from_numpy(opened.frames(indices))
        height, width = frames.shape[1:3]
        flow = None
        if self.flow:
            flow = torch.from_numpy(
                read_flow(flow_folder(self.videos, video), indices, self.flow, height, width)
            )
        augmentation = draw_augmentation(self.augment, height, width, generator) if self.augment else None
        return Clip(frames, flow, augmentation, video, bad)


def leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; only the main one answers, in one line.

    A worker whose clip is no longer fetched then meets a closed connection: nobody's news either.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shown = sys.excepthook
    sys.excepthook = lambda kind, error, trace: (
        None if issubclass(kind, EOFError | ConnectionError) else shown(kind, error, trace)
    )


def train_steps(
    dataset: TrainClips, plan: Iterator[Step], workers: int, pin: bool = False
) -> Iterator[tuple[list[Clip], list[Clip]]]:
    """Decoded (support, query) clips of each step of ``plan``, in order, ahead of time."""
    sizes: list[int] = []

    def batches() -> Iterator[list[Request]]:
        for step in plan:
            sizes.append(len(step.support))
            yield [*step.support, *step.query]

    loader: DataLoader[Clip] = DataLoader(
        dataset,
        batch_sampler=batches(),
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=leave_interrupts,
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
    )
    for clips in loader:
        support = sizes.pop(0)
        yield clips[:support], clips[support:]


def clip_views(
    clips: list[Clip], size: int, view2: str, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Augment a list of clips on ``device`` and make both views.

    Gives two normalised ``(B, 3, T, size, size)`` tensors and the videos' rows ``(B,)``. Both views
    of a clip share one augmentation (row 15); flow takes its crop and flip but no colour (row 55).
    """
    for clip in clips:
        if clip.frames.numel() == 0:
            raise MCNError(f"{len(clip.bad)} videos in a row could not be read, the last: {clip.bad[-1][1]}")
    frames = _augmented([c.frames for c in clips], clips, size, device, colour=True)
    flow = None
    if view2 in ("flow_u", "flow_v"):
        flow = _augmented([c.flow for c in clips if c.flow is not None], clips, size, device, colour=False)
        if view2 == "flow_u":  # mirrored, what moved left moves right
            flipped = torch.tensor(
                [bool(c.augmentation and c.augmentation.flip) for c in clips], device=flow.device
            )
            flow = torch.where(flipped.view(-1, 1, 1, 1, 1), 1 - flow, flow)
    first, second = make_views(frames, view2, flow)
    return first, second, torch.tensor([c.video for c in clips], device=device)


def _augmented(
    frames: list[Tensor], clips: list[Clip], size: int, device: torch.device | str, colour: bool
) -> Tensor:
    frames = [f.to(device, non_blocking=True) for f in frames]
    draws = [c.augmentation for c in clips if c.augmentation is not None]
    if len(draws) < len(frames):
        return torch.stack([center_crop(f, size) for f in frames])
    return augment_batch(frames, draws, size, colour=colour)


@dataclass
class BadVideos:
    """Names each unreadable video once, counts them, and stops a run that has too many."""

    total: int
    limit: float
    seen: dict[str, str] = field(default_factory=dict)

    def report(self, bad: tuple[tuple[str, str], ...], remedy: str = "another is drawn instead") -> list[str]:
        """Take note of failures; gives a line for each video not seen before.

        ``remedy`` says what is done about it. Raises :class:`~mcn.errors.MCNError` once more than
        ``limit`` of all videos are bad.
        """
        new = [(name, reason) for name, reason in dict(bad).items() if name not in self.seen]
        self.seen.update(new)
        if len(self.seen) > self.limit * self.total:
            raise MCNError(
                f"{len(self.seen)} of {self.total} videos cannot be read, the limit is {self.limit:.0%}. "
                f"The last: {list(self.seen.values())[-1]} (mend or remove them, or raise --max_bad)"
            )
        return [f"unreadable video, {remedy}: {reason}" for _, reason in new]

    def summary(self) -> str:
        """One line for the end of a run."""
        names = ", ".join(list(self.seen)[:5]) + (", ..." if len(self.seen) > 5 else "")
        return f"{len(self.seen)} of {self.total} videos could not be read: {names}"


class TestClips(Dataset[tuple[int, Tensor | None, str]]):
    """Evenly spread clips of each video: ``(index, uint8 (clips, T + 1, H, W, 3), reason)``.

    The clips are ``None`` where the video cannot be read, and the reason is empty where it can.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, videos: Videos, *, frames: int, stride: int, clips: int, reader: str = "auto") -> None:
        _check_reader(reader)
        self.videos, self.frames, self.stride, self.clips, self.reader = videos, frames, stride, clips, reader

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            with open_video(self.videos.path(index), self.reader) as video:
                wanted = uniform_clips(len(video), self.frames + 1, self.stride, self.clips)
                read = video.frames([i for clip in wanted for i in clip])
        except VideoError as error:
            return index, None, str(error)
        return index, torch.from_numpy(read).unflatten(0, (self.clips, self.frames + 1)), ""


def readable_videos(
    dataset: TestClips, workers: int, max_bad: float, progress: str = ""
) -> Iterator[tuple[int, Tensor]]:
    """Index and clips ``(clips, T + 1, H, W, 3)`` of each video that can be read.

    The others are named, counted against ``max_bad`` and summed up at the end; what asks counts
    them as wrong. ``progress`` names a bar; empty shows none.
    """
    bad = BadVideos(len(dataset), max_bad)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=leave_interrupts)
    bar = tqdm(loader, desc=progress, disable=not progress, unit="video", dynamic_ncols=True)
    for index, raw, reason in bar:
        if raw is None:
            for line in bad.report(((dataset.videos.names[index], reason),), "counted as wrong"):
                tqdm.write(line)
            continue
        yield index, raw
    if bad.seen:
        tqdm.write(bad.summary())
