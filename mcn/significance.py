"""Whether rows of a table differ by more than chance: bootstrap over seeds and videos, what it detects.

Chance comes in twice: another seed gives another network, and another list of videos of the same kind would
have been answered otherwise. So seeds are drawn again, each row's for itself, and videos, the same for all
rows that answered the same list, since a hard video is hard for all of them. Clips cut from one source video
are answered alike: whole source videos are drawn.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcn.errors import MCNError
from mcn.results import TEST, Record, by_group, seeds_in_words

RESAMPLES = 10_000
Means = NDArray[np.float64]


def resampled(
    rows: Sequence[ArrayLike],
    sources: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Means:
    r"""Means of rows over seeds and videos, per cent, ``(resamples, rows)``: each of drawn seeds and videos.

    ``rows`` are hits ``(seeds, videos)`` of 0 and 1 (or bool), all on one list, ``sources`` ``(videos,)`` the
    number of each video's source (none: each is its own). A plain bootstrap of ``s`` seeds has only
    ``(s - 1) / s`` of the variance that seeds have, much too little for five; so what a seed's answers differ
    from its row's mean by counts :math:`\sqrt{s / (s - 1)}` times. A single seed does not vary.

    Raises ``ValueError`` for rows that are not on one list.

    >>> resampled([[[1, 1, 0, 0]], [[1, 1, 1, 0]]], resamples=3).shape
    (3, 2)
    """
    hits = [np.asarray(row, dtype=np.float64) for row in rows]
    if len({each.shape[1:] for each in hits}) != 1 or any(each.ndim != 2 for each in hits):
        raise ValueError("rows should be (seeds, videos) on one list")
    videos = hits[0].shape[1]
    _, number = np.unique(np.arange(videos) if sources is None else np.asarray(sources), return_inverse=True)
    size = np.bincount(number).astype(np.float64)  # videos of each source
    random = np.random.default_rng(seed)
    weights = random.multinomial(len(size), np.full(len(size), 1 / len(size)), size=resamples)
    drawn = weights @ size  # videos of each resample
    means = []
    for each in hits:
        right = np.stack([np.bincount(number, weights=one, minlength=len(size)) for one in each])
        seeds = len(right)
        centre = right.mean(axis=0)
        if seeds > 1:
            right = centre + (right - centre) * math.sqrt(seeds / (seeds - 1))
        share = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
        means.append(((share @ right) * weights).sum(axis=1) / drawn)
    return 100 * np.stack(means, axis=1)


@dataclass(frozen=True)
class Difference:
    """How much better the second row is than the first, with its 95 % interval (percentiles)."""

    first: str
    second: str
    mean: float
    low: float
    high: float

    def line(self) -> str:
        """What to print of it."""
        return f"{self.second} minus {self.first}: {self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def differences(rows: Mapping[str, ArrayLike], means: Means) -> list[Difference]:
    """Of every two rows, in their order, given the :func:`resampled` ``means`` of all.

    >>> rows = {"a": [[1, 1, 0, 0]], "b": [[1, 1, 1, 0]]}
    >>> [(found.mean, found.low) for found in differences(rows, resampled(list(rows.values())))]
    [(25.0, 0.0)]
    """
    exact = {name: 100 * float(np.mean(np.asarray(hits))) for name, hits in rows.items()}
    columns = dict(zip(rows, means.T, strict=True))
    return [
        Difference(
            a, b, exact[b] - exact[a], *map(float, np.percentile(columns[b] - columns[a], [2.5, 97.5]))
        )
        for a, b in combinations(rows, 2)
    ]


def orders(names: Sequence[str], means: Means, seed: int = 0) -> dict[tuple[str, ...], float]:
    """How often each order of the rows occurs among :func:`resampled` means, best first, most frequent first.

    Equal rows are put in either order by chance.

    >>> orders(["a", "b"], np.array([[1.0, 2.0], [3.0, 4.0], [6.0, 5.0], [7.0, 8.0]]))
    {('b', 'a'): 0.75, ('a', 'b'): 0.25}
    """
    chance = np.random.default_rng(seed).random(means.shape)
    places = np.lexsort((chance, -means), axis=1)
    found = Counter(map(tuple, places.tolist()))
    return {tuple(names[place] for place in order): n / len(means) for order, n in found.most_common()}


def smallest_difference(
    videos: int,
    seeds: int,
    *,
    discordance: float,
    within: float = 0.0,
    seed_sd: float = 0.0,
    per_source: float = 1.0,
    correlation: float = 0.0,
    power: float = 0.8,
    level: float = 0.05,
) -> float:
    r"""The difference of two rows, in per cent, that a two-sided test finds with probability ``power``.

    .. math:: (z_{1 - level/2} + z_{power})
        \sqrt{ 2 \sigma^2 / s + 100^2 (q - w (1 - 1/s)) (1 + (m - 1) \rho) / n }

    for ``n`` videos, paired, and ``s`` seeds a row. ``discordance`` ``q``: share of videos that a network of
    one row has right and one of the other wrong, or the reverse (0.5 for rows right half the time that have
    nothing in common). ``within`` ``w``, at most ``q``: the same of two seeds of one row, which averaging
    over seeds lessens; 0 counts none of it, an upper bound. ``seed_sd`` ``sigma``: standard deviation, in
    per cent, of a row's accuracy from seed to seed on a list without end. Videos come in sources of
    ``per_source`` ``m`` on average, within which differences are correlated by ``correlation`` ``rho``. It is
    the usual normal approximation.

    >>> round(smallest_difference(503, 5, discordance=0.3), 1)
    6.8
    """
    if min(videos, seeds) < 1 or not 0 <= within <= discordance <= 1 or seed_sd < 0:
        raise ValueError("videos, seeds are at least 1, 0 <= within <= discordance <= 1, seed_sd at least 0")
    z = NormalDist().inv_cdf
    of_seeds = 2 * seed_sd**2 / seeds
    apart = discordance - within * (1 - 1 / seeds)
    of_videos = 100**2 * apart * (1 + (per_source - 1) * correlation) / videos
    return (z(1 - level / 2) + z(power)) * math.sqrt(of_seeds + of_videos)


def comparison(records: Sequence[Record], table: int, rows: Sequence[str]) -> list[str]:
    """Some rows of a table compared, in words: for each set of records that stand together, each metric.

    Raises :class:`~mcn.errors.MCNError` for a row without records that keep which videos were right, and for
    a row that was measured with several settings, which cannot be one row of a comparison.
    """
    if len(rows) < 2 or len(set(rows)) < len(rows):
        raise MCNError(f"--compare {','.join(rows)}: give at least two rows, each once")
    of_table = [r for r in records if r.table == str(table)]
    measured = list(dict.fromkeys(record.row for record in of_table))
    if unknown := [row for row in rows if row not in measured]:
        raise MCNError(
            f"--compare {','.join(rows)}: table {table} has no record of {', '.join(unknown)} "
            f"(rows that it has: {', '.join(measured) or 'none'})"
        )
    kept = [r for r in of_table if r.data.subset == TEST and r.hits.right]
    blocks: dict[tuple[object, ...], list[Record]] = {}
    for record in kept:
        if record.row in rows:
            known = (record.data, record.profile, record.protocol, record.device, record.hits.digest)
            blocks.setdefault(known, []).append(record)
    said = [line for block in blocks.values() for line in _compared(block, rows)]
    if not said:
        known_rows = ", ".join(dict.fromkeys(record.row for record in kept)) or "none"
        raise MCNError(
            f"--compare {','.join(rows)}: no records of table {table} keep, for all of these rows and on one "
            f"list, which videos were right (rows that do: {known_rows})"
        )
    return said


def _compared(block: Sequence[Record], rows: Sequence[str]) -> list[str]:
    """Records of one list, protocol and device: a paragraph for each metric that all rows have."""
    of_row: dict[str, list[Record]] = {}
    for group in by_group(block):
        row = group[0].row
        if row in of_row:
            raise MCNError(f"{row} was measured with several settings: give --results with one experiment's")
        of_row[row] = group
    if set(of_row) != set(rows):
        return []
    first = block[0]
    said, sources = [], first.hits.sources
    for metric in first.hits.right:
        if not all(metric in record.hits.right for record in block):
            continue
        hits = {row: np.stack([record.hits.of(metric) for record in of_row[row]]) for row in rows}
        means = resampled(list(hits.values()), sources)
        said += [
            f"{metric}, per cent of {first.data.test} test videos from {len(set(sources))} sources "
            f"({first.data.name}, split {first.data.split}, {first.profile}, {first.device})",
            *(f"  {row}: {100 * each.mean():.1f} ({_by(len(each))})" for row, each in hits.items()),
            *(f"  {found.line()}" for found in differences(hits, means)),
            *(
                f"  order {' > '.join(order)}: {100 * share:.0f} % of resamples"
                for order, share in orders(rows, means).items()
                if share >= 0.01
            ),
        ]
    return said


def _by(number: int) -> str:
    """The seeds behind a mean, and what one alone cannot say."""
    return seeds_in_words(number) + ": the interval is over videos alone" * (number == 1)
