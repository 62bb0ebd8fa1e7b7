"""One cell of an ablation from settings to record: pre-trained, evaluated once at its last epoch.

Run as ``python -m mcn.cell JSON``, so that cells run beside each other and one that dies is only itself.
"""

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mcn.ablation import Cell, portable, preset_of, protocol_of, recorded
from mcn.config import (
    AttendConfig,
    FinetuneConfig,
    PretrainConfig,
    ProbeConfig,
    RetrieveConfig,
    build,
    load_preset,
)
from mcn.data.datasets import load_videos
from mcn.errors import MCNError
from mcn.finetune import finetune
from mcn.motion import bootstrap, measure
from mcn.pretrain import pretrain
from mcn.probe import headline_probe, run_probe
from mcn.results import DataUsed, Record, write_record
from mcn.retrieval import run_retrieval
from mcn.run import choose_device, environment, read_metrics


def run_cell(cell: Cell, name: str) -> Record:
    """Pre-train one cell, continuing where a run stopped, evaluate it once, and give its record.

    ``name`` is what the record calls the data.
    """
    began = time.monotonic()
    device = choose_device(cell.settings["device"])
    torch.set_num_threads(cell.settings["threads"])
    run = _pretrained(cell)
    metrics: dict[str, float] = {}
    setting: dict[str, Any] = {"pretrain": recorded(cell)}
    for what in cell.evaluate:
        config = _settings(cell, run, what)
        metrics |= _EVALUATIONS[what][-1](config)
        setting[what] = portable(dataclasses.asdict(config))
    known = environment(device)
    sizes = [len(load_videos(cell.settings["data"], s, cell.settings["split"])) for s in ("train", "test")]
    return Record(
        table=cell.table,
        row=cell.row,
        setting=setting,
        seed=cell.seed,
        metrics={key: round(value, 4) for key, value in metrics.items()},
        data=DataUsed(name, cell.settings["split"], *sizes),
        profile=cell.profile,
        protocol=protocol_of(cell.evaluate),
        device=known["device"],
        versions={key: str(known[key]) for key in ("mcn", "python", "torch", "torchvision")},
        commit=known["commit"],
        wall_seconds=round(time.monotonic() - began, 1),
        curve=_curve(run) if cell.trained else {},
    )


def _pretrained(cell: Cell) -> Path | None:
    if not cell.trained:
        return None
    where = {"out": str(cell.run / "pretrain"), "seed": cell.seed}
    return pretrain(build(PretrainConfig, {**cell.settings, **where}))


def _settings(cell: Cell, run: Path | None, what: str) -> Any:
    """The settings of an evaluation: the profile's, with the cell's clips, data and seed."""
    kind, command, changes, _ = _EVALUATIONS[what]
    shared = ("data", "split", "device", "threads", "reader", "frames", "stride", "size", "backbone", "width")
    settings = {key: cell.settings[key] for key in shared if key in cell.settings}
    where = {"checkpoint": str(run or ""), "seed": cell.seed, "out": str(cell.run / what)}
    where |= {"from_scratch": run is None}
    preset = preset_of(cell.profile, cell.settings["backbone"])
    return build(kind, {**load_preset(preset, command), **settings, **where, **changes})


def _probe(config: ProbeConfig) -> dict[str, float]:
    return {"probe_top1": run_probe(config).top1}


def _headline(config: ProbeConfig) -> dict[str, float]:
    _, found = headline_probe(config)
    return {"headline_top1": found.top1, "headline_top5": found.top5}


def _retrieval(config: RetrieveConfig) -> dict[str, float]:
    return {f"retrieval_top{k}": value for k, value in run_retrieval(config).accuracy.items()}


def _finetune(config: FinetuneConfig) -> dict[str, float]:
    _, found = finetune(config)
    assert found is not None  # ablate has asked for a test list
    return {"finetune_top1": found.top1, "finetune_top5": found.top5}


def _motion(config: AttendConfig) -> dict[str, float]:
    auc = bootstrap(measure(config, "test").networks[0].auc, config.seed).mean
    if not math.isfinite(auc):
        raise MCNError(f"{config.data}: nothing moves in its test videos, so there is nothing to cover")
    return {"motion_auc": 100 * auc}


# What each is called in --evaluate: its settings' class and preset block, what is fixed, what it measures.
_EVALUATIONS: dict[str, tuple[type, str, dict[str, Any], Callable[[Any], dict[str, float]]]] = {
    "probe": (ProbeConfig, "probe", {"recipe": "quick"}, _probe),
    "headline": (ProbeConfig, "probe", {"recipe": "headline"}, _headline),
    "retrieval": (RetrieveConfig, "retrieve", {}, _retrieval),
    "finetune": (FinetuneConfig, "finetune", {}, _finetune),
    "motion": (AttendConfig, "attend", {}, _motion),
}


def _curve(run: Path | None) -> dict[str, list[float | None]]:
    """Means over each epoch of what pre-training has logged."""
    assert run is not None
    lines = read_metrics(run / "metrics.jsonl")
    epochs = sorted({int(line["epoch"]) for line in lines})
    names = [name for name in ("loss", "contrast", "classification") if name in lines[0]]
    curve: dict[str, list[float | None]] = {"epoch": [float(epoch + 1) for epoch in epochs]}
    for name in names:
        of = [[line[name] for line in lines if line["epoch"] == epoch] for epoch in epochs]
        curve[name] = [round(statistics.fmean(values), 5) for values in of]
    return curve


def main(call: str) -> int:
    """Run the cell that ``call``, a JSON object, describes; the record goes into the cell's folder."""
    given = json.loads(call)
    cell = Cell(**{**given["cell"], "evaluate": tuple(given["cell"]["evaluate"])})
    try:
        write_record(run_cell(cell, given["name"]), cell.run / "record.json")
    except MCNError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
