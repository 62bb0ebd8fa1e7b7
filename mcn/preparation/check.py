"""Is a data set whole? Counts against the official ones; what is missing, doubled or unreadable, by name.

Every file is decoded once, in a supervised child. What that tells is kept in the data set's index: a
check that was interrupted goes on where it was, and training finds the frames counted.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mcn.data.datasets import describe
from mcn.data.layouts import Layout, recognise
from mcn.data.manifest import read_manifest
from mcn.data.splits import BENCHMARKS, Benchmark, benchmark
from mcn.data.subsets import Selection, listed_names, select, subsets_of
from mcn.data.videoinfo import VideoInfo
from mcn.files import printable, write_text
from mcn.preparation import contents

_SHOWN = 10  # names of each kind in the text
_Subsets = Mapping[tuple[str, int], Selection]


@dataclass(frozen=True)
class Count:
    """Videos of a subset: how many its list has, how many are there, and should be (None: nobody knows).

    ``split`` is 0 where the data set has none.
    """

    subset: str
    split: int
    listed: int
    found: int
    expected: int | None = None

    @property
    def wrong(self) -> bool:
        """Whether the official number is another."""
        return self.expected is not None and self.expected != self.listed

    def __str__(self) -> str:
        where = f"split {self.split}, {self.subset}" if self.split else self.subset
        official = f" (official: {self.expected:,})" if self.expected is not None else ""
        return f"{where}: {self.found:,} of {self.listed:,} videos are there{official}"


@dataclass(frozen=True)
class Finding:
    """Something worth knowing about some videos; ``wrong`` if it should be mended.

    ``unit`` is what one of ``items`` is.
    """

    what: str
    items: tuple[str, ...]
    wrong: bool = True
    unit: str = "video"

    def __str__(self) -> str:
        lines = [f"{'WRONG' if self.wrong else 'note'}, {self.what}: {len(self.items):,}"]
        lines += [f"    {item}" for item in self.items[:_SHOWN]]
        more = len(self.items) - _SHOWN
        return "\n".join([*lines, f"    and {more:,} more"] if more > 0 else lines)


@dataclass(frozen=True)
class Report:
    """What :func:`check` found; prints as a short text."""

    root: str
    layout: str
    decoded: bool
    counts: tuple[Count, ...]
    findings: tuple[Finding, ...]
    classes: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not (any(c.wrong for c in self.counts) or any(finding.wrong for finding in self.findings))

    @property
    def summary(self) -> str:
        """How many kinds of faults there are, and of what: a line."""
        faults = [finding for finding in self.findings if finding.wrong]
        told = Counter[str]()
        for finding in faults:
            told[finding.unit] += len(finding.items)
        if numbers := sum(count.wrong for count in self.counts):
            told["number that is not the official one"] = numbers
        if not told:
            return "nothing is wrong"
        kinds = _several(len(faults) + bool(numbers), "kind")
        return f"{kinds} of faults: {', '.join(_several(n, unit) for unit, n in told.items())}"

    def __str__(self) -> str:
        lines = [f"{self.root}: {self.layout}"]
        lines += [f"  {count}{'  WRONG' if count.wrong else ''}" for count in self.counts]
        lines += [f"  {self.classes}"] if self.classes else []
        lines += [str(finding) for finding in self.findings]
        decoded = "every video was decoded" if self.decoded else "videos were not decoded"
        lines.append(f"{self.summary}; {decoded}")
        return printable("\n".join(lines))

    def save(self, path: Path) -> None:
        """Write all of it, every name, as JSON."""
        content = {**asdict(self), "ok": self.ok}
        write_text(path, json.dumps(content, indent=1))


def _several(number: int, unit: str) -> str:
    """A number of things in words.

    >>> _several(1, "class or folder"), _several(1200, "number that is not the official one")
    ('1 class or folder', '1,200 numbers that are not the official one')
    """
    several = {
        "class or folder": "classes or folders",
        "group of files": "groups of files",
        "number that is not the official one": "numbers that are not the official one",
    }
    return f"{number:,} {unit if number == 1 else several.get(unit, f'{unit}s')}"


def check(
    root: str | Path,
    *,
    of: str = "",
    quick: bool = False,
    workers: int | None = None,
    dask: str = "",
    examine: Callable[[str], VideoInfo | str] = contents.examine,
) -> Report:
    """Look at all of a data set. ``quick`` decodes nothing; it still finds empty files.

    ``of`` is the published data set that this should be (a part of): a key of
    :data:`mcn.data.splits.BENCHMARKS`, of whose classes those with videos are counted; empty: any.

    ``workers`` and ``dask`` say who decodes, as in :func:`~mcn.preparation.parallel.parallel_map`;
    ``examine`` tells what is in a file, or why that cannot be told. Of prepared data all frames are read,
    against their checksums. Raises :class:`~mcn.errors.MCNError` for a folder that is no data set, and for
    malformed lists.
    """
    layout = recognise(root)
    every = select(layout, "all")
    official = benchmark(layout.kind, every.classes)
    subsets = {key: select(layout, *key) for key in subsets_of(layout)}
    counts = [_count(key, chosen, official) for key, chosen in subsets.items()]
    whole = official.videos if official and official.videos else None
    counts.append(Count("all", 0, len(every.names), len(every.names), whole))
    findings = _lists_and_disk(layout, every, subsets)
    if layout.prepared:
        entries = read_manifest(layout.root)
        same = contents.same_entries(entries)
        bad = contents.absent(entries)
        bad |= {} if quick else contents.read_prepared(entries, layout.root, workers, dask)
        damaged = {name: entry.damage for name, entry in entries.items() if entry.damage and entry.file}
    else:
        files = _files(layout, every)
        bad, damaged = contents.empty(files), dict[str, str]()
        same = contents.same_files(files, bad)
        if not quick:
            damaged = contents.decode(files, bad, layout, workers, dask, examine)
    findings += [
        _doubled(same, every, subsets, official),
        Finding("videos cannot be read", tuple(f"{name}: {bad[name]}" for name in sorted(bad))),
        Finding("videos are damaged", tuple(f"{name}: {damaged[name]}" for name in sorted(damaged))),
    ]
    told = tuple(finding for finding in findings if finding.items)
    there = {label for label, file in zip(every.labels, every.found, strict=False) if file is not None}
    classes = f"{len(there)} of {BENCHMARKS[of].classes} classes" if of and there else ""
    line = describe(layout, every, "all", 0)
    return Report(str(layout.root), line, not quick, tuple(counts), told, classes)


def _files(layout: Layout, every: Selection) -> dict[str, Path]:
    """The videos on the disk by the names that :func:`~mcn.data.datasets.load_videos` gives them."""
    pairs = zip(every.names, every.found, strict=True)
    return {name: layout.folder / layout.files[found] for name, found in pairs if found is not None}


def _count(key: tuple[str, int], chosen: Selection, official: Benchmark | None) -> Count:
    (subset, split), expected = key, None
    if official and split in official.subsets:
        expected = official.subsets[split][0 if subset == "train" else 1]
    listed = len(chosen.names)
    return Count(subset, split, listed, listed - len(chosen.missing), expected)


def _lists_and_disk(layout: Layout, every: Selection, subsets: _Subsets) -> list[Finding]:
    """What lists and disk say differently."""
    missing = sorted({name for chosen in subsets.values() for name in chosen.missing})
    renamed = {
        name: file
        for chosen in subsets.values()
        for name, file in zip(chosen.names, chosen.found, strict=True)
        if file is not None and file != name
    }
    bare = [every.classes[number] for number in sorted(set(range(len(every.classes))) - set(every.labels))]
    if not layout.lists or not every.labels:
        bare = list(layout.empty)
    kinetics = layout.kind == "kinetics"  # nobody has all of it
    return [
        Finding("listed videos are not there", tuple(missing), wrong=not kinetics),
        Finding("classes or folders have no videos", tuple(bare), unit="class or folder"),
        Finding("videos are in no list", tuple(_unlisted(layout, subsets)), wrong=False),
        Finding(
            "names differ from the list's in case or suffix, which does no harm",
            tuple(f"{name} is {file}" for name, file in sorted(renamed.items())),
            wrong=False,
        ),
    ]


def _unlisted(layout: Layout, subsets: _Subsets) -> Iterable[str]:
    if layout.kind in ("ucf101", "hmdb51"):
        listed = set(listed_names(layout))
        return (file for file in layout.files if file not in listed)
    with_list = [chosen for chosen in subsets.values() if chosen.source]
    found = {file for chosen in with_list for file in chosen.found}
    folders = tuple(f"{layout.parts[chosen.part]}/" for chosen in with_list if chosen.part in layout.parts)
    if with_list and not layout.parts:
        folders = ("",)
    return (file for file in layout.files if file.startswith(folders) and file not in found)


def _doubled(
    groups: Iterable[list[str]], every: Selection, subsets: _Subsets, official: Benchmark | None
) -> Finding:
    """Copies. Between train and test they spoil a result; the published data sets have some, though."""
    parts: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for key, chosen in subsets.items():
        for name in chosen.names:
            parts[name].add(key)
    items, wrong = [], False
    for group in groups:
        held = {key for name in group for key in parts[name]}
        crossed = [split for subset, split in sorted(held) if subset == "train" and ("test", split) in held]
        wrong |= bool(crossed)
        splits = f" of split {', '.join(map(str, crossed))}" if any(crossed) else ""
        items.append(" = ".join(group) + (f" (in train and test{splits})" if crossed else ""))
    return Finding(
        "groups of identical files", tuple(items), wrong=wrong and not official, unit="group of files"
    )
