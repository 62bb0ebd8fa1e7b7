"""Is this GPU ready? Exactness, steps, loader and largest batches in one go, each recorded when it is done.

``make gpu`` runs ``python tests/benchmarks/gpu.py`` (ten minutes at most); ``--smoke`` does the same at a
tiny size on a CPU, to see that the script works. Wants torch, torchvision and the package's other needs but
decord and a network. Parts that fail or run out of their time are told of at the end, with exit status 1;
what was done before stays recorded in ``--out``.
"""

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout, installed or not

from mcn.bench import Case
from mcn.bench_records import file_name, record, save, step_record, table
from mcn.config import BenchConfig, PretrainConfig, build
from mcn.doctor import diagnose
from mcn.preparation.synthetic import SyntheticConfig, write_synthetic_actions

OUT = Path(__file__).resolve().parents[2] / "book" / "results" / "benchmarks"
BACKBONES = ("r3d_18", "r2plus1d_18", "s3d")
OURS = BenchConfig().ways
METHODS = ("fast", "balanced", "lean")
BAR = 1e-9  # largest difference of a float64 gradient from the CPU's, relative to its largest entry

#: Seconds that each part may take; together less than ten minutes.
BUDGETS = {"exactness": 100, "step r3d_18": 120, "step r2plus1d_18": 140, "step s3d": 120, "loader": 60}
OTHER = 60  # a part of --smoke


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one run of the script."""

    device: torch.device
    frames: int
    size: int
    videos: int
    width: int | None  #: None: the backbones' own
    rounds: int
    ways: tuple[str, ...]
    backbones: tuple[str, ...]
    clips: int  #: of made-up videos that the loader is timed on
    seed: int = 0


def full(device: torch.device) -> Plan:
    """The paper's clips, on a GPU."""
    return Plan(device, 32, 128, 4, None, 9, OURS, BACKBONES, clips=8)


def smoke(device: torch.device) -> Plan:
    """Seconds, on anything."""
    return Plan(device, 4, 16, 2, 4, 1, ("fast", "lean"), ("r3d_small",), clips=3)


def exactness(plan: Plan) -> dict[str, Any]:
    """Every exact way in float64 on the device against the textbook's graph on the CPU, at reduced width."""
    worst: dict[str, dict[str, float]] = {}
    for backbone in plan.backbones:
        width = None if backbone == "s3d" else 4
        size = 32 if backbone == "s3d" else 16
        settings = build(
            PretrainConfig,
            {"backbone": backbone, "width": width, "dim": 8, "frames": 8, "size": size, "seed": plan.seed},
        )
        expected = Case(settings, 2, "cpu", torch.float64).step("textbook")
        largest = max(g.abs().max().item() for g in expected.values())
        case = Case(settings, 2, plan.device, torch.float64)
        worst[backbone] = {}
        for way in ("textbook", *METHODS):
            found = case.step(way)
            distance = max((found[name].cpu() - g).abs().max().item() for name, g in expected.items())
            worst[backbone][way] = distance / largest
    return {"bar": BAR, "worst": worst}


def step(plan: Plan, backbone: str, seconds: float) -> dict[str, Any]:
    """``mcn bench step`` with the largest batch, in about so many seconds."""
    config = BenchConfig(
        backbone=backbone,  # type: ignore[arg-type]
        width=None if backbone == "s3d" else plan.width,
        frames=plan.frames,
        size=plan.size,
        batch_size=plan.videos,
        rounds=plan.rounds,
        ways=plan.ways,
        device=str(plan.device),
        seed=plan.seed,
    )
    made = step_record(config, seconds=seconds)
    print("\n".join(table(made)))
    return made


def loader(plan: Plan, seconds: float) -> dict[str, Any]:
    """``mcn doctor`` on made-up videos: decoding by workers, augmentation on the device, and a step."""
    with tempfile.TemporaryDirectory() as folder:
        scene = SyntheticConfig(classes=2, groups=plan.clips, frames=max(plan.frames + 8, 24))
        data = write_synthetic_actions(Path(folder) / "data", scene)
        settings = {
            "data": str(data), "reader": "pyav", "frames": plan.frames, "size": plan.size, "order": "none",
            "batch_size": plan.videos, "device": str(plan.device), "backbone": "r3d_18", "width": plan.width,
            "workers": 0 if plan.device.type == "cpu" else 8, "seed": plan.seed,
        }  # fmt: skip
        found = diagnose(build(PretrainConfig, settings), seconds / 8)
    print("\n".join(found.lines()))
    return {"seconds_a_clip": dataclasses.asdict(found), "limit": found.limit}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in what takes longer."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not done in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def parts(plan: Plan) -> dict[str, Callable[[], dict[str, Any]]]:
    """The parts by name, in order; a part leaves a third of its budget for what has begun to end."""
    made: dict[str, Callable[[], dict[str, Any]]] = {"exactness": lambda: exactness(plan)}
    for backbone in plan.backbones:
        name = f"step {backbone}"
        made[name] = lambda backbone=backbone, name=name: step(
            plan, backbone, BUDGETS.get(name, OTHER) * 2 / 3
        )
    seconds = BUDGETS["loader"] / 2 if plan.rounds > 1 else 2.0
    made["loader"] = lambda: loader(plan, seconds)
    return made


def finished(name: str, plan: Plan, measured: dict[str, Any], out: Path) -> Path:
    """Record a part: a step's record as it is, any other with what it was measured on."""
    if measured.get("benchmark") == "step":
        return save(measured, out / file_name(measured))
    setting = {key: v for key, v in dataclasses.asdict(plan).items() if key not in ("device", "seed")}
    made = record(name, setting, plan.seed, plan.device, measured)
    stem = file_name(
        {**made, "setting": {"backbone": "r3d_18", "batch_size": plan.videos, **setting}}
    ).removesuffix(".json")
    return save(made, out / f"{stem}.json")


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; gives the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, on the CPU unless --device says else"
    )
    parser.add_argument("--device", default="", help="cuda, cuda:1, cpu; default: cuda, with --smoke cpu")
    parser.add_argument(
        "--out", type=Path, default=None, help="folder of the records (smoke: a temporary one)"
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device or ("cpu" if options.smoke else "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU that PyTorch can use: see --smoke for a try on the CPU", file=sys.stderr)
        return 2
    plan = smoke(device) if options.smoke else full(device)
    out = options.out or (Path(tempfile.mkdtemp()) if options.smoke else OUT)
    failures, start = [], time.monotonic()
    for name, work in parts(plan).items():
        print(f"== {name} (at {time.monotonic() - start:.0f} s)", flush=True)
        try:
            with within(BUDGETS.get(name, OTHER)):
                measured = work()
            print(f"record: {finished(name, plan, measured, out)}", flush=True)
            if name == "exactness":
                print(json.dumps(measured["worst"]))
                worst = max(each for ways in measured["worst"].values() for each in ways.values())
                if not worst <= BAR:
                    failures.append(f"exactness: {worst:.1e} is more than {BAR:.0e}")
        except Exception as error:  # whatever one part meets, the next ones are still measured
            traceback.print_exc()
            failures.append(f"{name}: {type(error).__name__}: {error}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"{time.monotonic() - start:.0f} s; {'; '.join(failures) or 'all parts done'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
