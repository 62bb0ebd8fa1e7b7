"""Which step sizes are chosen, on what, and when nothing may be."""

from typing import Any

import pytest

from mcn.errors import MCNError
from mcn.results import HELD_OUT, TEST, DataUsed, Record
from mcn.tuning import choose, chosen, lines

ROWS = {"contrast": {"order": "none"}, "mcn": {"order": "exact"}}


def record(row: str, lr: float, probe: float, seed: int = 100, subset: str = HELD_OUT, **more: Any) -> Record:
    setting = {**ROWS[row], "lr": lr, "inner_lr": lr / 10, "validation": subset == HELD_OUT, "trained": True}
    return Record(
        **{
            "table": "5", "row": row, "setting": {"pretrain": {**setting, **more.pop("settings", {})}},
            "seed": seed, "metrics": {"probe_top1": probe}, "data": DataUsed("drawn", 1, 24, 8, subset),
            "profile": "smoke", "protocol": "quick", "device": "x86_64", "versions": {},
            "commit": "0123456789ab", "wall_seconds": 9.0, **more,
        }
    )  # fmt: skip


FOUND = [
    record("contrast", 0.01, 50.0), record("contrast", 0.03, 62.5),
    record("mcn", 0.01, 75.0), record("mcn", 0.03, 25.0),
]  # fmt: skip


def test_each_row_takes_its_own_best() -> None:
    choices = choose(FOUND, ROWS, ROWS, "drawn")
    assert choices["contrast"].step_sizes == {"lr": 0.03, "inner_lr": 0.003}
    assert choices["mcn"].step_sizes == {"lr": 0.01, "inner_lr": 0.001}
    assert choices["mcn"].recorded() == {
        "on": HELD_OUT, "videos": 8, "on_seeds": [100],
        "tried": [{"lr": 0.01, "inner_lr": 0.001, "probe_top1": 75.0},
                  {"lr": 0.03, "inner_lr": 0.003, "probe_top1": 25.0}],
    }  # fmt: skip


def test_the_mean_over_seeds_decides_and_of_equals_the_smaller_step() -> None:
    found = ((0.01, 90, 0), (0.01, 0, 1), (0.03, 46, 0), (0.03, 46, 1))
    seeds = [record("mcn", lr, probe, seed) for lr, probe, seed in found]
    assert choose(seeds, ROWS, ["mcn"], "drawn")["mcn"].step_sizes["lr"] == 0.03
    equal = [record("mcn", lr, 50.0) for lr in (0.1, 0.03, 0.3)]
    assert choose(equal, ROWS, ["mcn"], "drawn")["mcn"].step_sizes["lr"] == 0.03


def test_a_candidate_that_diverged_counts_as_tried_and_is_not_chosen() -> None:
    lost = [record(row, 0.1, 0.0, metrics={"diverged_after": 2.5}) for row in ROWS]
    for row, choice in choose([*FOUND, *lost], ROWS, ROWS, "drawn").items():
        assert choice.step_sizes["lr"] < 0.1
        assert {"lr": 0.1, "inner_lr": 0.01, "probe_top1": 0.0} in choice.recorded()["tried"], row


@pytest.mark.parametrize("better", [0.0, 100.0])
def test_one_record_about_test_videos_stops_it_whatever_it_says(better: float) -> None:
    for row in ("mcn", "contrast"):
        with pytest.raises(MCNError, match="is about test videos, on which nothing is chosen"):
            choose([*FOUND, record(row, 0.1, better, subset=TEST)], ROWS, ["mcn"], "drawn")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (FOUND[:2], "no held-out record of mcn for drawn"),
        (FOUND[:3], r"different numbers of step sizes to choose from \(contrast: 2 .*mcn: 1 on"),
        (
            [*FOUND, record("mcn", 0.03, 1.0, seed=101)],
            "not every step size of mcn was tried on",
        ),
        ([*FOUND[:3], record("mcn", 0.03, 1.0, seed=101)], "not every step size of mcn"),
        ([*FOUND[:3], record("mcn", 0.03, 1.0, profile="laptop")], "differ in data, profile or protocol"),
        ([*FOUND, record("mcn", 0.03, 1.0, profile="laptop")], "two records of seed 100 with lr 0.03"),
    ],
)
def test_unequal_chances_are_refused(records: list[Record], said: str) -> None:
    with pytest.raises(MCNError, match=said):
        choose(records, ROWS, ["mcn"], "drawn")


def test_records_of_other_experiments_are_passed_over() -> None:
    others = [
        record("mcn", 0.1, 99.0, settings={"epochs": 3}),
        record("mcn", 0.1, 99.0, data=DataUsed("other", 1, 24, 8, HELD_OUT)),
        record("mcn", 0.1, 99.0, table="3"),
    ]
    assert choose([*FOUND, *others], ROWS, ROWS, "drawn") == choose(FOUND, ROWS, ROWS, "drawn")
    assert lines(FOUND)[1] == "contrast, seed 100, lr 0.03, inner_lr 0.003: probe_top1 62.5"


def test_what_was_chosen_is_said_of_records_that_were_tuned() -> None:
    tuned = choose(FOUND, ROWS, ROWS, "drawn")["mcn"].recorded()
    made = record("mcn", 0.01, 70.0, seed=0, subset=TEST)
    made.setting["tuned"] = tuned
    assert chosen([*FOUND, made]) == [
        "mcn: lr 0.01, tuned on 8 held-out training videos (probe_top1 by lr: 0.01: 75.0, 0.03: 25.0)"
    ]
