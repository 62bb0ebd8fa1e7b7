"""The paper's ablations (Tables 1 to 5), with rows beyond them, as settings of one code path.

A row is a name and what it changes in the profile's pre-training settings; a cell is a row with a
seed. Each finished cell is a record (:mod:`mcn.results`), so a run that was interrupted goes on with
the next cell, and a cell within its pre-training. Nothing is chosen here: every cell is evaluated
once, at its last epoch.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mcn._cores import usable_cores
from mcn.config import AblateConfig, PretrainConfig, load_preset
from mcn.data.datasets import Videos
from mcn.errors import MCNError
from mcn.holdout import labelled_lists
from mcn.preparation.parallel import parallel_map
from mcn.results import HELD_OUT, TEST, Record, load_records, read_record, save_record
from mcn.settings import DataConfig

CONTRAST: dict[str, Any] = {"order": "none", "cls_weight": 0.0}
BINARY: dict[str, Any] = {"order": "none"}
FIRST: dict[str, Any] = {"order": "first"}
EXACT: dict[str, Any] = {"order": "exact"}
_PAPERS = "r2plus1d_18"  # the backbone of the paper's Tables 3 to 5


@dataclass(frozen=True)
class Row:
    """A line of a table: its name in the records, and what it changes in the profile's settings.

    ``settings`` is ``None`` for a network that is not pre-trained. ``frames`` multiplies the profile's
    number of frames (the paper's 16, 32 and 64 are half, one and two times its 32).
    """

    name: str
    settings: dict[str, Any] | None = field(default_factory=dict)
    frames: float = 1.0


def _pairs(of: Iterable[tuple[str, dict[str, Any], float]]) -> tuple[Row, ...]:
    """Baseline and MCN for each of some settings."""
    return tuple(
        Row(f"{method}-{name}", {**settings, **change}, frames)
        for name, change, frames in of
        for method, settings in (("baseline", CONTRAST), ("mcn", EXACT))
    )


_BACKBONES = _pairs(
    (name, {"backbone": name, "width": None}, 1.0) for name in ("s3d", "r2plus1d_18", "r3d_18")
)
#: The rows of each of the paper's tables, under their names in ``mcn/paper_tables.yaml``; in Table 5 those
#: that the paper does not have follow.
TABLES: dict[str, tuple[Row, ...]] = {
    "1": _BACKBONES,
    "2": _BACKBONES,
    "3": tuple(Row(f"alpha-{alpha}", {**EXACT, "cls_weight": alpha}) for alpha in (0.1, 0.2, 0.3, 0.4)),
    "4": _pairs((name, {}, frames) for name, frames in (("16", 0.5), ("32", 1.0), ("64", 2.0))),
    "5": (
        Row("contrast", CONTRAST),
        Row("contrast-binary", BINARY),
        Row("mcn", EXACT),
        Row("mcn-first-order", FIRST),
        Row("untrained", None),
        Row("contrast-whole-bank", {**CONTRAST, "negatives": 0}),
        Row("contrast-64-negatives", {**CONTRAST, "negatives": 64}),
        Row("mcn-separate-backbones", {**EXACT, "sharing": "separate"}),
        Row("mcn-single-fc", {**EXACT, "head": "linear"}),
        Row("mcn-mean-reduction", {**EXACT, "cls_reduction": "mean"}),
        Row("mcn-support-loss", {**EXACT, "outer_support_weight": 1.0}),
    ),
}


@dataclass(frozen=True)
class Cell:
    """One row with one seed, all settings resolved; plain values, so that it can go to another process."""

    table: str
    row: str
    seed: int
    profile: str
    settings: dict[str, Any]  #: of pre-training, and of the clips in evaluation
    trained: bool
    evaluate: tuple[str, ...]
    out: str  #: folder of the runs

    @property
    def about(self) -> str:
        """What its metrics are about, as :attr:`mcn.results.DataUsed.subset` says it."""
        return HELD_OUT if self.settings.get("validation") else TEST

    @property
    def run(self) -> Path:
        """Where it is pre-trained: cells of several tables that are one network share the run."""
        text = json.dumps([self.settings, self.seed], sort_keys=True)
        return Path(self.out) / f"{self.row}-seed{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def cells_of(config: AblateConfig, table: str) -> list[Cell]:
    """The cells of a table, seed by seed: an interrupted run leaves whole tables of fewer seeds.

    Raises :class:`~mcn.errors.MCNError` for a table or a row that there is not.
    """
    if table not in TABLES:
        raise MCNError(f"table {table!r} cannot be run: one of {', '.join(TABLES)}")
    names = [row.name for row in TABLES[table]]
    if unknown := [name for name in config.rows if name not in names]:
        raise MCNError(f"--rows: table {table} has no {unknown[0]!r}, only {', '.join(names)}")
    where = {
        "data": config.data, "split": config.split, "device": config.device, "reader": config.reader,
        "threads": config.threads or max(1, usable_cores() // config.jobs),
        **({"validation": True} if config.subset == "held-out" else {}),
    }  # fmt: skip
    return [
        Cell(
            table=table,
            row=row.name,
            seed=seed,
            profile=config.profile,
            settings={**_settings(row, config), **where},
            trained=row.settings is not None,
            evaluate=config.evaluate,
            out=config.out or "runs/ablate",
        )
        for seed in range(config.seed, config.seed + config.seeds)
        for row in TABLES[table]
        if not config.rows or row.name in config.rows
    ]


def _settings(row: Row, config: AblateConfig) -> dict[str, Any]:
    """The profile's settings, the user's changes, then the row's."""
    backbone = (row.settings or {}).get("backbone", _PAPERS)
    settings = {**load_preset(preset_of(config.profile, backbone), "pretrain"), **_changes(config.set)}
    default = {field.name: field.default for field in dataclasses.fields(PretrainConfig)}
    frames = int(settings.get("frames", default["frames"]) * row.frames)
    return {**settings, **(row.settings or {}), "frames": frames}


def preset_of(profile: str, backbone: str) -> str:
    """The preset behind a profile: the paper has one a backbone."""
    return f"paper-{backbone}" if profile == "paper" else profile


def _changes(given: Iterable[str]) -> dict[str, Any]:
    """``["epochs=40"]`` -> ``{"epochs": 40}``, checked against the settings that there are."""
    names = {field.name for field in dataclasses.fields(PretrainConfig)}
    changes: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise MCNError(f"--set {text}: give NAME=VALUE with a setting of mcn pretrain, such as epochs=40")
        changes[name] = yaml.safe_load(value)
        with suppress(ValueError):  # YAML takes 1e-3 for a word
            changes[name] = float(value) if isinstance(changes[name], str) else changes[name]
    return changes


def ablate(config: AblateConfig, table: str) -> list[Record]:
    """Run what is missing of a table, ``config.jobs`` cells at a time; gives the table's records.

    Each cell has a process of its own. One that fails is said and the others go on; at the end raises
    :class:`~mcn.errors.MCNError` if any did, as for a data set without labels or a test list.
    """
    cells, folder = cells_of(config, table), Path(config.results)
    lists = DataConfig(data=config.data, split=config.split, validation=config.subset == "held-out")
    train, _ = labelled_lists(lists)
    folder.mkdir(parents=True, exist_ok=True)
    done = {_mark(record) for record in load_records(folder)}
    missing = [cell for cell in cells if _mark_of(cell) not in done]
    print(f"table {table}: {len(cells)} cells, {len(cells) - len(missing)} of them recorded in {folder}")
    failed = []
    work = [(cell, config.name or _name(train)) for cell in missing]
    for index, said in parallel_map(
        _in_process, work, workers=config.jobs, desc=f"table {table}", unit="cell"
    ):
        cell = missing[index]
        if isinstance(said, Record):
            save_record(said, folder)
        else:
            failed.append(f"{cell.row}, seed {cell.seed}: {said}")
            print(failed[-1])
    if failed:
        raise MCNError(f"{len(failed)} of {len(cells)} cells failed (the first: {failed[0]})")
    wanted = {_mark_of(cell) for cell in cells}
    return [record for record in load_records(folder) if _mark(record) in wanted]


def _name(videos: Videos) -> str:
    """What records call a data set unless they are told: what was recognised, or its folder."""
    title = videos.layout.split(":")[0]
    return title if title.startswith("UCF101") or title.startswith("HMDB51") else videos.root.name


def protocol_of(evaluate: Iterable[str]) -> str:
    """What the metrics of a record are, in words."""
    return "; ".join(PROTOCOLS[name] for name in evaluate)


#: What may be evaluated, and how, in words that stand in each record.
PROTOCOLS = {
    "probe": "quick linear probe (row 43)",
    "headline": "headline linear probe (row 43)",
    "retrieval": "retrieval with pooled RGB features (row 46)",
    "finetune": "fine-tuning of all parameters on RGB (rows 39 to 42)",
    "motion": "AUC of conv5 maps against moving pixels (ours)",
}


def _mark(record: Record) -> tuple[Any, ...]:
    """What tells a cell's record from others."""
    setting = json.dumps(record.setting.get("pretrain"), sort_keys=True)
    known = record.table, record.row, record.seed, record.profile, record.data.subset
    return *known, record.protocol, setting


def _mark_of(cell: Cell) -> tuple[Any, ...]:
    setting = json.dumps(recorded(cell), sort_keys=True)
    known = cell.table, cell.row, cell.seed, cell.profile, cell.about
    return *known, protocol_of(cell.evaluate), setting


def recorded(cell: Cell) -> dict[str, Any]:
    """A cell's settings as its record has them: without where it ran."""
    return {**portable(cell.settings), "trained": cell.trained}


def portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that say where something lies or what it runs on."""
    return {key: value for key, value in settings.items() if key not in _ELSEWHERE}


_ELSEWHERE = ("data", "device", "threads", "workers", "reader", "out", "checkpoint", "cache")


def _in_process(work: tuple[Cell, str]) -> Record | str:
    """Run a cell in a Python of its own; gives its record, or what went wrong in a line."""
    cell, name = work
    cell.run.mkdir(parents=True, exist_ok=True)
    call = json.dumps({"cell": dataclasses.asdict(cell), "name": name})
    with (cell.run / "log.txt").open("ab") as log:
        done = subprocess.run([sys.executable, "-m", "mcn.cell", call], stdout=log, stderr=log, check=False)
    path = cell.run / "record.json"
    if done.returncode:
        lines = (cell.run / "log.txt").read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else f'status {done.returncode}'} (see {cell.run / 'log.txt'})"
    return read_record(path)
