"""Step sizes chosen for each row of an ablation on held-out training videos, never on test videos.

Every row has the same number of candidates: a method that may try more finds a better one by chance alone.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcn.config import PretrainConfig, build
from mcn.errors import MCNError
from mcn.results import HELD_OUT, Record, comparable

#: What is chosen, and by which metric (mean over seeds).
STEP_SIZES, METRIC = ("lr", "inner_lr"), "probe_top1"
#: The only metric of a run whose loss diverged: per cent of its epochs that were done. Its probe counts as 0.
DIVERGED = "diverged_after"


@dataclass(frozen=True)
class Choice:
    """The candidates of a row and how well they did: ``(lr, inner_lr)`` and the mean of the metric."""

    means: dict[tuple[float | None, ...], float]
    seeds: tuple[int, ...]
    videos: int  #: that the means are about

    @property
    def step_sizes(self) -> dict[str, float | None]:
        """The best candidate, of equals the one with the smallest steps."""
        order = sorted(self.means, key=lambda sizes: [0.0 if size is None else size for size in sizes])
        best = max(order, key=lambda sizes: self.means[sizes])
        return dict(zip(STEP_SIZES, best, strict=True))

    def recorded(self) -> dict[str, Any]:
        """What a record says of how its step sizes were chosen."""
        tried = [
            {**dict(zip(STEP_SIZES, sizes, strict=True)), METRIC: round(mean, 4)}
            for sizes, mean in self.means.items()
        ]
        return {"on": HELD_OUT, "videos": self.videos, "on_seeds": list(self.seeds), "tried": tried}


def choose(
    records: Sequence[Record], rows: Mapping[str, Mapping[str, Any]], needed: Iterable[str], data: str
) -> dict[str, Choice]:
    """The step sizes of ``rows`` (of Table 5: name and pre-training settings), from held-out records.

    Records of other rows, data or settings than these are passed over; rows that are not ``needed`` may have
    none. Raises :class:`~mcn.errors.MCNError` for a record about test videos, for a needed row without
    records, and where rows differ in the number of candidates, or candidates in their seeds.
    """
    for record in records:
        if record.data.subset != HELD_OUT:
            raise MCNError(
                f"{record.file_name} is about {record.data.subset}, on which nothing is chosen: give --tuned "
                "a folder that holds records of `mcn ablate --subset held-out` alone"
            )
    found: dict[str, Choice] = {}
    for row, settings in rows.items():
        same = [record for record in records if _is_of(record, row, settings, data)]
        if same:
            found[row] = _choice(row, same)
        elif row in needed:
            raise MCNError(
                f"--tuned: there is no held-out record of {row} for {data} with these settings: run "
                f"`mcn ablate table5 --subset held-out --rows [{row}] --set [lr=...]` with the same --set"
            )
    budgets = {row: (len(choice.means), choice.seeds) for row, choice in found.items()}
    if len(set(budgets.values())) > 1:
        said = ", ".join(f"{row}: {tried} on seeds {list(seeds)}" for row, (tried, seeds) in budgets.items())
        raise MCNError(f"--tuned: rows had different numbers of step sizes to choose from ({said})")
    return found


def _is_of(record: Record, row: str, settings: Mapping[str, Any], data: str) -> bool:
    """Whether a record is a candidate of a row: it differs in nothing but step sizes and seed."""
    known = (record.table, record.row, record.data.name) == ("5", row, data)
    scored = METRIC in record.metrics or DIVERGED in record.metrics
    return known and scored and _else(record.setting["pretrain"]) == _else(settings)


def _else(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a pre-training but step sizes, and what does not change its meaning."""
    every = comparable(dataclasses.asdict(build(PretrainConfig, dict(settings))))
    return {key: each for key, each in every.items() if key not in (*STEP_SIZES, "validation", "reader")}


def _choice(row: str, records: Sequence[Record]) -> Choice:
    candidates: dict[tuple[float | None, ...], dict[int, float]] = {}
    for record in records:
        config = build(PretrainConfig, record.setting["pretrain"])
        seeds = candidates.setdefault((config.lr, config.inner_lr), {})
        if record.seed in seeds:
            raise MCNError(f"--tuned: {row} has two records of seed {record.seed} with lr {config.lr:g}")
        seeds[record.seed] = record.metrics.get(METRIC, 0.0)
    seeds_of = {tuple(sorted(seeds)) for seeds in candidates.values()}
    if len(seeds_of) > 1:
        raise MCNError(f"--tuned: not every step size of {row} was tried on the same seeds: finish the runs")
    if len({(record.data, record.profile, record.protocol) for record in records}) > 1:
        raise MCNError(f"--tuned: records of {row} differ in data, profile or protocol")
    means = {sizes: statistics.fmean(seeds.values()) for sizes, seeds in sorted(candidates.items(), key=str)}
    return Choice(means, next(iter(seeds_of)), records[0].data.test)


def lines(records: Iterable[Record]) -> list[str]:
    """Held-out records, a line each: row, seed, step sizes, metrics."""
    said = []
    for record in records:
        config = build(PretrainConfig, record.setting["pretrain"])
        inner = "lr" if config.inner_lr is None else f"{config.inner_lr:g}"
        numbers = ", ".join(f"{name} {value:.1f}" for name, value in record.metrics.items())
        said.append(f"{record.row}, seed {record.seed}, lr {config.lr:g}, inner_lr {inner}: {numbers}")
    return said


def chosen(records: Iterable[Record]) -> list[str]:
    """What was chosen for records whose step sizes were tuned, a line a row; nothing for others."""
    said: dict[str, str] = {}
    for record in records:
        if tuned := record.setting.get("tuned"):
            config = build(PretrainConfig, record.setting["pretrain"])
            tried = ", ".join(f"{each['lr']:g}: {each[METRIC]:.1f}" for each in tuned["tried"])
            on = f"{tuned['videos']} {tuned['on']}"
            said[record.row] = f"{record.row}: lr {config.lr:g}, tuned on {on} ({METRIC} by lr: {tried})"
    return list(said.values())
