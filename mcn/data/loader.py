"""Clips for training: workers decode, the main process augments on the device.

Every draw (order of videos, where a clip starts, its augmentation) has a generator of its own,
seeded by (run seed, epoch, position). So the clips of a step do not depend on the number of workers
and a resumed run goes on exactly where it was by starting the plan at a later step.
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mcn.data._batched import sent
from mcn.data.augment import (
    Augmentation,
    AugmentConfig,
    augment_batch,
    center_crop_batch,
    draw_augmentation,
)
from mcn.data.bad import BadVideos, damaged_line
from mcn.data.datasets import Videos
from mcn.data.flow import flow_folder, read_flow
from mcn.data.plan import Request, Step
from mcn.data.readers import VideoError, check_reader
from mcn.data.safe import OpenVideo, open_safely
from mcn.data.sampling import random_clip, uniform_clips
from mcn.data.supervise import TIMEOUT
from mcn.data.videoinfo import VideoInfo
from mcn.distributed import Ranks
from mcn.errors import MCNError
from mcn.run import generator_for
from mcn.views import make_views

_REPLACEMENTS = 20  # draws before a clip is given up


class Clip(NamedTuple):
    """One decoded clip, not yet augmented."""

    frames: Tensor  #: uint8 (T + 1, H, W, 3)
    flow: Tensor | None  #: uint8 (T, H, W, 3) for the flow views
    augmentation: Augmentation | None
    video: int  #: the one it came from, which is a replacement's if the one asked for was bad
    bad: tuple[tuple[str, str], ...]  #: (name, reason) of videos that could not be read
    damage: str = ""  #: what is wrong with the video that it came from, if anything


class TrainClips(Dataset[Clip]):
    """Random clips of ``frames + 1`` frames, so that ``frames`` residuals exist (row 14).

    A video that cannot be read is replaced by another, drawn from the same generator; the clip says
    which failed and why. Of a damaged video the readable part is used, if a clip fits into it.
    ``timeout`` is the longest silence of the decoder, in seconds.
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
        timeout: float = TIMEOUT,
    ) -> None:
        check_reader(reader)
        self.videos, self.frames, self.stride, self.reader = videos, frames, stride, reader
        self.augment, self.flow, self.seed, self.timeout = augment, flow, seed, timeout

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
        with self.videos.open(video, self.reader, self.timeout) as opened:
            check_length(opened, self.frames + 1, self.stride)
            indices = random_clip(len(opened), self.frames + 1, self.stride, generator)
            frames = torch.from_numpy(opened.frames(indices))
        height, width = frames.shape[1:3]
        flow = None
        if self.flow:
            flow = torch.from_numpy(
                read_flow(flow_folder(self.videos, video), indices, self.flow, height, width)
            )
        augmentation = draw_augmentation(self.augment, height, width, generator) if self.augment else None
        return Clip(frames, flow, augmentation, video, bad, opened.info.damage)


def check_readable(clip: Clip) -> None:
    """Raise :class:`~mcn.errors.MCNError` for a clip that was given up after too many replacements."""
    if clip.frames.numel() == 0:
        raise MCNError(f"{len(clip.bad)} videos in a row could not be read, the last: {clip.bad[-1][1]}")


def check_length(video: OpenVideo, length: int, stride: int) -> None:
    """Refuse a damaged video of which less is readable than a clip of ``length`` frames takes.

    A sound video may be as short as it likes. Raises :class:`~mcn.data.readers.VideoError`.
    """
    needed = (length - 1) * stride + 1
    if video.info.damage and len(video) < needed:
        raise VideoError(
            f"{video.path}: {video.info.damage}; {len(video)} frames can be read, a clip takes {needed}"
        )


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
        check_readable(clip)
    frames = _augmented([c.frames for c in clips], clips, size, device, colour=True)
    flow = None
    if view2 in ("flow_u", "flow_v"):
        flow = _augmented([c.flow for c in clips if c.flow is not None], clips, size, device, colour=False)
        if view2 == "flow_u":  # mirrored, what moved left moves right
            flipped = torch.tensor([bool(c.augmentation and c.augmentation.flip) for c in clips])
            flow = torch.where(sent(flipped, device).view(-1, 1, 1, 1, 1), 1 - flow, flow)
    first, second = make_views(frames, view2, flow)
    return first, second, sent(torch.tensor([c.video for c in clips]), device)


