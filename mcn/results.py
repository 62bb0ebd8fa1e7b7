"""Measured results as files: one JSON record a finished row and seed, checked on the way in and out.

``book/results/`` holds the records behind every number that this project calls measured. A record says
what was measured, on what, how, with which settings, versions and device, so that :mod:`mcn.tables` can
show it beside the paper's number without mixing the two.
"""

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mcn._student import student_t
from mcn.errors import MCNError
from mcn.files import write_text
from mcn.hits import Hits
from mcn.profiles import PROFILES

FORMAT = 2

#: What the metrics of a record are about: the test list, or a part of the training list that was left out.
TEST, HELD_OUT = "test videos", "held-out training videos"

# Settings that say where a run lay, how it was carried out or which seed it had, not what it computed.
_NOT_COMPARED = {
    "seed", "out", "data", "checkpoint", "device", "threads", "workers", "max_bad", "read_timeout",
    "checkpoint_every", "keep", "eval_every", "eval_clips", "channels_last", "compile", "checkpointing",
}  # fmt: skip
_DEVICES_OWN = ("precision", "auto")  # says nothing that the device, which is compared, does not


@dataclass(frozen=True)
class DataUsed:
    """The data that the metrics are about, and the numbers of its training and test videos.

    Where ``subset`` is :data:`HELD_OUT`, both are parts of the training list: such a record chooses settings,
    it is no result.
    """

    name: str
    split: int
    train: int
    test: int
    subset: str = TEST

    def __post_init__(self) -> None:
        """Raise :class:`~mcn.errors.MCNError` for a value that its field cannot have."""
        _text(self, "name", within="data.")
        _whole(self, "split", 1, within="data.")
        for name in ("train", "test"):
            _whole(self, name, 0, within="data.")
        words = f"it should be {TEST!r} or {HELD_OUT!r}"
        _require(self.subset in (TEST, HELD_OUT), "data.subset", self.subset, words)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished row of a table with one seed.

    Raises :class:`~mcn.errors.MCNError`, in one line that names the field, for a value it cannot have.

    >>> data = DataUsed("UCF101, 13 classes", split=1, train=1260, test=503)
    >>> Record(table="5", row="mcn", setting={"order": "exact"}, seed=0, metrics={"probe_top1": 61.2},
    ...        data=data, profile="laptop", protocol="quick probe", device="x86_64", versions={},
    ...        commit="0123abc", wall_seconds=90.5).file_name
    'table5-mcn-laptop-...-seed0.json'
    """

    format: int = FORMAT
    table: str  #: number of the paper's table, "1" to "10"
    row: str  #: name of the row in mcn/paper_tables.yaml, or of one beyond the paper, such as "untrained"
    setting: dict[str, Any]  #: every setting, also nested: {"pretrain": {...}, "probe": {...}}
    seed: int
    metrics: dict[str, float]  #: by name, such as "probe_top1", in ``units``
    units: str = "per cent"
    data: DataUsed
    profile: str  #: "smoke", "laptop" or "paper"
    protocol: str  #: what was evaluated how, in words
    device: str
    versions: dict[str, str]
    commit: str
    wall_seconds: float
    curve: dict[str, list[float | None]] = dataclasses.field(default_factory=dict)  #: columns of one length
    hits: Hits = dataclasses.field(default_factory=Hits)  #: which test videos were right, by metric
    paper: bool = False  #: whether this is the paper's own protocol at full size (data, clips, schedule)

    def __post_init__(self) -> None:
        """Raise :class:`~mcn.errors.MCNError` for a value that its field cannot have."""
        _require(self.format == FORMAT, "format", self.format, f"this version of mcn reads format {FORMAT}")
        numbers = [str(number) for number in range(1, 11)]
        _require(self.table in numbers, "table", self.table, 'it should be "1" to "10", as a string')
        _text(self, "row")
        words = "small letters, digits and - + . _, such as contrast-binary"
        _require(re.fullmatch(r"[a-z0-9][a-z0-9_.+-]*", self.row) is not None, "row", self.row, words)
        _require(self.profile in PROFILES, "profile", self.profile, f"one of {', '.join(PROFILES)}")
        for name in ("protocol", "device", "commit", "units"):
            _text(self, name)
        _whole(self, "seed", 0)
        _require(
            isinstance(self.data, DataUsed),
            "data",
            self.data,
            "it should be name, split, train, test, subset",
        )
        _require(isinstance(self.paper, bool), "paper", self.paper, "it should be true or false")
        wall = self.wall_seconds
        _require(_finite(wall) and wall >= 0, "wall_seconds", wall, "it should be seconds, at least 0")
        self._check_setting()
        _named(self.versions, "versions")
        for name, version in self.versions.items():
            _require(isinstance(version, str), f"versions.{name}", version, "it should be a string")
        self._check_metrics()
        self._check_curve()
        self._check_hits()

    def _check_setting(self) -> None:
        _named(self.setting, "setting")
        try:
            json.dumps(self.setting, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise MCNError(f"setting holds what JSON cannot: {error}") from error

    def _check_metrics(self) -> None:
        _named(self.metrics, "metrics")
        _require(bool(self.metrics), "metrics", self.metrics, "it should hold at least one number")
        for name, value in self.metrics.items():
            _require(_finite(value), f"metrics.{name}", value, "it should be a finite number")
            if self.units == "per cent":
                _require(0 <= value <= 100, f"metrics.{name}", value, "per cent are from 0 to 100")

    def _check_curve(self) -> None:
        _named(self.curve, "curve")
        for name, column in self.curve.items():
            numbers = isinstance(column, list) and all(each is None or _finite(each) for each in column)
            words = "it should be a list of finite numbers, null where there is none"
            _require(numbers, f"curve.{name}", column, words)
        lengths = {name: len(column) for name, column in self.curve.items()}
        _require(len(set(lengths.values())) <= 1, "curve", lengths, "its lists should have one length")

    def _check_hits(self) -> None:
        _require(isinstance(self.hits, Hits), "hits", self.hits, "it should be digest, sources, right")
        videos = len(self.hits.sources)
        if self.hits.digest:
            words = f"it should have a number for each of {self.data.test} test videos"
            _require(videos == self.data.test, "hits.sources", self.hits.sources, words)
        for name in self.hits.right:
            share = 100 * float(self.hits.of(name).mean()) if videos else 0.0
            words = f"its bits say {share:.4f} per cent"
            metric = self.metrics.get(name)
            holds = metric is not None and abs(metric - share) < 1e-3
            _require(holds, f"hits.right.{name}, metrics.{name}", metric, words)

    @property
    def group(self) -> tuple[str, ...]:
        """What records of one row have in common whatever their seed; only such are ever averaged."""
        compared = (self.data, self.profile, self.protocol, self.units, self.paper, self.device)
        setting = json.dumps(comparable(self.setting), sort_keys=True)
        return (self.table, self.row, *map(repr, compared), setting)

    @property
    def file_name(self) -> str:
        """The record's file: measuring the same again replaces it, another setting has a file of its own."""
        digest = blake2b(repr(self.group).encode(), digest_size=4).hexdigest()
        return f"table{self.table}-{self.row}-{self.profile}-{digest}-seed{self.seed}.json"


