"""One cell of an ablation from settings to record: pre-trained, evaluated once at its last epoch.

Run as ``python -m mcn.cell JSON``, so that cells run beside each other and one that dies is only itself.
"""

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mcn.ablation import Cell, portable, preset_of, recorded
from mcn.config import (
    AttendConfig,
    FinetuneConfig,
    PretrainConfig,
    ProbeConfig,
    RetrieveConfig,
    build,
    load_preset,
)
from mcn.errors import MCNError
from mcn.finetune import finetune
from mcn.hits import hits_of
from mcn.holdout import videos_of
from mcn.metrics import Evaluation
from mcn.motion import bootstrap, measure
from mcn.pretrain import pretrain
from mcn.probe import headline_probe, run_probe
from mcn.results import DataUsed, Record, write_record
from mcn.retrieval import run_retrieval
from mcn.run import choose_device, environment, read_metrics
from mcn.settings import DataConfig
from mcn.tuning import DIVERGED

Right = dict[str, Sequence[bool]]  # by metric, for each test video
Found = tuple[dict[str, float], Right]


def run_cell(cell: Cell, name: str) -> Record:
    """Pre-train one cell, continuing where a run stopped, evaluate it once, and give its record.

    ``name`` is what the record calls the data.
    """
    began = time.monotonic()
    device = choose_device(cell.settings["device"])
    torch.set_num_threads(cell.settings["threads"])
    metrics: dict[str, float] = {}
    right: Right = {}
    run, done = _trained(cell)
    setting: dict[str, Any] = {"pretrain": recorded(cell), **({"tuned": cell.tuned} if cell.tuned else {})}
    if done < 1:
        metrics[DIVERGED] = 100 * done
    for what in cell.evaluate if done == 1 else ():
        config = _settings(cell, run, what)
        numbers, hits = _EVALUATIONS[what][-1](config)
        metrics, right = metrics | numbers, right | hits
        setting[what] = portable(dataclasses.asdict(config))
    known = environment(device)
    lists = build(DataConfig, {**cell.settings, "classes": cell.unseen})
    train, test = (videos_of(lists, subset) for subset in ("train", "test"))
    return Record(
        table=cell.table,
        row=cell.row,
        setting=setting,
        seed=cell.seed,
        metrics={key: round(value, 4) for key, value in metrics.items()},
        data=DataUsed(name, cell.settings["split"], len(train), len(test), cell.about),
        profile=cell.profile,
        protocol=cell.protocol,
        device=known["device"],
        versions={key: str(known[key]) for key in ("mcn", "python", "torch", "torchvision")},
        commit=known["commit"],
        wall_seconds=round(time.monotonic() - began, 1),
        curve=_curve(run, build(PretrainConfig, cell.settings)) if cell.trained else {},
        hits=hits_of(test.names, right),
    )


def _trained(cell: Cell) -> tuple[Path | None, float]:
    """The run of a cell, and the share of its epochs that was done: all, unless its loss diverged."""
    try:
        return _pretrained(cell), 1.0
    except MCNError as error:
        if not isinstance(error.__cause__, FloatingPointError):
            raise
        print(error, file=sys.stderr)
    run = cell.run / "pretrain"
    return run, max((line["epoch"] for line in _logged(run)), default=0.0) / cell.settings["epochs"]


def _logged(run: Path) -> list[dict[str, float]]:
    """What pre-training has logged: nothing, where the network that it was to start from had diverged."""
    path = run / "metrics.jsonl"
    return read_metrics(path) if path.exists() else []


def _pretrained(cell: Cell) -> Path | None:
    if not cell.trained:
        return None
    where = {"out": str(cell.run / "pretrain"), "seed": cell.seed}
    if cell.after:
        where["init_from"] = str(_pretrained(dataclasses.replace(cell, **cell.after, after={})))
    return pretrain(build(PretrainConfig, {**cell.settings, **where}))


