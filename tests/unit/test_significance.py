"""Differences of rows: the bootstrap against brute force and closed forms, detection against a trial."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from mcn.cli import main
from mcn.errors import MCNError
from mcn.hits import hits_of
from mcn.results import HELD_OUT, DataUsed, Record, save_record
from mcn.significance import comparison, differences, orders, resampled, smallest_difference


def test_all_resamples_of_a_small_case() -> None:
    """Every draw of 4 sources, by a naive loop, has the frequencies of the bootstrap."""
    a, b = np.array([1, 0, 0, 1, 1, 0]), np.array([1, 1, 1, 0, 1, 0])
    sources = np.array([0, 0, 1, 2, 3, 3])
    exact: list[float] = []
    for draw in itertools.product(range(4), repeat=4):
        taken = [video for source in draw for video in range(6) if sources[video] == source]
        exact.append(100 * (b[taken].mean() - a[taken].mean()))
    means = resampled([a[None], b[None]], sources, resamples=200_000)
    found = means[:, 1] - means[:, 0]
    for value in sorted(set(np.round(exact, 6))):
        share = np.mean(np.abs(np.array(exact) - value) < 1e-4)
        assert np.mean(np.abs(found - value) < 1e-4) == pytest.approx(share, abs=5e-3)
    (line,) = differences({"a": a[None], "b": b[None]}, means)
    assert line.mean == pytest.approx(100 * (b.mean() - a.mean()))
    assert [line.low, line.high] == pytest.approx(np.percentile(exact, [2.5, 97.5]), abs=0.01)


def test_variance_of_videos_and_of_seeds_have_their_closed_forms() -> None:
    random = np.random.default_rng(1)
    one_seed = random.random((1, 400)) < 0.3
    p = one_seed.mean()
    assert resampled([one_seed])[:, 0].std() == pytest.approx(100 * math.sqrt(p * (1 - p) / 400), rel=0.03)
    # Answers that depend on the seed alone: the unbiased variance of a mean of four.
    seeds = np.repeat(np.array([1, 1, 0, 1])[:, None], 50, axis=1)
    expected = 100 * np.std([1, 1, 0, 1], ddof=1) / 2
    assert resampled([seeds])[:, 0].std() == pytest.approx(expected, rel=0.03)
    # Clips of a source that are answered alike are worth one.
    alike = np.repeat(one_seed, 5, axis=1)
    of_sources = resampled([alike], np.repeat(np.arange(400), 5))[:, 0].std()
    assert of_sources == pytest.approx(100 * math.sqrt(p * (1 - p) / 400), rel=0.03)
    assert resampled([alike])[:, 0].std() < 0.5 * of_sources


def test_rows_are_paired_by_video() -> None:
    random = np.random.default_rng(2)
    hard = random.random(300) < 0.5
    a = hard[None]
    b = a.copy()
    b[0, np.flatnonzero(~hard)[:6]] = True  # right about six videos more, and otherwise the same
    paired = resampled([a, b])
    q = 6 / 300
    assert (paired[:, 1] - paired[:, 0]).std() == pytest.approx(100 * math.sqrt((q - q * q) / 300), rel=0.05)
    assert (paired[:, 1] >= paired[:, 0]).all()
    same = resampled([a, a])
    assert (same[:, 0] == same[:, 1]).all()


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    inside = 0
    for trial in range(300):
        skill = random.normal(0, 1, 200)  # of the videos
        rows = []
        for level in (0.0, 0.3):
            network = random.normal(level, 0.15, (seeds, 1))
            rows.append(skill + network + random.normal(0, 0.7, (seeds, 200)) > 0)
        spread = math.sqrt(1 + 0.15**2 + 0.7**2)
        truth = 100 * (0.5 * (1 + math.erf(0.3 / spread / math.sqrt(2))) - 0.5)
        means = resampled(rows, resamples=1000, seed=trial)
        low, high = np.percentile(means[:, 1] - means[:, 0], [2.5, 97.5])
        inside += low <= truth <= high
    assert 0.95 - 0.038 <= inside / 300 <= 0.95 + 0.038  # three standard errors of 300 trials


def test_orders_add_up_and_follow_from_the_means() -> None:
    random = np.random.default_rng(0)
    means = random.normal([0.0, 1.0, 5.0], 1.0, (20_000, 3))
    found = orders(["a", "b", "c"], means)
    assert sum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == ("c", "b", "a")
    assert list(found.values()) == sorted(found.values(), reverse=True)
    a_before_b = sum(share for order, share in found.items() if order.index("a") < order.index("b"))
    assert a_before_b == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2) / math.sqrt(2)), abs=0.01)
    equal = orders(["a", "b"], np.zeros((10_000, 2)))
    assert equal[("a", "b")] == pytest.approx(0.5, abs=0.02)


def test_the_smallest_difference_is_found_as_often_as_it_says() -> None:
    """A trial: two rows whose answers differ as assumed, tested with the true standard error."""
    videos, seeds, sd = 400, 3, 2.0
    random = np.random.default_rng(3)
    needed = smallest_difference(videos, seeds, discordance=0.3, seed_sd=sd)
    gain = needed / 100
    better, worse = (0.3 + gain) / 2, (0.3 - gain) / 2
    counts = random.multinomial(videos, [better, worse, 0.7], size=4000)
    of_videos = 100 * (counts[:, 0] - counts[:, 1]) / videos
    of_seeds = random.normal(0, sd, (4000, 2, seeds)).mean(axis=2)
    found = of_videos + of_seeds[:, 1] - of_seeds[:, 0]
    error = math.sqrt(2 * sd**2 / seeds + 100**2 * (0.3 - gain**2) / videos)
    assert np.mean(np.abs(found) / error > 1.959964) == pytest.approx(0.8, abs=0.03)


def test_averaging_over_seeds_lessens_what_seeds_disagree_about() -> None:
    random = np.random.default_rng(4)
    p, seeds = random.beta(1, 1, (2, 200_000)), 5  # how often each row's networks are right about each video
    answers = random.random((2, seeds, p.shape[1])) < p[:, None]
    q = (answers[0, 0] != answers[1, 0]).mean()
    w = (answers[:, 0] != answers[:, 1]).mean()
    spread = (answers[1].mean(0) - answers[0].mean(0)).std()
    needed = smallest_difference(50, seeds, discordance=q, within=w)
    assert needed == pytest.approx((1.959964 + 0.841621) * 100 * spread / math.sqrt(50), rel=0.01)


def test_the_smallest_difference_has_its_limits() -> None:
    videos_alone = smallest_difference(100, 1, discordance=0.5)
    assert videos_alone == pytest.approx((1.959964 + 0.841621) * 100 * math.sqrt(0.5 / 100), rel=1e-5)
    assert smallest_difference(400, 1, discordance=0.5) == pytest.approx(videos_alone / 2)
    assert smallest_difference(100, 4, discordance=0, seed_sd=2) == pytest.approx(2.801585 * math.sqrt(2))
    tied = smallest_difference(500, 1, discordance=0.5, per_source=5, correlation=1)
    assert tied == pytest.approx(videos_alone)
    with pytest.raises(ValueError, match="at least 1"):
        smallest_difference(0, 1, discordance=0.5)


NAMES = [f"a/v_X_g{n // 4:02d}_c{n % 4:02d}.avi" for n in range(40)]


def record(row: str, seed: int, right: int, **changes: Any) -> Record:
    hits = hits_of(NAMES, {"probe_top1": [n < right for n in range(40)]})
    return Record(
        **{
            "table": "5", "row": row, "setting": {"pretrain": {"order": row}}, "seed": seed,
            "metrics": {"probe_top1": 100 * right / 40, "probe_top5": 90.0},
            "data": DataUsed("drawn", 1, 80, 40), "profile": "smoke", "protocol": "quick",
            "device": "x86_64", "versions": {}, "commit": "0123456789ab", "wall_seconds": 9.0, "hits": hits,
            **changes,
        }
    )  # fmt: skip


RECORDS = [record("contrast", s, 20) for s in range(3)] + [record("mcn", s, 32) for s in range(2)]


def test_rows_in_words(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said = "\n".join(comparison(RECORDS, 5, ["contrast", "mcn"]))
    assert "probe_top1, per cent of 40 test videos from 10 sources (drawn, split 1, smoke, x86_64)" in said
    assert "contrast: 50.0 (3 seeds)" in said
    assert "mcn minus contrast: +30.0 [+" in said
    assert "order mcn > contrast: " in said
    for each in RECORDS:
        save_record(each, tmp_path)
    assert main(["table", "5", "--compare", "contrast,mcn", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == said
    assert main(["table", "5", "--compare", "contrast", "--results", str(tmp_path)]) == 1
    assert "give at least two rows" in capsys.readouterr().err


def test_only_what_can_be_compared_is() -> None:
    with pytest.raises(MCNError, match=r"no record of mnc, cl \(rows that it has: contrast, mcn\)"):
        comparison(RECORDS, 5, ["contrast", "mnc", "mcn", "cl"])
    with pytest.raises(MCNError, match=r"table 4 has no record of .* \(rows that it has: none\)"):
        comparison(RECORDS, 4, ["contrast", "mcn"])
    held = [record(row, 0, 9, data=DataUsed("drawn", 1, 80, 40, HELD_OUT)) for row in ("contrast", "mcn")]
    with pytest.raises(MCNError, match=r"no records of table 5 .* \(rows that do: none\)"):
        comparison(held, 5, ["contrast", "mcn"])
    elsewhere = record("mcn", 0, 9, device="other")
    with pytest.raises(MCNError, match="on one list"):
        comparison([*RECORDS[:3], elsewhere], 5, ["contrast", "mcn"])
    other = record("mcn", 0, 9, setting={"pretrain": {"order": "mcn", "lr": 3.0}})
    with pytest.raises(MCNError, match="mcn was measured with several settings"):
        comparison([*RECORDS, other], 5, ["contrast", "mcn"])
    alone = [record("contrast", 0, 20), record("mcn", 0, 32)]
    assert any(
        "1 seed: the interval is over videos alone" in s for s in comparison(alone, 5, ["contrast", "mcn"])
    )
