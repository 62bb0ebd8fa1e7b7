"""Exact retrieval: our time over faiss's at UCF101's size, and memory at Kinetics-400's.

Run ``python tests/benchmarks/bench_retrieval.py`` for the numbers, or ``pytest -m benchmark`` for the bars.
faiss is no dependency: without it (``pip install faiss-cpu``) the comparison is left out.
"""

import importlib.util
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from mcn.nearest import cosines, nearest

RATIO, MEGABYTES = 1.5, 300
UCF101, KINETICS, WIDTH, K, ROUNDS = (3783, 9537), (20_000, 240_000), 512, 50, 9


def random_features(count: int, seed: int) -> np.ndarray:
    """Features ``(count, WIDTH)`` float32."""
    return np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32)


def by_faiss(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The same search: cosine, exact."""
    import faiss

    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery)]
    index = faiss.IndexFlatIP(WIDTH)
    index.add(unit[1])
    return index.search(unit[0], K)[1]


def timed(work: Callable[..., Any], *given: Any) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work(*given)
    return time.perf_counter() - start


def ratio() -> tuple[float, float, float]:
    """Our time over faiss's (the median of pairs, one right after the other), and both in seconds."""
    queries, gallery = (random_features(count, seed) for seed, count in enumerate(UCF101))
    ours, theirs = nearest(queries, gallery, K), by_faiss(queries, gallery)
    for row in np.flatnonzero((ours != theirs).any(axis=1)):  # only ties may be in another order
        mine, other = (cosines(queries[row], gallery, of[row]) for of in (ours, theirs))
        np.testing.assert_allclose(mine, other, atol=1e-6, rtol=0)
    pairs = [(timed(nearest, queries, gallery, K), timed(by_faiss, queries, gallery)) for _ in range(ROUNDS)]
    ours_s, theirs_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    return statistics.median(mine / other for mine, other in pairs), ours_s, theirs_s


def peak_megabytes(queries: int, gallery: int) -> tuple[float, float]:
    """Most memory that a search in memory-mapped features takes, result included, and its seconds."""
    with TemporaryDirectory() as folder:
        mapped = []
        for seed, count in enumerate((queries, gallery)):
            x = np.lib.format.open_memmap(Path(folder) / f"{seed}.npy", "w+", np.float32, (count, WIDTH))
            for first in range(0, count, 10_000):
                x[first : first + 10_000] = random_features(min(10_000, count - first), seed + first)
            mapped.append(x)
        tracemalloc.start()
        start = time.perf_counter()
        nearest(*mapped, K)
        took, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak / 1e6, took


@pytest.mark.benchmark
@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="the comparison is with faiss")
def test_exact_search_takes_no_more_than_half_again_of_faiss() -> None:
    found, ours, theirs = ratio()
    assert found <= RATIO, f"{ours:.2f} s, faiss {theirs:.2f} s: {found:.2f} times; the bar is {RATIO}"


@pytest.mark.benchmark
def test_kinetics_is_searched_in_bounded_memory() -> None:
    peak, _ = peak_megabytes(*KINETICS)
    assert peak <= MEGABYTES, f"{peak:.0f} MB; the bar is {MEGABYTES}, the whole matrix would be 19,200"


def main() -> None:
    """Print the numbers."""
    if importlib.util.find_spec("faiss"):
        found, ours, theirs = ratio()
        print(f"{UCF101[0]} x {UCF101[1]}, width {WIDTH}, top {K}: {ours:.2f} s, faiss {theirs:.2f} s, "
              f"ratio {found:.2f} (bar {RATIO})")  # fmt: skip
    peak, took = peak_megabytes(*KINETICS)
    print(f"{KINETICS[0]} x {KINETICS[1]}: {took:.0f} s, {peak:.0f} MB beside the features (bar {MEGABYTES})")


if __name__ == "__main__":
    sys.exit(main())
