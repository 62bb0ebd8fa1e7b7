"""``mcn estimate``: hours and memory of the paper's runs on this device, from a short measurement.

What is measured: a plain step, a first-order step and steps of the exact order on random clips, and the plain
step of fine-tuning. What is assumed, and printed: hours grow with the number of clips; a clip of another size
costs in proportion to its pixels; memory grows by a line in the batch. Decoding, augmentation, evaluation and
what many devices lose in waiting for each other are left out.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from mcn.bench import USABLE, Case, Memory, measure_memory
from mcn.bench_measure import Work, fits, spread, take_turns
from mcn.classifier import Classifier, Head
from mcn.config import EstimateConfig, PretrainConfig, build, load_preset
from mcn.files import write_text
from mcn.memory import memory_of
from mcn.run import choose_device

BACKBONES = ("r3d_18", "r2plus1d_18", "s3d")
WAYS = ("fast", "lean", "first")
FRAMES, SIZE = 32, 128  # the paper's clip
CLASSES = 101


@dataclass(frozen=True)
class PaperRun:
    """One of the paper's runs: a stage of training on a data set."""

    name: str
    stage: str  #: pretrain or finetune, a block of the presets
    videos: int
    epochs: int
    note: str = ""


#: Training videos: UCF101 and HMDB51 split 1, Kinetics-400 as the paper counts it (row 52).
RUNS = (
    PaperRun("pre-training, UCF101", "pretrain", 9537, 500),
    PaperRun("pre-training, Kinetics, an epoch", "pretrain", 240_000, 1, "its number is not known (row 52)"),
    PaperRun("fine-tuning, UCF101", "finetune", 9537, 300),
    PaperRun("fine-tuning, HMDB51", "finetune", 3570, 300),
)


@dataclass(frozen=True)
class Cost:
    """Of one way to a step: seconds a clip, how far rounds differ, and memory by the number of videos."""

    seconds: float
    spread: float
    memory: Memory | None


def rounded(value: float, spread: float = 0.0) -> str:
    """A number with no more digits than a measurement gives: two, or one where rounds differ by a tenth.

    >>> rounded(1234.5), rounded(0.0456), rounded(37.0, spread=0.2)
    ('1200', '0.046', '40')
    """
    digits = 1 if spread > 0.1 else 2
    if value <= 0 or not math.isfinite(value):
        return "0" if value <= 0 else "?"
    place = digits - 1 - math.floor(math.log10(value))
    return f"{round(value, place):.{max(place, 0)}f}"


def duration(hours: float, spread: float = 0.0) -> str:
    """Hours in the unit that a reader thinks in.

    >>> duration(0.5), duration(30), duration(100), duration(20_000)
    ('30 min', '30 h', '4.2 days', '2.3 years')
    """
    for unit, length in (("years", 24 * 365.25), ("days", 24.0), ("h", 1.0)):
        if hours >= length * (2 if unit != "h" else 1):
            return f"{rounded(hours / length, spread)} {unit}"
    return f"{rounded(60 * hours, spread)} min"


class _Finetuning:
    """A step of fine-tuning on random clips: one view, a backbone and a classifier."""

    def __init__(self, config: PretrainConfig, videos: int, device: torch.device) -> None:
        backbone = Case(config, 2, "cpu").network.backbone(0)
        head = Head(int(backbone.out_features), CLASSES)  # type: ignore[arg-type]
        self.model = Classifier(backbone, [head]).to(device).train()
        self.clips = torch.randn(videos, 3, config.frames, config.size, config.size, device=device)
        self.labels = torch.arange(videos, device=device) % CLASSES

    def step(self, _: str = "") -> None:
        """The gradient."""
        loss = F.cross_entropy(self.model(self.clips)[0], self.labels)
        torch.autograd.grad(loss, tuple(self.model.parameters()))


