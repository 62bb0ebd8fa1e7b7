"""The paper's ablations (Tables 1 to 5), with rows beyond them, as settings of one code path.

A row is a name and what it changes in the profile's pre-training settings; a cell is a row with a
seed. Each finished cell is a record (:mod:`mcn.results`), so a run that was interrupted goes on with
the next cell, and a cell within its pre-training. Every cell is evaluated once, at its last epoch; step
sizes may be chosen, on held-out training videos (:mod:`mcn.tuning`), and nothing is chosen on test videos.
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
from mcn.data.datasets import Videos, load_videos
from mcn.errors import MCNError
from mcn.holdout import labelled_lists, of_classes
from mcn.preparation.parallel import parallel_map
from mcn.results import HELD_OUT, TEST, Record, load_records, read_record, save_record
from mcn.rows import TABLES, TUNED, Row, rows_of
from mcn.settings import DataConfig
from mcn.tuning import STEP_SIZES, Choice, choose

_PAPERS = "r2plus1d_18"  # the backbone of the paper's Tables 3 to 5


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
    protocol: str
    out: str  #: folder of the runs
    tuned: dict[str, Any] = field(default_factory=dict)  #: how its step sizes were chosen, if they were
    unseen: tuple[str, ...] = ()  #: classes that evaluations are about, and pre-training is not; none: all
    after: dict[str, Any] = field(default_factory=dict)  #: ``row`` and ``settings`` of what it starts from

    @property
    def about(self) -> str:
        """What its metrics are about, as :attr:`mcn.results.DataUsed.subset` says it."""
        return HELD_OUT if self.settings.get("validation") else TEST

    @property
    def run(self) -> Path:
        """Where it is pre-trained: cells of several tables that are one network share the run."""
        known = [self.settings, self.seed, *([self.after] if self.after else [])]
        text = json.dumps(known, sort_keys=True)
        return Path(self.out) / f"{self.row}-seed{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def cells_of(config: AblateConfig, table: str) -> list[Cell]:
    """The cells of a table, seed by seed: an interrupted run leaves whole tables of fewer seeds.

    Rows that have none of the evaluations that are asked for are left out. Raises
    :class:`~mcn.errors.MCNError` for a table or a row that there is not, for a row that is named and would be
    left out, and as :func:`mcn.tuning.choose` does.
    """
    if table not in TABLES:
        raise MCNError(f"table {table!r} cannot be run: one of {', '.join(TABLES)}")
    rows = rows_of(table)
    if unknown := [name for name in config.rows if name not in rows]:
        raise MCNError(f"--rows: table {table} has no {unknown[0]!r}, only {', '.join(rows)}")
    for name in config.rows:
        if not _evaluations(rows[name], config):
            raise MCNError(f"--rows {name}: it is evaluated by {', '.join(rows[name].only)} (--evaluate)")
    wanted = [row for row in rows.values() if not config.rows or row.name in config.rows]
    wanted = [row for row in wanted if _evaluations(row, config)]
    choices = _choices(config, wanted) if config.tuned else {}
    seen = _seen(config)
    return [
        _cell(row, seed, config, table, choices, seen)
        for seed in range(config.seed, config.seed + config.seeds)
        for row in wanted
    ]


def _evaluations(row: Row, config: AblateConfig) -> tuple[str, ...]:
    return tuple(what for what in config.evaluate if not row.only or what in row.only)


def _seen(config: AblateConfig) -> dict[str, list[str]]:
    """The setting ``classes`` of pre-training: all but the unseen, where there are some."""
    if not config.unseen:
        return {}
    every = load_videos(config.data, "train", config.split)
    of_classes(every, config.unseen)  # says which there is not
    return {"classes": [name for name in every.classes if name not in config.unseen]}


def _cell(
    row: Row,
    seed: int,
    config: AblateConfig,
    table: str,
    choices: dict[str, Choice],
    seen: dict[str, list[str]],
) -> Cell:
    where = {
        "data": config.data, "split": config.split, "device": config.device, "reader": config.reader,
        "threads": config.threads or max(1, usable_cores() // config.jobs),
        **({"validation": True} if config.subset == "held-out" else {}), **seen,
    }  # fmt: skip

    def settings(row: Row) -> dict[str, Any]:
        chosen = choices[row.like].step_sizes if row.like in choices else {}
        return {**_settings(row, config), **chosen, **where}

    first = rows_of("5")[row.after] if row.after else None
    return Cell(
        table=table,
        row=row.name,
        seed=seed,
        profile=config.profile,
        settings=settings(row),
        trained=row.settings is not None,
        evaluate=_evaluations(row, config),
        protocol=protocol_of(config.evaluate),
        out=config.out or "runs/ablate",
        unseen=config.unseen,
        tuned=choices[row.like].recorded() if row.like in choices else {},
        after={"row": first.name, "settings": settings(first)} if first else {},
    )


def _choices(config: AblateConfig, rows: Iterable[Row]) -> dict[str, Choice]:
    """The step sizes of the rows that others take theirs from, by the records of ``config.tuned``."""
    if given := [name for name in STEP_SIZES if name in _changes(config.set)]:
        raise MCNError(f"--set {given[0]}=... and --tuned {config.tuned}: give one of them")
    likes = {name: _settings(rows_of("5")[name], config) for name in TUNED}
    split = {"split": config.split}
    needed = {row.like for row in rows if row.like} | {
        rows_of("5")[row.after].like for row in rows if row.after
    }
    data = config.name or _name(load_videos(config.data, "train", config.split))
    settings = {name: {**settings, **split} for name, settings in likes.items()}
    return choose(load_records(config.tuned), settings, needed, data)


def _settings(row: Row, config: AblateConfig) -> dict[str, Any]:
    """The profile's settings, the user's changes, then the row's."""
    backbone = (row.settings or {}).get("backbone", _PAPERS)
    settings = {**load_preset(preset_of(config.profile, backbone), "pretrain"), **_changes(config.set)}
    default = {field.name: field.default for field in dataclasses.fields(PretrainConfig)}
    multiples = {name: round(settings.get(name, default[name]) * times) for name, times in row.times.items()}
    return {**settings, **(row.settings or {}), **multiples}


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
        if name in ("validation", "classes"):
            flag = {"validation": "--subset held-out", "classes": "--unseen"}[name]
            raise MCNError(f"--set {text}: give {flag}, so that the records say so")
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
    name = config.name or _name(train)
    if config.unseen:
        name += f", {len(config.unseen)} classes unseen in pre-training"
    failed = []
    # Those that start from another cell's network come when that is trained.
    for some in ([c for c in missing if not c.after], [c for c in missing if c.after]):
        work = [(cell, name) for cell in some]
        for index, said in parallel_map(
            _in_process, work, workers=config.jobs, desc=f"table {table}", unit="cell"
        ):
            if isinstance(said, Record):
                save_record(said, folder)
            else:
                failed.append(f"{some[index].row}, seed {some[index].seed}: {said}")
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
    return *known, cell.protocol, setting


def recorded(cell: Cell) -> dict[str, Any]:
    """A cell's settings as its record has them: without where it ran."""
    after = {"after": {**cell.after, "settings": portable(cell.after["settings"])}} if cell.after else {}
    return {**portable(cell.settings), "trained": cell.trained, **after}


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