def _require(holds: bool, name: str, value: object, words: str) -> None:
    if not holds:
        shown = repr(value)
        raise MCNError(f"{name} is {shown if len(shown) <= 80 else shown[:77] + '...'}: {words}")


def _text(holder: object, name: str, within: str = "") -> None:
    value = getattr(holder, name)
    holds = isinstance(value, str) and bool(value.strip()) and value.isprintable()
    _require(holds, within + name, value, "it should be one line of text")


def _whole(holder: object, name: str, least: int, within: str = "") -> None:
    value = getattr(holder, name)
    holds = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _require(holds, within + name, value, f"it should be a whole number of at least {least}")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _named(value: object, name: str) -> None:
    holds = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    _require(holds, name, value, "it should be an object with names")


def comparable(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting without what does not change the result's meaning: seed, places, workers, at any depth.

    A precision is compared, but for the device's own (``auto``): devices are compared anyway.

    >>> comparable({"pretrain": {"lr": 0.1, "seed": 3, "out": "runs/a"}})
    {'pretrain': {'lr': 0.1}}
    >>> comparable({"precision": "auto", "compile": True}), comparable({"precision": "bf16"})
    ({}, {'precision': 'bf16'})
    """
    return {
        name: comparable(value) if isinstance(value, Mapping) else value
        for name, value in setting.items()
        if name not in _NOT_COMPARED and (name, value) != _DEVICES_OWN
    }


def save_record(record: Record, folder: str | Path) -> Path:
    """Write a record into ``folder``, whole or not at all; gives its path.

    A record of the same row, group and seed is replaced. Raises :class:`~mcn.errors.MCNError` for a folder
    that cannot be written.
    """
    path = Path(folder) / record.file_name
    write_record(record, path)
    return path


def write_record(record: Record, path: Path) -> None:
    """Write a record to a path of one's own choice; otherwise :func:`save_record`."""
    lines = [
        f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in dataclasses.asdict(record).items()
    ]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    write_text(path, text)


def load_records(folder: str | Path) -> list[Record]:
    """Every record of a folder, by table, row and seed.

    Raises :class:`~mcn.errors.MCNError`, in one line that names file and field, for a folder that does not
    exist, a file that is no record, and two files with the same row, group and seed.
    """
    if not Path(folder).is_dir():
        raise MCNError(f"no such folder: {folder} (give the folder that holds the records, *.json)")
    found: dict[tuple[Any, ...], tuple[Path, Record]] = {}
    for path in sorted(Path(folder).glob("*.json")):
        record = read_record(path)
        key = (int(record.table), record.group, record.seed)
        if key in found:
            raise MCNError(f"{path} and {found[key][0]} hold the same row and seed: remove one of them")
        found[key] = (path, record)
    return [found[key][1] for key in sorted(found)]


def read_record(path: Path) -> Record:
    """The record of a file; raises :class:`~mcn.errors.MCNError`, in one line, for one that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MCNError(f"{path}: not a record: {error} (restore the file or remove it)") from error
    try:
        version = content.get("format") if isinstance(content, dict) else FORMAT
        _require(version == FORMAT, "format", version, f"this version of mcn reads format {FORMAT}")
        fields = _fields(content, Record, "record")
        data = DataUsed(**_fields(fields["data"], DataUsed, "data"))
        return Record(**{**fields, "data": data, "hits": Hits(**_fields(fields["hits"], Hits, "hits"))})
    except MCNError as error:
        raise MCNError(f"{path}: {error}") from error


def _fields(content: Any, kind: type, what: str) -> dict[str, Any]:
    """``content`` if it holds the fields of ``kind``, all of them and no other."""
    if not isinstance(content, dict):
        raise MCNError(f"{what} is not a JSON object (see book/results/README.md)")
    names = {field.name for field in dataclasses.fields(kind)}
    for words, differing in (("lacks", names - content.keys()), ("has unknown", content.keys() - names)):
        if differing:
            raise MCNError(f"{what} {words} {', '.join(sorted(differing))} (see book/results/README.md)")
    return content


def own_records() -> list[Record]:
    """The records of ``book/results`` in the checkout that the package is imported from; none elsewhere."""
    folder = Path(__file__).resolve().parents[1] / "book" / "results"
    return load_records(folder) if folder.is_dir() else []


@dataclass(frozen=True)
class Summary:
    """One metric over seeds: ``spread`` is the standard deviation (n - 1), ``low`` to ``high`` 95 %.

    The last three are ``None`` for a single seed, which says nothing about spread.
    """

    mean: float
    n: int
    spread: float | None
    low: float | None
    high: float | None


def summary(records: Sequence[Record], metric: str) -> Summary:
    """Mean, standard deviation and 95 % Student interval of the mean, over seeds.

    The interval takes the seeds' results as draws from a normal distribution. Raises
    :class:`~mcn.errors.MCNError` for no records, records that differ in more than the seed, a seed that
    occurs twice, and a metric that a record lacks.
    """
    if not records:
        raise MCNError(f"there are no records to take the mean of {metric!r} over")
    first = records[0]
    for record in records:
        if record.group != first.group:
            raise MCNError(f"{record.file_name} and {first.file_name} differ in more than the seed: no mean")
        if metric not in record.metrics:
            raise MCNError(f"{record.file_name} has no {metric!r}: it has {', '.join(record.metrics)}")
    if len({record.seed for record in records}) < len(records):
        raise MCNError(f"table {first.table}, {first.row}: a seed occurs twice among the records to average")
    return _summary([record.metrics[metric] for record in records])


def seeds_in_words(number: int) -> str:
    """How many seeds, in words.

    >>> seeds_in_words(1), seeds_in_words(5)
    ('1 seed', '5 seeds')
    """
    return f"{number} seed" + "s" * (number != 1)


def _summary(values: Sequence[float]) -> Summary:
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Summary(mean, n, None, None, None)
    spread = statistics.stdev(values)
    half = student_t(0.95, n - 1) * spread / math.sqrt(n)
    return Summary(mean, n, spread, mean - half, mean + half)


def by_group(records: Iterable[Record]) -> list[list[Record]]:
    """Records that may be averaged, together; in the order in which their groups first occur."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return list(groups.values())
