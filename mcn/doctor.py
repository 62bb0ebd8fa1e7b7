"""``mcn doctor``: what limits a run on this machine, measured, and what to do about it.

A run is a pipeline: worker processes decode clips, the main process augments them on the device and
then trains on them. Decoding overlaps with the rest, so a run is as fast as the slower of the two
sides, and only making that side faster helps.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle
from statistics import fmean

import torch
from tqdm import tqdm

from mcn._cores import usable_cores
from mcn.composes import check_together
from mcn.config import PretrainConfig
from mcn.data.bad import BadVideos
from mcn.data.datasets import Videos
from mcn.data.loader import Clip, TrainClips, check_readable, train_steps
from mcn.data.manifest import SETTINGS
from mcn.data.plan import Request, Step
from mcn.errors import MCNError
from mcn.holdout import videos_of
from mcn.loop import training_clips
from mcn.pretrain import Pretraining
from mcn.run import choose_device

_VIDEOS = 24  # looked at one by one
_ON_CPU = 4  # videos a batch at most when the network runs on a CPU, where a whole one takes minutes


@dataclass(frozen=True)
class Diagnosis:
    """Seconds a clip that each stage takes, and what follows.

    ``first_look`` is a whole decode of a video that has not been seen before (if not ``new``: opening one
    that has); ``read`` one clip in one process; ``loader`` one clip from all workers together; ``augment``
    and ``network`` one clip in the main process.
    """

    first_look: float
    read: float
    loader: float
    augment: float
    network: float
    workers: int
    cores: int
    prepared: bool
    device: str
    new: bool = True

    @property
    def limit(self) -> str:
        """What a run waits for: ``decoding``, ``augmentation`` or ``network``."""
        if self.loader > self.augment + self.network:
            return "decoding"
        return "augmentation" if self.augment > self.network else "network"

    @property
    def advice(self) -> str:
        """What to do about it, in a sentence or two."""
        if self.limit == "network":
            return (
                "the network; its data comes fast enough. A faster device, --order first, "
                "or smaller --frames and --size make the difference."
            )
        if self.limit == "augmentation":
            return (
                f"augmentation, which runs on the {self.device} in the main process: train on a GPU, "
                "or see what --augment false gives."
            )
        need = max(self.workers + 1, -(-self.read // max(self.augment + self.network, 1e-9)))
        told = ["decoding."]
        if self.workers < self.cores:
            told.append(f"Try --workers {int(min(need, self.cores))}; this machine has {self.cores} cores.")
        if not self.prepared:
            told.append(
                "Prepare the data once (the verb `prepare` of data_scripts/folder.py, ucf101.py, ...): small "
                "videos are read several times as fast, packed ones faster still."
            )
        elif len(told) == 1:
            told.append("The data is prepared; what is left is a machine with more cores or a faster disk.")
        return " ".join(told)

    @property
    def _opening(self) -> str:
        """What ``first_look`` has timed."""
        if self.prepared:
            return "open a video, prepared"
        return "first look at a video (once)" if self.new else "open a video, looked at before"

    def lines(self) -> list[str]:
        """The table that is printed."""
        overall = max(self.loader, self.augment + self.network)
        stages = [
            (self._opening, self.first_look),
            ("read a clip, one process", self.read),
            (f"read a clip, {self.workers} worker{'s' * (self.workers > 1)}", self.loader),
            (f"augment a clip, {self.device}", self.augment),
            (f"train on a clip, {self.device}", self.network),
        ]
        table = [f"  {name:32}{1e3 * each:10.2f} ms{_rate(each):>20}" for name, each in stages]
        return [*table, f"  a run: {_rate(overall)}; it is limited by {self.advice}"]


def _rate(seconds: float) -> str:
    rate = 1 / max(seconds, 1e-9)
    return f"{rate:,.0f} a second" if rate >= 100 else f"{rate:.1f} a second"


def diagnose(config: PretrainConfig, seconds: float = 5.0) -> Diagnosis:
    """Time every stage of a run with these settings, each for about ``seconds`` where it can be cut short.

    Raises :class:`~mcn.errors.MCNError` for data of which too much cannot be read.
    """
    check_together("pretrain", config)
    device = choose_device(config.device)
    if device.type == "cpu":
        config = dataclasses.replace(config, batch_size=min(config.batch_size, _ON_CPU))
    videos = videos_of(config, "train")
    print(videos.announced(config.size))
    first_look, new = _first_look(videos, config, seconds)
    dataset = training_clips(videos, config, config.view2 if config.view2.startswith("flow") else None)
    read, clips = _read(dataset, config, seconds)
    loader = _loader(dataset, config, seconds) if config.workers else read
    augment, network = _train(config, clips, len(videos), device, seconds)
    return Diagnosis(
        first_look,
        read,
        loader,
        augment,
        network,
        workers=max(config.workers, 1),
        cores=usable_cores(),
        prepared=(videos.root / SETTINGS).exists(),
        device="GPU" if device.type == "cuda" else device.type.upper(),
        new=new,
    )


def _first_look(videos: Videos, config: PretrainConfig, seconds: float) -> tuple[float, bool]:
    """Seconds to open a video, on average, and whether it had to be looked at: of those that had, if any."""
    bad = BadVideos(len(videos), config.max_bad)
    step = max(1, len(videos) // _VIDEOS)
    times: dict[bool, list[float]] = {True: [], False: []}
    end = time.perf_counter() + seconds
    for index in tqdm(range(0, len(videos), step), desc="first look", unit="video", leave=False):
        new, start = not videos.known(index), time.perf_counter()
        try:
            with videos.open(index, config.reader, config.read_timeout) as opened:
                lines = bad.note(videos.names[index], opened.info.damage)
        except MCNError as error:
            lines = bad.report(((videos.names[index], str(error)),), "counted")
        times[new].append(time.perf_counter() - start)
        for line in lines:
            tqdm.write(line)
        if time.perf_counter() > end:
            break
    new = bool(times[True])
    return fmean(times[new]), new


def _timed(once: Callable[[], int], seconds: float, device: torch.device | None = None) -> float:
    """Seconds a clip of a call that deals with some clips and gives their number; one call warms up."""

    def done() -> int:
        count = once()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return count

    done()
    clips, start = 0, time.perf_counter()
    while clips == 0 or time.perf_counter() - start < seconds:
        clips += done()
    return (time.perf_counter() - start) / clips


def _read(dataset: TrainClips, config: PretrainConfig, seconds: float) -> tuple[float, list[Clip]]:
    """Seconds a clip in this process, and two batches of clips."""
    kept: list[Clip] = []
    step = max(1, len(dataset) // _VIDEOS)
    videos = cycle(range(0, len(dataset), step))

    def once() -> int:
        clip = dataset[Request(next(videos), 0, len(kept))]
        check_readable(clip)
        if len(kept) < 2 * config.batch_size:
            kept.append(clip)
        return 1

    each = _timed(once, seconds)
    while len(kept) < 2 * config.batch_size:
        once()
    return each, kept


def _loader(dataset: TrainClips, config: PretrainConfig, seconds: float) -> float:
    """Seconds a clip from all workers, without anybody who uses them."""
    # The videos that have been looked at: a first look would count as reading.
    seen = cycle(range(0, len(dataset), max(1, len(dataset) // _VIDEOS)))

    def plan() -> Iterator[Step]:
        for position in count():
            yield Step([], [Request(next(seen), 0, position) for _ in range(config.batch_size)])

    steps = train_steps(dataset, plan(), config.workers)
    return _timed(lambda: len(next(steps)[1]), seconds)


def _train(
    config: PretrainConfig, clips: list[Clip], videos: int, device: torch.device, seconds: float
) -> tuple[float, float]:
    """Seconds a clip for augmentation, and for the network with its update."""
    training = Pretraining(config, videos, device)
    support, query = clips[: config.batch_size], clips[config.batch_size :]

    def augment() -> int:
        training.batch(query, 0, "query")
        return len(query)

    augmenting = _timed(augment, seconds / 2, device)
    stages = config.order != "none"
    batches = (training.batch(support, 0, "support") if stages else None, training.batch(query, 0, "query"))

    def update() -> int:
        training.update(*batches, lr=0.0)
        return len(query) + (len(support) if stages else 0)

    return augmenting, _timed(update, seconds, device)
