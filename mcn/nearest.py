"""Exact nearest neighbours by cosine, in bounded memory: never the whole matrix of similarities.

Tile by tile, float32 products find candidates, a few more than are asked for. Where two similarities
are closer than float32 can tell, they are computed again in float64; where the candidates may not hold
all that belong among the nearest (features that are nearly all alike), the query's whole row is. What
differs by less than 1e-12 is a tie, and the one that comes first in the gallery wins.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mcn.errors import MCNError

Array = NDArray[Any]

_SPARE = 16  # candidates beyond those asked for
_TILE = 1 << 26  # bytes of a tile of features in float64
_QUERIES, _GALLERY = 4096, 16384  # rows of a tile, where features are narrow
_COLUMNS = 2048  # of the gallery's tile at a time: products that fit into a processor's cache
_TIE = 2.0**-40  # float64 similarities are rounded to multiples of this before they are compared


def nearest(queries: Array, gallery: Array, k: int) -> Array:
    """Rows of the ``k`` gallery features that are most similar to each query, most similar first.

    ``queries`` ``(Q, D)`` and ``gallery`` ``(G, D)`` are floating point and may be memory-mapped; they are
    compared by cosine, in which a feature of length zero is similar to nothing (0). Rows with a NaN or an
    infinity are never anyone's neighbour, and as queries get -1 throughout. Gives int64 ``(Q, K)``, where
    ``K`` is ``k`` or, if that is less, the number of finite rows of the gallery. Beside what is given and
    the result, memory is about 200 MB for any ``Q`` and ``G``. Raises :class:`~mcn.errors.MCNError` for
    features of different width and a gallery without a finite row.

    >>> nearest(np.array([[3.0, 0.1]]), np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]), 2)
    array([[1, 2]])
    """
    if queries.ndim != 2 or queries.shape[1:] != gallery.shape[1:]:
        raise MCNError(f"queries {queries.shape} and gallery {gallery.shape} are not features of one width")
    usable = _finite(gallery)
    k = min(k, int(usable.sum()))
    if k < 1:
        raise MCNError(f"no finite feature among the {len(gallery)} of the gallery, or none asked for")
    score, row = _candidates(queries, gallery, usable, min(k + _SPARE, int(usable.sum())))
    error = _float32_error(queries.shape[1])
    # Beyond the last candidate nothing is more similar than it: is that surely less than the k-th?
    found_all = row.shape[1] == usable.sum()
    doubtful = np.flatnonzero((score[:, k - 1] - score[:, -1] <= 2 * error) & (not found_all))
    score = score.astype(np.float64)
    _settle(score, row, queries, gallery, error)
    order = np.take_along_axis(row, np.lexsort((row, -score))[:, :k], axis=1)
    if len(doubtful):
        order[doubtful] = _by_float64(queries, doubtful, gallery, usable, k)
    order[~_finite(queries)] = -1
    return order


def cosines(query: Array, gallery: Array, rows: Array) -> Array:
    """Cosine of one query ``(D,)`` and each of the gallery's ``rows``, float64 (:eq:`eq-retrieval-cosine`).

    >>> cosines(np.array([1.0, 1.0]), np.array([[2.0, 0.0], [3.0, 3.0]]), np.array([1, 0])).round(3)
    array([1.   , 0.707])
    """
    return np.einsum("kd,d->k", _unit(gallery[rows]), _unit(query[None])[0])


def _float32_error(width: int) -> float:
    """Error of a float32 product of two unit vectors: some five times the largest that is seen."""
    return (4 + 2 * width**0.5) * 2.0**-24


def _unit(x: Array, dtype: type = np.float64) -> Array:
    """Rows at unit length; zero where they have none, or are not finite."""
    length = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    good = np.isfinite(length) & (length > 0)
    scale = np.divide(1.0, length, where=good, out=np.zeros(len(x)))
    unit = np.multiply(x, scale[:, None].astype(dtype), dtype=dtype)
    unit[~good] = 0.0
    return unit


def _tiles(x: Array, rows: int) -> Iterator[slice]:
    """Slices of at most ``rows`` rows, and of a bounded number of bytes."""
    step = max(1, min(rows, _TILE // (8 * max(1, x.shape[1]))))
    for first in range(0, len(x), step):
        yield slice(first, min(first + step, len(x)))


def _finite(x: Array) -> NDArray[np.bool_]:
    parts = [np.isfinite(x[i : i + 4096]).all(axis=1) for i in range(0, len(x), 4096)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)


def _candidates(queries: Array, gallery: Array, usable: Array, count: int) -> tuple[Array, Array]:
    """Float32 similarity ``(Q, count)`` and row of each query's candidates, most similar first."""
    score = np.full((len(queries), count), -np.inf, dtype=np.float32)
    row = np.zeros((len(queries), count), dtype=np.int64)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for part in _tiles(gallery, _GALLERY):
            keep = part.start + np.flatnonzero(usable[part])
            unit = _unit(gallery[keep], np.float32)
            for here in _tiles(queries, _QUERIES):
                asking = _unit(queries[here], np.float32)
                for i in range(0, len(keep), _COLUMNS):
                    rows = keep[i : i + _COLUMNS]
                    product = asking @ unit[i : i + _COLUMNS].T
                    shares = [np.array_split(of, threads) for of in (score[here], row[here], product)]
                    list(pool.map(_keep_best, *shares, [rows] * threads))
    return score, row