def measure(config: EstimateConfig, backbone: str) -> dict[str, Cost]:
    """Cost of each way to pre-train (``fast``, ``lean``, ``first``) and of ``finetune``, at the paper's clip.

    Ways that do not fit the device's memory at ``config.batch_size`` videos are missing.
    """
    device = choose_device(config.device)
    frames, size = clip_of(config)
    settings = build(
        PretrainConfig,
        {"backbone": backbone, "width": config.width if backbone != "s3d" else None, "frames": frames,
         "size": size, "seed": config.seed},
    )  # fmt: skip
    cases: dict[str, Callable[[int], Any]] = dict.fromkeys(WAYS, partial(Case, settings, device=device))
    cases["finetune"] = partial(_Finetuning, settings, device=device)
    videos, work = config.batch_size, {}
    for way, case_of in cases.items():
        step: Work = partial(case_of(videos).step, way)
        if fits(step, device):
            work[way] = step
    spent = take_turns(work, device, config.rounds)
    del work
    scale = FRAMES * SIZE**2 / (frames * size**2)
    found = {}
    for way, (seconds, _) in spent.items():
        clips = videos if way == "finetune" else 2 * videos
        memory = measure_memory(cases[way], way, videos, device)
        if memory is not None:
            memory = dataclasses.replace(memory, slope=memory.slope * scale)
        found[way] = Cost(statistics.median(seconds) * scale / clips, spread(seconds), memory)
    return found


def clip_of(config: EstimateConfig) -> tuple[int, int]:
    """Frames and size of the measured clip: the paper's on a GPU, a smaller one on a CPU, or as asked."""
    small = choose_device(config.device).type == "cpu"  # where a step on the paper's clips takes minutes
    return config.frames or (8 if small else FRAMES), config.size or (64 if small else SIZE)


def batch_of(backbone: str, stage: str) -> int:
    """The paper's batch of a run, from the presets: videos a stage.

    >>> batch_of("r3d_18", "pretrain"), batch_of("r2plus1d_18", "finetune")
    (80, 72)
    """
    return int(load_preset(f"paper-{backbone}", stage)["batch_size"])


def lines_of(backbone: str, costs: dict[str, Cost], devices: int, memory: int) -> list[str]:
    """A backbone's part of the table: a line for each run and way."""
    lines = [f"{backbone}"]
    for run in RUNS:
        batch = batch_of(backbone, run.stage)
        for way in WAYS if run.stage == "pretrain" else ("finetune",):
            cost = costs.get(way)
            name = f"  {run.name}" + f", {way} order" * (way == "first") + f", {way}" * (way in WAYS[:2])
            if cost is None:
                lines.append(f"{name:46} did not fit at the batch that was measured")
                continue
            hours = cost.seconds * run.videos * run.epochs / devices / 3600
            lines.append(
                f"{name:46}{duration(hours, cost.spread):>9}  {_memory(cost, batch, devices, memory)}"
            )
    return lines


def _memory(cost: Cost, batch: int, devices: int, memory: int) -> str:
    if cost.memory is None:
        return "-"
    each = math.ceil(batch / devices)
    needed = cost.memory.fixed + cost.memory.slope * each
    most = cost.memory.largest(USABLE * memory)
    fits_in = "fits" if needed <= USABLE * memory else f"too much: at most {most} a device"
    return f"{rounded(needed / 2**30):>5} GiB at batch {each}, {fits_in}"


def estimate(config: EstimateConfig) -> list[str]:
    """What ``mcn estimate`` prints."""
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    frames, size = clip_of(config)
    memory = memory_of(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    lines = [
        f"The paper's runs at {FRAMES} frames of {SIZE} x {SIZE} on {name} ({memory / 2**30:.0f} GiB), "
        f"{torch.get_num_threads()} threads, float32",
    ]
    for backbone in tqdm(config.backbones, desc="measuring", unit="backbone", leave=False):
        lines += lines_of(backbone, measure(config, backbone), config.devices, memory)
    lines += [
        f"Method: median of {config.rounds} steps of {config.batch_size} videos a stage on random clips of "
        f"{frames} x {size} x {size}, times clips of the run.",
        "Memory: line through the peaks at two batch sizes, weights and optimiser apart.",
        "Not in it: decoding, augmentation, evaluation (mcn doctor measures the first two).",
    ]
    if (frames, size) != (FRAMES, SIZE):
        factor = FRAMES * SIZE**2 / (frames * size**2)
        lines.append(
            f"Assumed: a clip of the paper costs {factor:.3g} times a measured one, as its pixels are."
        )
    if config.devices > 1:
        lines.append(
            f"Assumed: {config.devices} devices share the batch and are {config.devices} times as fast; "
            "none of them was measured together."
        )
    return lines


def run(config: EstimateConfig) -> None:
    """Measure, print, and write the lines to ``config.out`` if it names a file."""
    lines = estimate(config)
    print("\n".join(lines))
    if config.out:
        write_text(Path(config.out), "\n".join(lines) + "\n")
