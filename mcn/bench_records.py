"""What a benchmark leaves: a table on the terminal and a JSON record that says how it was made."""

import dataclasses
import json
import re
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mcn._cores import usable_cores
from mcn.bench import bench_step
from mcn.bench_ways import versions
from mcn.config import BenchConfig
from mcn.errors import MCNError
from mcn.files import write_text
from mcn.run import choose_device, environment

FORMAT = 1
_NOT_SETTINGS = {"out", "device", "threads", "seed"}  # where and how it ran, said elsewhere in the record
METHOD = {
    "time": "median over rounds in which the ways take turns; ratios are medians of those inside a round; "
    "the gradient of a step, without the optimiser's update",
    "cpu_time": "the same of the CPU time of the process, all threads together, where the device is a CPU: "
    "on a machine that others use too it is the steadier one",
    "plain": "two plain gradients, of the support clips and of the query clips",
    "textbook": "one graph through the inner update (create_graph=True), differentiated as a whole",
    "clip": "a clip of one video in both its views; a step takes as many for support as for query",
    "memory": "peak of allocated bytes above what was there before the step; a clip's is the slope between "
    "two batch sizes, for one support and one query clip",
    "share_of_peak": "operations of matrix products and convolutions a second, of the fastest float32 "
    "matrix product measured on this device (with TF32 where convolutions use it)",
    "largest_batch": "videos a stage: by the line through the two peaks in 95 % of the device's memory; "
    "confirmed by doing that step, on a GPU",
}


def record(
    benchmark: str, setting: dict[str, Any], seed: int, device: torch.device, measured: dict[str, Any]
) -> dict[str, Any]:
    """A record: what was measured, and on what, with which code.

    >>> sorted(record("none", {}, 0, torch.device("cpu"), {"x": 1}))[:4]
    ['benchmark', 'commit', 'cores', 'device']
    """
    about = environment(device)
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "setting": setting,
        "seed": seed,
        "device": about["device"],
        "cores": usable_cores(),
        "threads": about["threads"],
        "versions": {name: about[name] for name in ("mcn", "python", "torch", "torchvision")} | versions(),
        "commit": about["commit"],
        **measured,
    }


def step_record(config: BenchConfig, *, seconds: float = float("inf")) -> dict[str, Any]:
    """Measure by :func:`mcn.bench.bench_step` and give the whole record."""
    start = time.monotonic()
    measured = bench_step(config, seconds=seconds)
    setting = {key: v for key, v in dataclasses.asdict(config).items() if key not in _NOT_SETTINGS}
    measured |= {"method": METHOD, "wall_seconds": round(time.monotonic() - start, 1)}
    return record("step", setting, config.seed, choose_device(config.device), measured)


def file_name(made: dict[str, Any]) -> str:
    """Name of a step's record: backbone, width, clip, batch and device.

    >>> setting = {"backbone": "r3d_18", "width": 16, "frames": 8, "size": 64, "batch_size": 4}
    >>> file_name({"setting": setting, "device": "NVIDIA H100 80GB", "benchmark": "step"})
    'step-r3d_18-width16-8x64-batch4-nvidia-h100-80gb.json'
    """
    setting = made["setting"]
    width = f"-width{setting['width']}" if setting["width"] else ""
    device = re.sub(r"[^a-z0-9_]+", "-", made["device"].lower()).strip("-")
    clip = f"{setting['frames']}x{setting['size']}"
    return (
        f"{made['benchmark']}-{setting['backbone']}{width}-{clip}-batch{setting['batch_size']}-{device}.json"
    )


def save(made: dict[str, Any], path: Path) -> Path:
    """Write a record, numbers with five digits."""
    write_text(path, json.dumps(_rounded(made), indent=1, allow_nan=False) + "\n")
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {str(key): _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value


def load_steps(folder: Path) -> list[dict[str, Any]]:
    """The records of steps in a folder, by file name.

    Raises :class:`~mcn.errors.MCNError` for a file that is none or of another format.
    """
    found = []
    for path in sorted(folder.glob("step-*.json")):
        try:
            made = json.loads(path.read_text())
            known = made["format"] == FORMAT and made["ways"].keys() >= {"plain", "textbook"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MCNError(f"{path}: not a record of mcn bench step: {error!r} (measure again)") from error
        if not known:
            raise MCNError(f"{path}: not a record of format {FORMAT} (measure again)")
        found.append(made)
    return found


_COLUMNS: tuple[tuple[str, str, Callable[[Any], str], int], ...] = (
    ("ms", "median_seconds", lambda v: f"{1e3 * v:.0f}", 8),
    ("/plain", "time_to_plain", lambda v: f"{v:.2f}", 7),
    ("/textb.", "time_to_textbook", lambda v: f"{v:.2f}", 8),
    ("clips/s", "clips_per_second", lambda v: f"{v:.3g}", 8),
    ("% peak", "share_of_peak", lambda v: f"{100 * v:.0f}", 7),
    ("MiB/clip", "bytes_per_clip", lambda v: f"{v / 2**20:.1f}", 10),
    ("/plain", "memory_to_plain", lambda v: f"{v:.2f}", 7),
    ("/textb.", "memory_to_textbook", lambda v: f"{v:.2f}", 8),
    ("peak MiB", "peak_bytes", lambda v: f"{max(v.values()) / 2**20:.0f}", 9),
    ("largest batch", "largest_batch", lambda v: _largest(v), 14),
)


def _largest(found: dict[str, Any]) -> str:
    return f"{found['confirmed']} seen" if found["confirmed"] else f"~{found['by_slope']}"


def _cell(value: Any, show: Callable[[Any], str]) -> str:
    return "-" if value is None else show(value)


def table(made: dict[str, Any]) -> list[str]:
    """A record's lines for a terminal of 100 columns."""
    s = made["setting"]
    width = f", width {s['width']}" if s["width"] else ""
    clip = f"{s['frames']} frames of {s['size']} x {s['size']}"
    lines = [
        f"{s['backbone']}{width}, {clip}, {s['batch_size']} videos a stage",
        f"{made['device']}, {made['threads']} threads, torch {made['versions']['torch']}, "
        f"{made['rounds']} rounds in turn; peak {made['peak_rate'] / 1e9:.4g} GFLOP/s (measured)",
        "way         " + "".join(title.rjust(size) for title, _, _, size in _COLUMNS),
    ]
    for way, row in made["ways"].items():
        cells = [_cell(row.get(key), show).rjust(size) for _, key, show, size in _COLUMNS]
        known = any(row.get(key) is not None for _, key, _, _ in _COLUMNS)
        lines.append(f"{way:12}{''.join(cells) * known}{'  ' * known}{row['note']}".rstrip())
    cpu = {
        way: row["cpu_time_to_textbook"] for way, row in made["ways"].items() if "cpu_time_to_textbook" in row
    }
    said = ", ".join(f"{way} {value:.2f}" for way, value in cpu.items())
    return lines + textwrap.wrap(f"CPU time / textbook: {said}" if said else "", 100)


def run(config: BenchConfig) -> None:
    """Measure, print the table, write the record."""
    made = step_record(config)
    print("\n".join(table(made)))
    print(f"record: {save(made, Path(config.out) / file_name(made))}")
