"""One cell of an ablation from settings to record: pre-trained, evaluated once at its last epoch.

Run as ``python -m mcn.cell JSON``, so that cells run beside each other and one that dies is only itself.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TypeVar

import torch

from mcn.ablation import Cell, preset_of, protocol_of, recorded
from mcn.config import FinetuneConfig, PretrainConfig, ProbeConfig, RetrieveConfig, build, load_preset
from mcn.data.datasets import load_videos
from mcn.errors import MCNError
from mcn.finetune import finetune
from mcn.pretrain import pretrain
from mcn.probe import run_probe
from mcn.results import DataUsed, Record, write_record
from mcn.retrieval import run_retrieval
from mcn.run import choose_device, environment, read_metrics

C = TypeVar("C")


def run_cell(cell: Cell, name: str) -> Record:
    """Pre-train one cell, continuing where a run stopped, evaluate it once, and give its record.

    ``name`` is what the record calls the data.
    """
    began = time.monotonic()
    device = choose_device(cell.settings["device"])
    torch.set_num_threads(cell.settings["threads"])
    run = _pretrained(cell)
    metrics: dict[str, float] = {}
    for what in cell.evaluate:
        metrics |= _EVALUATIONS[what](cell, run)
    known = environment(device)
    sizes = [len(load_videos(cell.settings["data"], s, cell.settings["split"])) for s in ("train", "test")]
    return Record(
        table=cell.table,
        row=cell.row,
        setting={"pretrain": recorded(cell)},
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


def _evaluation(cell: Cell, run: Path | None, kind: type[C], command: str, folder: str) -> C:
    """The settings of an evaluation: the profile's, with the cell's clips, data and seed."""
    shared = ("data", "split", "device", "threads", "reader", "frames", "stride", "size", "backbone", "width")
    settings = {key: cell.settings[key] for key in shared if key in cell.settings}
    where = {"checkpoint": str(run or ""), "seed": cell.seed, "out": str(cell.run / folder)}
    where |= {"from_scratch": run is None}
    preset = preset_of(cell.profile, cell.settings["backbone"])
    return build(kind, {**load_preset(preset, command), **settings, **where})


def _probe(cell: Cell, run: Path | None) -> dict[str, float]:
    return {"probe_top1": run_probe(_evaluation(cell, run, ProbeConfig, "probe", "probe")).top1}


def _retrieval(cell: Cell, run: Path | None) -> dict[str, float]:
    found = run_retrieval(_evaluation(cell, run, RetrieveConfig, "retrieve", "retrieve"))
    return {f"retrieval_top{k}": value for k, value in found.accuracy.items()}


def _finetune(cell: Cell, run: Path | None) -> dict[str, float]:
    _, accuracy = finetune(_evaluation(cell, run, FinetuneConfig, "finetune", "finetune"))
    assert accuracy is not None  # ablate has asked for a test list
    return {"finetune_top1": accuracy.top1, "finetune_top5": accuracy.top5}


_EVALUATIONS = {"probe": _probe, "retrieval": _retrieval, "finetune": _finetune}


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
