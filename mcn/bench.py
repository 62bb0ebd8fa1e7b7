"""``mcn bench step``: time and memory of a training step, every way to its gradient beside the others.

The losses are those of pre-training (:class:`mcn.stage.StageLoss`), on clips of random numbers. A step
is the gradient for a support and a query batch; the optimiser's update, the same for all, is left out. The
unit is the *plain* step: the same clips in two plain gradients. The *textbook* is one graph through the
inner update.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mcn.bank import FeatureBank, draw_negatives
from mcn.bench_measure import Times, fits, operations, peak_bytes, peak_rate, ratio, spread, take_turns
from mcn.bench_ways import WAYS, missing
from mcn.config import BenchConfig, PretrainConfig, build
from mcn.errors import MCNError
from mcn.loading import network_from_config
from mcn.memory import memory_of
from mcn.meta import Loss, Params
from mcn.network import shared_parameters
from mcn.run import choose_device, generator_for
from mcn.stage import Batch, StageLoss

ROWS = 9537  # of the bank: UCF101's training videos
DRAWN = 8  # clips that are drawn; more videos have copies, since what a step costs does not depend on them
USABLE = 0.95  # share of a device's memory that a step may fill


class Case:
    """A network, and losses of pre-training on random clips of ``videos`` videos a stage.

    >>> case = Case(build(PretrainConfig, {"backbone": "r3d_small", "frames": 8, "size": 32}), 2)
    >>> support, query = case.losses()
    >>> support(case.params).shape
    torch.Size([])
    """

    def __init__(
        self,
        config: PretrainConfig,
        videos: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.videos = config, videos
        self.network = network_from_config(config).to(device, dtype).train()
        self.params: Params = shared_parameters(self.network)
        bank = FeatureBank(ROWS, self.network.dim, generator=generator_for(config.seed, "bank"))
        self._batches = [self._batch(bank, stage, device, dtype) for stage in ("support", "query")]

    def _batch(self, bank: FeatureBank, stage: str, device: torch.device | str, dtype: torch.dtype) -> Batch:
        config, draw = self.config, generator_for(self.config.seed, "clips", stage)
        drawn = min(self.videos, DRAWN)
        shape = (2, drawn, 3, config.frames, config.size, config.size)
        clips: Tensor = torch.randn(shape, generator=draw).to(device, dtype)
        clips = clips[:, torch.arange(self.videos, device=device) % drawn]
        index = torch.randint(ROWS, (self.videos,), generator=draw)
        negatives = None
        if 0 < config.negatives < ROWS - 1:
            negatives = draw_negatives(index, ROWS, config.negatives, draw).to(device)
        rows = bank.snapshot().to(device, dtype)
        return Batch(clips[0], clips[1], index.to(device), rows, negatives, seed=config.seed)

    def losses(self) -> tuple[Loss, Loss]:
        """Support and query loss as a step makes them, anew."""
        support = StageLoss(self.network, self._batches[0], self.config)
        return support, StageLoss(self.network, self._batches[1], self.config, support)

    def step(self, way: str) -> Params:
        """The gradient of a step by one of :data:`mcn.bench_ways.WAYS`."""
        return WAYS[way](*self.losses(), self.params, self.config.lr)


@dataclass
class Memory:
    """How the peak of a step grows: ``fixed`` bytes and ``slope`` bytes a video of each stage."""

    peaks: dict[int, int]  #: bytes at each number of videos a stage
    fixed: float
    slope: float

    @classmethod
    def through(cls, peaks: dict[int, int]) -> "Memory":
        """The line through the peaks at two batch sizes.

        >>> Memory.through({2: 50, 4: 80})
        Memory(peaks={2: 50, 4: 80}, fixed=20.0, slope=15.0)
        """
        (a, low), (b, high) = sorted(peaks.items())
        slope = (high - low) / (b - a)
        return cls(peaks, low - slope * a, slope)

    def largest(self, limit: float) -> int:
        """Most videos a stage whose peak is within ``limit`` bytes.

        >>> Memory.through({2: 50, 4: 80}).largest(100)
        5
        """
        return max(0, math.floor((limit - self.fixed) / self.slope)) if self.slope > 0 else 0


def measure_memory(
    case_of: Callable[[int], Case], way: str, videos: int, device: torch.device
) -> Memory | None:
    """Peaks of a way's step at ``videos`` a stage and twice as many, or fewer where that does not fit."""
    high = 2 * max(videos, 2)
    while high >= 4:
        peaks: dict[int, int] = {}
        for number in (high // 2, high):
            try:
                peaks[number] = peak_bytes(partial(case_of(number).step, way), device)
            except torch.OutOfMemoryError:
                break
        if len(peaks) == 2:
            return Memory.through(peaks)
        high //= 2
    return None


def largest_batch(
    case_of: Callable[[int], Case], way: str, guess: int, device: torch.device, until: float = float("inf")
) -> int:
    """The largest batch up to ``guess`` whose step was seen to fit, in tries that are 5 % apart; 0: none."""
    while guess >= 2 and time.monotonic() < until:
        try:
            if fits(partial(case_of(guess).step, way), device):
                return guess
        except torch.OutOfMemoryError:  # the clips alone are too many
            pass
        guess = min(guess - 1, int(0.95 * guess))
    return 0


def bench_step(config: BenchConfig, *, seconds: float = float("inf")) -> dict[str, Any]:
    """Measure all that ``mcn bench step`` prints; gives the record's ``measured`` part.

    After ``seconds`` no further round begins, and what was not yet begun is left out (``None``).
    Raises :class:`~mcn.errors.MCNError` for an unknown way, a device that is not there, or a width that
    the backbone cannot have.
    """
    unknown = [way for way in config.ways if way not in WAYS]
    if unknown:
        raise MCNError(f"--ways: unknown {', '.join(unknown)}; there are {', '.join(WAYS)}")
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    until = time.monotonic() + seconds
    settings = build(PretrainConfig, dataclasses.asdict(config))
    case_of = partial(Case, settings, device=device)
    names = [way for way in WAYS if way in {"plain", "textbook", *config.ways}]
    notes = {way: note for way in names if (note := missing(way))}
    bar = tqdm(total=5, desc="warm-up", unit="part", leave=False)

    case, ready = case_of(config.batch_size), []
    for way in names:
        if way not in notes and fits(partial(case.step, way), device):
            ready.append(way)
        elif way not in notes:
            notes[way] = "out of memory"
    _next(bar, f"{config.rounds} rounds")
    spent = take_turns({way: partial(case.step, way) for way in ready}, device, config.rounds, until)
    _next(bar, "operations")
    rate = peak_rate(device)
    counted = {way: operations(partial(case.step, way)) for way in ready}
    del case
    _next(bar, "memory")
    memory: dict[str, Memory | None] = {}
    for way in names if config.memory else ():
        if notes.get(way) in (None, "out of memory") and time.monotonic() < until:
            memory[way] = measure_memory(case_of, way, config.batch_size, device)
    _next(bar, "largest batch")
    limit = USABLE * memory_of(device)
    resident = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    largest: dict[str, dict[str, Any]] = {}
    for way, line in memory.items():
        if line is not None:
            guess = line.largest(limit - resident)
            confirm = config.confirm and device.type == "cuda" and time.monotonic() < until
            seen = largest_batch(case_of, way, guess, device, until) if confirm else None
            largest[way] = {"by_slope": guess, "confirmed": seen or None}
    _next(bar, "")
    bar.close()
    ways = {way: _row(way, config, spent, counted, memory, largest, rate, notes) for way in names}
    if device.type == "cpu":
        _add_cpu_time(ways, spent)
    rounds = len(next(iter(spent.values()), Times([], [])).seconds)
    return {"rounds": rounds, "peak_rate": rate, "limit": limit, "ways": ways}


def _add_cpu_time(ways: dict[str, dict[str, Any]], spent: dict[str, Times]) -> None:
    """CPU time beside the clock's: what other processes leave of a busy machine changes it less."""
    for way, (_, seconds) in spent.items():
        ways[way] |= {"cpu_seconds": seconds, "median_cpu_seconds": statistics.median(seconds)}
        for unit in (unit for unit in ("plain", "textbook") if unit in spent):
            ways[way][f"cpu_time_to_{unit}"] = ratio(seconds, spent[unit].cpu_seconds)


def _next(bar: tqdm, what: str) -> None:
    bar.update()
    bar.set_description(what)


def _row(
    way: str,
    config: BenchConfig,
    spent: dict[str, Times],
    counted: dict[str, int],
    memory: dict[str, Memory | None],
    largest: dict[str, dict[str, Any]],
    rate: float,
    notes: dict[str, str],
) -> dict[str, Any]:
    """All numbers of one way; ``None`` where there is none."""
    row: dict[str, Any] = {"note": notes.get(way, "")}
    if way in spent:
        seconds = spent[way].seconds
        middle = statistics.median(seconds)
        row |= {
            "seconds": seconds,
            "median_seconds": middle,
            "spread": spread(seconds),
            "clips_per_second": 2 * config.batch_size / middle,
            "operations": counted[way],
            "share_of_peak": counted[way] / middle / rate,
        }
        for unit in ("plain", "textbook"):
            row[f"time_to_{unit}"] = ratio(seconds, spent[unit].seconds) if unit in spent else None
            row[f"operations_to_{unit}"] = counted[way] / counted[unit] if unit in spent else None
    line = memory.get(way)
    if line is not None:
        row |= {"peak_bytes": line.peaks, "fixed_bytes": line.fixed, "bytes_per_clip": line.slope}
        for unit in ("plain", "textbook"):
            other = memory.get(unit)
            row[f"memory_to_{unit}"] = line.slope / other.slope if other and other.slope > 0 else None
    if way in largest:
        row["largest_batch"] = largest[way]
    return row