def _keep_best(score: Array, row: Array, product: Array, rows: Array) -> None:
    """Let the similarities ``product`` ``(Q, R)`` to ``rows`` of the gallery compete with those kept."""
    if not len(score):
        return
    worst = score[:, -1:]
    if np.isneginf(worst).any():  # not enough seen so far
        place = _largest(product, min(score.shape[1], len(rows)))
        value, found = np.take_along_axis(product, place, axis=1), rows[place]
    else:  # few are better than the worst kept: only those are looked at
        query, column = np.divmod(np.flatnonzero(product > worst), len(rows))
        each = np.bincount(query, minlength=len(score))
        place = np.arange(len(query)) - np.repeat(each.cumsum() - each, each)
        value = np.full((len(score), int(each.max())), -np.inf, dtype=np.float32)
        found = np.zeros(value.shape, dtype=np.int64)
        value[query, place], found[query, place] = product[query, column], rows[column]
    value, found = np.concatenate([score, value], axis=1), np.concatenate([row, found], axis=1)
    order = np.argsort(-value, axis=1)[:, : score.shape[1]]
    score[:], row[:] = np.take_along_axis(value, order, 1), np.take_along_axis(found, order, 1)


def _largest(values: Array, count: int) -> Array:
    """Columns of the ``count`` largest of each row, in any order."""
    found = np.empty((len(values), count), dtype=np.int64)
    first = values.shape[1] - count
    for i in range(0, len(values), 256):  # of all rows at once, the order of all columns would fill memory
        found[i : i + 256] = np.argpartition(values[i : i + 256], first, axis=1)[:, first:]
    return found


def _settle(score: Array, row: Array, queries: Array, gallery: Array, error: float) -> None:
    """Put float64 similarities where the float32 ones of a query are too close to tell, in place."""
    close = score[:, :-1] - score[:, 1:] <= 2 * error
    unsure = np.zeros(score.shape, dtype=bool)
    unsure[:, :-1] |= close
    unsure[:, 1:] |= close
    query, place = np.nonzero(unsure)
    step = max(1, _TILE // (32 * queries.shape[1]))
    for i in range(0, len(query), step):
        q, p = query[i : i + step], place[i : i + step]
        product = np.einsum("nd,nd->n", _unit(queries[q]), _unit(gallery[row[q, p]]))
        score[q, p] = _rounded(product)


def _by_float64(queries: Array, which: Array, gallery: Array, usable: Array, k: int) -> Array:
    """The same for the queries ``which`` with every similarity in float64: slow, and always right."""
    order = np.zeros((len(which), k), dtype=np.int64)
    for i in range(0, len(which), 64):
        asking = _unit(queries[which[i : i + 64]])
        score, row = np.empty((len(asking), 0)), np.empty((len(asking), 0), dtype=np.int64)
        for part in _tiles(gallery, _GALLERY):
            keep = part.start + np.flatnonzero(usable[part])
            score = np.concatenate([score, _rounded(asking @ _unit(gallery[keep]).T)], axis=1)
            row = np.concatenate([row, np.broadcast_to(keep, (len(asking), len(keep)))], axis=1)
            best = np.argsort(-score, axis=1, kind="stable")[:, :k]  # ties: earlier rows stand first
            score, row = np.take_along_axis(score, best, 1), np.take_along_axis(row, best, 1)
        order[i : i + 64] = row
    return order


def _rounded(similarity: Array) -> Array:
    return np.round(similarity / _TIE) * _TIE
