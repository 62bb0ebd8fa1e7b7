"""``mcn demo``: the whole way on real video files, small enough for a laptop.

Writes the built-in data set, pre-trains contrast only and full MCN on it, and compares both with
the untrained network: one table, three pictures. Each part is kept in the demo's folder, so an
interrupted demo continues where it stopped.
"""

import dataclasses
import json
import time
from pathlib import Path

import torch

from mcn.checkpoint import find_checkpoint
from mcn.config import EvalConfig, PretrainConfig, build, load_preset
from mcn.data.datasets import Videos, load_videos
from mcn.data.readers import read_clip
from mcn.features import Features, features_of_lists
from mcn.files import write_text
from mcn.plots import loss_curves, residual_strip
from mcn.preparation.synthetic import SyntheticConfig, write_synthetic_actions
from mcn.pretrain import pretrain
from mcn.probe import linear_probe
from mcn.retrieval import Retrieval, retrieve
from mcn.retrieval_plots import retrieval_sheet
from mcn.run import read_metrics

#: The networks compared, as settings of one training path; ``None`` is not trained at all.
NETWORKS: dict[str, dict[str, object] | None] = {
    "untrained": None,
    "contrast only": {"order": "none", "cls_weight": 0.0},
    "full MCN": {},
}
#: The data set of each profile.
DATA = {
    "laptop": SyntheticConfig(classes=8, groups=64, clips_per_group=1, frames=32, size=64),
    "smoke": SyntheticConfig(classes=8, groups=8, clips_per_group=1, frames=16, size=32),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One network's line in the table, in per cent of the test videos."""

    network: str
    probe_top1: float
    retrieval_top1: float
    retrieval_top5: float


def demo(out: Path, profile: str = "laptop", seed: int = 0) -> list[Row]:
    """Run the demo in folder ``out``; prints what it finds and gives the table's rows."""
    started = time.monotonic()
    data = out / "data"
    print(f"1/4  writing videos to {data}")
    write_synthetic_actions(data, dataclasses.replace(DATA[profile], seed=seed), progress=True)

    print("2/4  pre-training: contrast only, then full MCN")
    runs = {name: _train(name, settings, out, data, profile, seed) for name, settings in NETWORKS.items()}

    print("3/4  evaluating on videos whose scenes were never seen in training")
    rows, found, test = [], {}, None
    for name, run in runs.items():
        config = _evaluation(profile, data, run, seed)
        train, test = features_of_lists(config)
        found[name] = retrieve(test, train, top=(1, 5))
        accuracy = found[name].accuracy
        rows.append(Row(name, linear_probe(train, test).top1, accuracy[1], accuracy[5]))
    assert test is not None
    _report(rows, test, found, runs, out, data)
    print(f"the whole demo took {(time.monotonic() - started) / 60:.1f} minutes")
    return rows


def _slug(name: str) -> str:
    return name.replace(" ", "-").lower()


def _train(
    name: str, settings: dict[str, object] | None, out: Path, data: Path, profile: str, seed: int
) -> Path | None:
    if settings is None:
        return None
    where = {"data": str(data), "out": str(out / _slug(name)), "seed": seed}
    return pretrain(build(PretrainConfig, {**load_preset(profile, "pretrain"), **settings, **where}))


def _evaluation(profile: str, data: Path, run: Path | None, seed: int) -> EvalConfig:
    checkpoint = str(find_checkpoint(run)) if run else ""
    where = {"data": str(data), "checkpoint": checkpoint, "seed": seed}
    return build(EvalConfig, {**load_preset(profile, "probe"), **where})


def _report(
    rows: list[Row],
    test: Features,
    found: dict[str, Retrieval],
    runs: dict[str, Path | None],
    out: Path,
    data: Path,
) -> None:
    print("4/4  pictures\n")
    picks = next(iter(found.values())).chance
    table = format_table(rows, test, picks)
    print(table)
    record = {"rows": [dataclasses.asdict(row) for row in rows], "test_videos": len(test.x)}
    text = json.dumps(record, indent=2) + "\n"
    write_text(out / "table.json", text)
    _pictures(test.videos, found, runs, out, data)
    mcn = runs["full MCN"]
    print(f"""
run folder:  {out}   (table.json, pictures/, and a folder a run: config, metrics, checkpoints)
pictures:    {out}/pictures/residual_views.png, loss_curves.png, neighbours.png
next:        mcn finetune --preset laptop --data {data} --checkpoint {mcn} --out {out}/finetuned
             mcn pretrain --preset laptop --data YOUR_FOLDER_OF_VIDEOS
             tensorboard --logdir {out}
""")


def format_table(rows: list[Row], test: Features, picks: dict[int, float]) -> str:
    """The table as text, chance below it; ``picks`` is that of retrieval, by k."""
    chance = 1 / len(test.videos.classes)
    line = "{:<16}{:>14}{:>18}{:>18}".format
    shown = [line("", "linear probe", "retrieval top-1", "retrieval top-5")]
    for row in [*rows, Row("chance", 100 * chance, picks[1], picks[5])]:
        numbers = (row.probe_top1, row.retrieval_top1, row.retrieval_top5)
        shown.append(line(row.network, *(f"{number:.1f} %" for number in numbers)))
    spread = 100 * (chance * (1 - chance) / len(test.x)) ** 0.5
    shown.append(
        f"({len(test.x)} test videos, one seed; chance alone spreads by {spread:.1f} points, 1 sigma)"
    )
    return "\n".join(shown)


def _pictures(
    test: Videos, found: dict[str, Retrieval], runs: dict[str, Path | None], out: Path, data: Path
) -> None:
    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    clip = torch.from_numpy(read_clip(test.path(0), range(0, 18, 2))).permute(3, 0, 1, 2) / 255
    residual_strip(clip, f"{test.names[0]}: frames and their residuals").savefig(
        folder / "residual_views.png"
    )
    curves = {name: read_metrics(run / "metrics.jsonl") for name, run in runs.items() if run}
    loss_curves(curves, title="pre-training").savefig(folder / "loss_curves.png")

    title = "nearest training videos; the class is the motion, not what a frame shows"
    sheet = retrieval_sheet(test, load_videos(data, "train"), found, title=title)
    sheet.savefig(folder / "neighbours.png")


__all__ = ["NETWORKS", "Row", "demo", "format_table"]