def _settings(cell: Cell, run: Path | None, what: str) -> Any:
    """The settings of an evaluation: the profile's, with the cell's clips, data and seed."""
    kind, command, changes, _ = _EVALUATIONS[what]
    shared = (
        "data", "split", "validation", "device", "threads", "reader", "frames", "stride", "size", "backbone",
        "width",
    )  # fmt: skip
    settings = {key: cell.settings[key] for key in shared if key in cell.settings}
    where = {"checkpoint": str(run or ""), "seed": cell.seed, "out": str(cell.run / what)}
    where |= {"from_scratch": run is None, "classes": cell.unseen}
    preset = preset_of(cell.profile, cell.settings["backbone"])
    return build(kind, {**load_preset(preset, command), **settings, **where, **changes})


def _probe(config: ProbeConfig) -> Found:
    found = run_probe(config)
    return {"probe_top1": found.top1}, {"probe_top1": found.right}


def _headline(config: ProbeConfig) -> Found:
    return _named("headline", headline_probe(config)[1])


def _retrieval(config: RetrieveConfig) -> Found:
    found = run_retrieval(config)
    right: Right = {"retrieval_top1": found.right.tolist()} if 1 in found.accuracy else {}
    return {f"retrieval_top{k}": value for k, value in found.accuracy.items()}, right


def _finetune(config: FinetuneConfig) -> Found:
    found = finetune(config)[1]
    assert found is not None  # ablate has asked for a test list
    return _named("finetune", found)


def _named(what: str, found: Evaluation) -> Found:
    numbers = {f"{what}_top1": found.top1, f"{what}_top5": found.top5}
    return numbers, {f"{what}_top1": found.right.tolist()}


def _motion(config: AttendConfig) -> Found:
    auc = bootstrap(measure(config, "test").networks[0].auc, config.seed).mean
    if not math.isfinite(auc):
        raise MCNError(f"{config.data}: nothing moves in its test videos, so there is nothing to cover")
    return {"motion_auc": 100 * auc}, {}


# What each is called in --evaluate: its settings' class and preset block, what is fixed, what it measures.
_EVALUATIONS: dict[str, tuple[type, str, dict[str, Any], Callable[[Any], Found]]] = {
    "probe": (ProbeConfig, "probe", {"recipe": "quick"}, _probe),
    "headline": (ProbeConfig, "probe", {"recipe": "headline"}, _headline),
    "retrieval": (RetrieveConfig, "retrieve", {}, _retrieval),
    "finetune": (FinetuneConfig, "finetune", {}, _finetune),
    "motion": (AttendConfig, "attend", {}, _motion),
}


def _curve(run: Path | None, config: PretrainConfig) -> dict[str, list[float | None]]:
    """Means over each epoch of what pre-training has logged, and the seconds that its steps took."""
    assert run is not None
    lines = _logged(run)
    if not lines:  # diverged at once
        return {}
    epochs = sorted({int(line["epoch"]) for line in lines})
    names = [name for name in ("loss", "contrast", "classification") if name in lines[0]]
    curve: dict[str, list[float | None]] = {"epoch": [float(epoch + 1) for epoch in epochs]}
    for name in names:
        of = [[line[name] for line in lines if line["epoch"] == epoch] for epoch in epochs]
        curve[name] = [round(statistics.fmean(values), 5) for values in of]
    each = config.batch_size * (2 if config.order != "none" else 1)  # videos a step
    took = [[each / line["clips_per_second"] for line in lines if line["epoch"] == epoch] for epoch in epochs]
    curve["seconds"] = [round(sum(values), 3) for values in took]
    return curve


def main(call: str) -> int:
    """Run the cell that ``call``, a JSON object, describes; the record goes into the cell's folder."""
    given = json.loads(call)
    tuples = {name: tuple(given["cell"][name]) for name in ("evaluate", "unseen")}
    cell = Cell(**{**given["cell"], **tuples})
    try:
        write_record(run_cell(cell, given["name"]), cell.run / "record.json")
    except MCNError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
