"""Result records: what is refused and how, what is averaged, and intervals against scipy and a simulation."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mcn._student import student_t
from mcn.errors import MCNError
from mcn.hits import hits_of
from mcn.results import (
    HELD_OUT,
    DataUsed,
    Record,
    by_group,
    comparable,
    load_records,
    own_records,
    save_record,
    summary,
)

ROOT = Path(__file__).resolve().parents[2]


def record(**changes: Any) -> Record:
    return Record(
        **{
            "table": "5",
            "row": "contrast",
            "setting": {"pretrain": {"lr": 0.01, "order": "none", "milestones": (0.5, 0.8)}},
            "seed": 0,
            "metrics": {"probe_top1": 61.5, "retrieval_top1": 40.25},
            "data": DataUsed("UCF101, 13 classes", split=1, train=1260, test=503),
            "profile": "laptop",
            "protocol": "quick probe; 10 clips, rgb",
            "device": "Prozessor № 1",
            "versions": {"torch": "2.11.0"},
            "commit": "0123456789ab",
            "wall_seconds": 12.5,
            "curve": {"step": [1, 2], "loss": [8.0, None]},
            **changes,
        }
    )


def content_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    first, other = record(), record(seed=1, paper=True, units="seconds", metrics={"wait": 900.0}, curve={})
    paths = [save_record(each, tmp_path / "new") for each in (first, other)]
    assert all(path.parent == tmp_path / "new" for path in paths)
    assert len(set(paths)) == 2
    loaded = load_records(tmp_path / "new")
    assert len(loaded) == 2
    plain = [json.loads(json.dumps(dataclasses.asdict(each))) for each in (first, other)]
    assert sorted((dataclasses.asdict(each) for each in loaded), key=lambda each: each["seed"]) == plain
    assert {each.group for each in loaded} == {first.group, other.group}  # tuples became lists, no matter
    assert list(content_of(paths[0]))[:4] == ["format", "table", "row", "setting"]


def test_a_file_has_exactly_the_documented_fields(tmp_path: Path) -> None:
    documented = re.findall(r"^\| `(\w+)` \|", (ROOT / "book/results/README.md").read_text(), flags=re.M)
    assert list(content_of(save_record(record(), tmp_path))) == documented


def test_measuring_again_replaces_and_another_setting_does_not(tmp_path: Path) -> None:
    save_record(record(), tmp_path)
    again = record(commit="ffffffffffff", metrics={"probe_top1": 10.0}, wall_seconds=1.0)
    save_record(again, tmp_path)
    assert [each.commit for each in load_records(tmp_path)] == ["ffffffffffff"]
    for change in ({"setting": {"pretrain": {"lr": 0.02}}}, {"device": "GPU"}, {"protocol": "ten-crop"}):
        save_record(record(**change), tmp_path)
    assert len(load_records(tmp_path)) == 4
    assert not list(tmp_path.glob(".*"))


BAD = [
    ("format", 1, "reads format 2"),
    ("table", 5, '"1" to "10"'),
    ("table", "11", '"1" to "10"'),
    ("row", "CL + BL", "small letters"),
    ("row", "../contrast", "small letters"),
    ("row", None, "one line of text"),
    ("setting", [1], "object with names"),
    ("setting", {"lr": math.nan}, "JSON cannot"),
    ("setting", {"out": Path("x")}, "JSON cannot"),
    ("seed", True, "whole number"),
    ("seed", -1, "whole number"),
    ("seed", 0.5, "whole number"),
    ("metrics", {}, "at least one"),
    ("metrics", {"probe_top1": 100.5}, "metrics.probe_top1 is 100.5: per cent are from 0 to 100"),
    ("metrics", {"probe_top1": math.nan}, "finite"),
    ("metrics", {"probe_top1": "61"}, "finite"),
    ("metrics", {"probe_top1": True}, "finite"),
    ("units", "", "one line of text"),
    ("data", "UCF101", "name, split, train, test, subset"),
    ("profile", "huge", "one of smoke, laptop, paper"),
    ("protocol", "two\nlines", "one line of text"),
    ("device", 3, "one line of text"),
    ("versions", {"torch": 2.11}, "versions.torch is 2.11"),
    ("commit", " ", "one line of text"),
    ("wall_seconds", -1.0, "at least 0"),
    ("wall_seconds", math.inf, "at least 0"),
    ("curve", {"loss": 3.0}, "curve.loss"),
    ("curve", {"loss": [1.0, math.inf]}, "finite"),
    ("curve", {"loss": [1.0], "step": [1, 2]}, "one length"),
    ("paper", 1, "true or false"),
    ("hits", {}, "digest, sources, right"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD, ids=lambda value: str(value)[:20])
def test_what_a_field_cannot_be_is_one_line_that_names_it(name: str, value: Any, words: str) -> None:
    with pytest.raises(MCNError) as said:
        record(**{name: value})
    assert str(said.value).startswith(name)
    assert words in str(said.value)
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 200


@pytest.mark.parametrize(
    ("change", "words"),
    [({"name": ""}, "data.name"), ({"split": 0}, "data.split"), ({"train": -1}, "data.train"),
     ({"test": "503"}, "data.test"), ({"split": True}, "data.split"),
     ({"subset": "validation"}, "data.subset")],
)  # fmt: skip
def test_bad_data_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(MCNError, match=re.escape(words)):
        DataUsed(**{"name": "x", "split": 1, "train": 1, "test": 1, **change})


def damaged(path: Path, damage: str) -> None:
    content = content_of(path)
    if damage == "torn":
        path.write_text(path.read_text()[:100])
    elif damage == "list":
        path.write_text("[]")
    elif damage == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    elif damage == "data":
        path.write_text(json.dumps({**content, "data": {"name": "x"}}))
    elif damage == "value":
        path.write_text(json.dumps({**content, "seed": "0"}))
    else:
        path.write_text(json.dumps({k: v for k, v in content.items() if k != "commit"} | {"extra": 1}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [("torn", "not a record"), ("binary", "not a record"), ("list", "record is not a JSON object"),
     ("data", "data lacks split, subset, test, train"), ("value", "seed is '0'"),
     ("fields", "record lacks commit")],
)  # fmt: skip
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, damage: str, words: str) -> None:
    save_record(record(seed=1), tmp_path)
    path = save_record(record(), tmp_path)
    damaged(path, damage)
    with pytest.raises(MCNError) as said:
        load_records(tmp_path)
    assert str(said.value).startswith(f"{path}: {words}")
    assert "\n" not in str(said.value)


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    path = save_record(record(), tmp_path)
    content = {**content_of(path), "format": 1}
    del content["hits"], content["data"]["subset"]
    path.write_text(json.dumps(content))
    with pytest.raises(MCNError, match=r"format is 1: this version of mcn reads format 2"):
        load_records(tmp_path)


def test_hits_are_kept_and_agree_with_the_metrics(tmp_path: Path) -> None:
    names = [f"a/v_X_g{n // 4:02d}_c{n % 4:02d}.avi" for n in range(503)]
    right = [n % 2 == 0 for n in range(503)]
    hits = hits_of(names, {"probe_top1": right})
    metrics = {"probe_top1": round(100 * 252 / 503, 4), "retrieval_top1": 1.0}
    made = record(hits=hits, metrics=metrics)
    save_record(made, tmp_path)
    (loaded,) = load_records(tmp_path)
    assert loaded.hits == hits
    assert loaded.hits.of("probe_top1").tolist() == right
    assert made.group == record().group  # hits are a result, not a setting
    with pytest.raises(MCNError, match=r"metrics.probe_top1 is 50.2: its bits say 50.0994 per cent"):
        record(hits=hits, metrics={"probe_top1": 50.2})
    with pytest.raises(MCNError, match=r"metrics.probe_top1 is None"):
        record(hits=hits, metrics={"retrieval_top1": 1.0})
    with pytest.raises(MCNError, match=r"hits.sources.*a number for each of 503 test videos"):
        record(hits=hits_of(names[:9], {}))


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    path = save_record(record(), tmp_path)
    path.write_text(json.dumps({**content_of(path), "sead": 3}))
    with pytest.raises(MCNError, match="has unknown sead"):
        load_records(tmp_path)


def test_folders_and_copies(tmp_path: Path) -> None:
    with pytest.raises(MCNError, match="no such folder"):
        load_records(tmp_path / "missing")
    assert load_records(tmp_path) == []
    path = save_record(record(), tmp_path)
    (tmp_path / "copy.json").write_bytes(path.read_bytes())
    with pytest.raises(MCNError, match=r"hold the same row and seed"):
        load_records(tmp_path)
    (tmp_path / "blocked").write_text("")
    with pytest.raises(MCNError, match="cannot write"):
        save_record(record(), tmp_path / "blocked")


def test_the_order_is_by_table_row_and_seed(tmp_path: Path) -> None:
    keys = [("10", "pp", 0), ("2", "mcn-s3d", 3), ("2", "mcn-s3d", 11), ("2", "baseline-s3d", 5)]
    for table, row, seed in keys:
        save_record(record(table=table, row=row, seed=seed), tmp_path)
    loaded = [(each.table, each.row, each.seed) for each in load_records(tmp_path)]
    assert loaded == [keys[3], keys[1], keys[2], keys[0]]


def test_only_the_seed_and_what_carries_a_run_out_may_differ_in_a_mean() -> None:
    plain = {"lr": 0.1, "clips": 10}
    carried = {"seed": 3, "out": "runs/x", "workers": 7, "device": "cuda", "checkpoint": "runs/y/3.pt"}
    assert comparable({"probe": {**plain, **carried}, "seed": 1}) == {"probe": plain}
    one = record(setting={"probe": {**plain, **carried}})
    same = record(setting={"probe": plain}, seed=3, commit="abc", wall_seconds=1, versions={}, curve={})
    assert one.group == same.group
    for name, value in {
        "table": "1", "row": "mcn", "setting": {"probe": {**plain, "lr": 0.2}}, "units": "points",
        "data": DataUsed("UCF101, 13 classes", 1, 1260, 503, HELD_OUT), "profile": "paper",
        "protocol": "other",
        "device": "other", "paper": True,
    }.items():  # fmt: skip
        differing = dataclasses.replace(same, **{name: value})
        assert differing.group != one.group, name
        assert len(by_group([one, differing])) == 2
        with pytest.raises(MCNError, match="differ in more than the seed"):
            summary([one, differing], "probe_top1")
    assert by_group([one, record(), same]) == [[one, same], [record()]]


def test_summary_by_hand() -> None:
    seeds = [
        record(seed=seed, metrics={"probe_top1": value}) for seed, value in enumerate((60.0, 62.0, 67.0))
    ]
    found = summary(seeds, "probe_top1")
    assert (found.mean, found.n) == (63.0, 3)
    assert found.spread == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    half = 4.302652729911275 * found.spread / math.sqrt(3)  # t(.975, 2) from a printed table: 4.3027
    assert (found.low, found.high) == pytest.approx((63 - half, 63 + half))
    one = summary(seeds[:1], "probe_top1")
    assert (one.mean, one.n, one.spread, one.low, one.high) == (60.0, 1, None, None, None)
    equal = summary([record(seed=0), record(seed=1)], "probe_top1")
    assert (equal.spread, equal.low, equal.high) == (0, 61.5, 61.5)


def test_a_mean_of_nothing_of_doubles_and_of_what_was_not_measured_is_refused() -> None:
    with pytest.raises(MCNError, match="no records"):
        summary([], "probe_top1")
    with pytest.raises(MCNError, match="a seed occurs twice"):
        summary([record(), record(commit="abc")], "probe_top1")
    with pytest.raises(MCNError, match="has no 'finetune_top1': it has probe_top1, retrieval_top1"):
        summary([record(), record(seed=1)], "finetune_top1")


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.999])
def test_student_against_scipy(share: float) -> None:
    for freedom in [*range(1, 31), 99, 100, 1000]:
        assert student_t(share, freedom) == pytest.approx(stats.t.ppf((1 + share) / 2, freedom), rel=1e-9)


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(50, 3, size=(2000, 3))
    made = [[record(seed=seed, metrics={"x": float(v)}) for seed, v in enumerate(row)] for row in draws]
    inside = [found.low <= 50 <= found.high for found in (summary(each, "x") for each in made)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_the_records_of_this_repository_load_and_hold_no_private_path() -> None:
    folder = ROOT / "book" / "results"
    assert own_records() == load_records(folder)
    for path in folder.glob("*.json"):
        private = re.search(r'"(?:/|[A-Za-z]:\\\\|~)[^"]*"', path.read_text(encoding="utf-8"))
        assert private is None, f"{path.name}: {private}"
        assert path.stat().st_size < 200_000, path.name