def _augmented(
    frames: list[Tensor], clips: list[Clip], size: int, device: torch.device | str, colour: bool
) -> Tensor:
    draws = [c.augmentation for c in clips if c.augmentation is not None]
    if len(draws) < len(frames):
        return center_crop_batch(frames, size, device=device)
    return augment_batch(frames, draws, size, colour, device)


class TestClips(Dataset[tuple[int, Tensor | None, str]]):
    """Evenly spread clips of each video: ``(index, uint8 (clips, T + 1, H, W, 3), reason)``.

    The clips are ``None`` where the video cannot be read, and the reason says why; with clips, it
    says what is wrong with the video, and is empty for a sound one.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(
        self,
        videos: Videos,
        *,
        frames: int,
        stride: int,
        clips: int,
        reader: str = "auto",
        timeout: float = TIMEOUT,
    ) -> None:
        check_reader(reader)
        self.videos, self.frames, self.stride, self.clips = videos, frames, stride, clips
        self.reader, self.timeout = reader, timeout

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            with self.videos.open(index, self.reader, self.timeout) as video:
                return index, clips_of(video, self.frames, self.stride, self.clips), video.info.damage
        except VideoError as error:
            return index, None, str(error)


def clips_of(video: OpenVideo, frames: int, stride: int, clips: int) -> Tensor:
    """Evenly spread clips of an open video: ``uint8 (clips, frames + 1, H, W, 3)``.

    Raises :class:`~mcn.data.readers.VideoError` for a video that cannot be read, or of which too
    little can.
    """
    check_length(video, frames + 1, stride)
    wanted = uniform_clips(len(video), frames + 1, stride, clips)
    read = video.frames([i for clip in wanted for i in clip])
    return torch.from_numpy(read).unflatten(0, (clips, frames + 1))


def clips_of_file(
    path: str | Path,
    *,
    frames: int,
    stride: int,
    clips: int,
    reader: str = "auto",
    timeout: float = TIMEOUT,
) -> tuple[Tensor, VideoInfo]:
    """:func:`clips_of` one video file, and what is known of it; says on standard error if it is damaged."""
    with open_safely(path, reader, timeout=timeout) as video:
        if video.info.damage:
            print(damaged_line(str(path), video.info.damage), file=sys.stderr)
        return clips_of(video, frames, stride, clips), video.info


def readable_videos(
    dataset: TestClips,
    workers: int,
    max_bad: float,
    progress: str = "",
    only: Sequence[int] | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> Iterator[tuple[int, Tensor]]:
    """Index and clips ``(clips, T + 1, H, W, 3)`` of each video that can be read.

    The others are named, counted against ``max_bad`` and summed up at the end; what asks counts
    them as wrong. ``progress`` names a bar; empty shows none. ``only`` are the videos wanted, of which
    ``max_bad`` is not a share: it is one of the whole list. Of several ``ranks`` the first is told at the end
    what the others could not read.
    """
    bad = BadVideos(len(dataset), max_bad)
    loader = DataLoader(
        dataset,
        sampler=range(len(dataset)) if only is None else only,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=leave_interrupts,
        prefetch_factor=1 if workers else None,  # the clips of a long film are gigabytes
    )
    bar = tqdm(loader, desc=progress, disable=not progress, unit="video", dynamic_ncols=True)
    found: list[tuple[str, str, bool]] = []

    def tell(name: str, reason: str, readable: bool) -> None:
        both = bad.note(name, reason) if readable else bad.report(((name, reason),), "counted as wrong")
        for line in both:
            tqdm.write(line)

    for index, raw, reason in bar:
        if reason:
            found.append((dataset.videos.names[index], reason, raw is not None))
            tell(*found[-1])
        if raw is not None:
            yield index, raw
    for others in ranks.to_first(found):
        for each in others:
            tell(*each)
    for line in bad.summary():
        tqdm.write(line)
