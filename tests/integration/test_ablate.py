"""``mcn ablate``: the paper's rows as settings, run cell by cell, recorded, continued, never mixed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mcn import ablation
from mcn.ablation import ablate, cells_of
from mcn.checkpoint import load_checkpoint
from mcn.cli import main
from mcn.config import AblateConfig, PretrainConfig, build, load_preset
from mcn.data.datasets import load_videos
from mcn.data.plan import steps_per_epoch
from mcn.errors import MCNError
from mcn.results import HELD_OUT, TEST, DataUsed, load_records
from mcn.rows import TABLES
from mcn.tables import NOT_MEASURED, paper_table, render

EVERY = ("probe", "headline", "retrieval", "finetune", "motion")


@pytest.fixture
def config(action_data: Path, tmp_path: Path) -> Callable[..., AblateConfig]:
    def make(**changes: Any) -> AblateConfig:
        known = {
            "data": str(action_data), "profile": "smoke", "seeds": 1, "device": "cpu", "threads": 1,
            "out": str(tmp_path / "runs"), "results": str(tmp_path / "results"), "set": ("epochs=1",),
        }  # fmt: skip
        return AblateConfig(**{**known, **changes})

    return make


def test_rows_have_the_names_of_the_papers_rows() -> None:
    for number, rows in TABLES.items():
        names = [row.name for row in rows]
        assert len(set(names)) == len(names)
        assert names[: len(paper_table(int(number)).rows)] == list(paper_table(int(number)).rows)


def test_rows_are_settings_of_one_path(config: Callable[..., AblateConfig]) -> None:
    cells = {cell.row: cell.settings for cell in cells_of(config(), "5")}
    built = {name: build(PretrainConfig, settings) for name, settings in cells.items()}
    assert {name: (c.order, c.cls_weight) for name, c in list(built.items())[:4]} == {
        "contrast": ("none", 0.0),
        "contrast-binary": ("none", 0.2),
        "mcn": ("exact", 0.2),
        "mcn-first-order": ("first", 0.2),
    }
    assert built["mcn-single-fc"].head == "linear"
    assert built["contrast-64-negatives"].negatives == 64
    longer = built.pop("contrast-twice-as-long")
    assert ({c.epochs for c in built.values()}, longer.epochs) == ({1}, 2)
    alphas = [cell.settings["cls_weight"] for cell in cells_of(config(), "3")]
    assert alphas == [0.1, 0.2, 0.3, 0.4]
    frames = [cell.settings["frames"] for cell in cells_of(config(), "4")]
    assert frames == [2, 2, 4, 4, 8, 8]  # the smoke preset's 4 stands for the paper's 32


def test_rows_that_share_clips_updates_or_neither(config: Callable[..., AblateConfig]) -> None:
    cells = {cell.row: build(PretrainConfig, cell.settings) for cell in cells_of(config(set=()), "5")}
    mcn, contrast = cells["mcn"], cells["contrast"]

    def steps(config: PretrainConfig) -> int:
        return config.epochs * steps_per_epoch(1280, config.batch_size, config.order != "none")

    def clips(config: PretrainConfig) -> int:
        return steps(config) * config.batch_size * (1 if config.order == "none" else 2)

    same, longer = cells["contrast-same-updates"], cells["contrast-twice-as-long"]
    assert (steps(same), clips(same)) == (steps(mcn), clips(mcn))
    assert (steps(contrast), clips(contrast)) == (2 * steps(mcn), clips(mcn))
    assert clips(longer) == 2 * clips(mcn)


def test_a_row_that_starts_from_another(config: Callable[..., AblateConfig]) -> None:
    few = config(rows=("mcn-warm-start",))
    (warm,) = ablate(few, "5")
    cells = {cell.row: cell for cell in cells_of(config(), "5")}
    first = cells["contrast"].run / "pretrain"
    started = json.loads((cells["mcn-warm-start"].run / "pretrain" / "started_from.json").read_text())
    assert Path(started["file"]).is_relative_to(first)
    after = warm.setting["pretrain"]["after"]
    assert (after["row"], after["settings"]["order"]) == ("contrast", "none")
    assert str(few.out) not in json.dumps(warm.setting)


def test_pretraining_and_evaluation_on_different_classes(
    config: Callable[..., AblateConfig], action_data: Path
) -> None:
    classes = load_videos(action_data, "train").classes
    few = config(rows=("contrast",), evaluate=("probe", "finetune"), unseen=classes[1:3], name="drawn")
    (record,) = ablate(few, "5")
    assert record.data == DataUsed("drawn, 2 classes unseen in pre-training", 1, 16, 4)
    assert record.setting["pretrain"]["classes"] == [classes[0], classes[3]]
    assert record.setting["probe"]["classes"] == list(classes[1:3])
    run = cells_of(few, "5")[0].run
    state = load_checkpoint(run / "pretrain", torch.device("cpu"))
    assert state["bank"]["rows"].shape[1] == 16
    assert load_checkpoint(run / "finetune", torch.device("cpu"))["classes"] == list(classes[1:3])
    assert ablate(few, "5") == [record]


def test_step_sizes_are_chosen_without_the_test_list(
    config: Callable[..., AblateConfig], own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tuning runs where there is no test list and no test video; its records are all that is looked at."""
    data, held = tmp_path / "training-only", str(tmp_path / "held-out")
    shutil.copytree(own_data, data)
    train = set(load_videos(data, "train").names)
    for path in data.glob("splits/testlist*"):
        path.unlink()
    for path in data.glob("videos/*/*.mp4"):
        if path.relative_to(data / "videos").as_posix() not in train:
            path.unlink()
    assert len(list(data.glob("videos/*/*.mp4"))) == 32
    common = {"rows": ("mcn",), "name": "drawn", "evaluate": ("probe",)}
    for lr in (0.01, 0.05):
        rates = (f"lr={lr}", f"inner_lr={lr / 10}", "epochs=1")
        tuning = config(data=str(data), results=held, subset="held-out", set=rates, **common)
        ablate(tuning, "5")
    found = load_records(held)
    assert len(found) == 2
    where = ["--out", tuning.out, "--results", held, "--device", "cpu", "--threads", "1", "--name", "drawn"]
    flags = [
        "--data",
        str(data),
        "--profile",
        "smoke",
        "--seeds",
        "1",
        "--rows",
        "[mcn]",
        "--evaluate",
        "[probe]",
    ]
    rates = ["--set", "[lr=0.05,inner_lr=0.005,epochs=1]", "--subset", "held-out"]
    capsys.readouterr()
    assert main(["ablate", "table5", *flags, *where, *rates]) == 0  # recorded already: told
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(f"1 of them recorded in {held}")
    assert said[-1].startswith("mcn, seed 0, lr 0.05, inner_lr 0.005: probe_top1 ")
    assert {(each.data.train, each.data.test, each.data.subset) for each in found} == {(24, 8, HELD_OUT)}

    made = ablate(config(data=str(own_data), tuned=held, **common), "5")
    (record,) = made
    best = max(found, key=lambda each: (each.metrics["probe_top1"], -each.setting["pretrain"]["lr"]))
    for name in ("lr", "inner_lr"):
        assert record.setting["pretrain"][name] == best.setting["pretrain"][name]
    assert len(record.setting["tuned"]["tried"]) == 2
    assert (record.data.train, record.data.test, record.data.subset) == (32, 8, TEST)

    # What was measured on test videos is no ground to choose on: not alone, not among others.
    results = config().results
    with pytest.raises(MCNError, match="is about test videos, on which nothing is chosen"):
        cells_of(config(data=str(own_data), tuned=results, **common), "5")
    capsys.readouterr()
    assert main(["table", "5", "--results", held]) == 0
    assert NOT_MEASURED in capsys.readouterr().out


def test_the_papers_profile_takes_each_backbones_preset(config: Callable[..., AblateConfig]) -> None:
    for cell in cells_of(config(profile="paper", set=()), "1"):
        preset = load_preset(f"paper-{cell.settings['backbone']}", "pretrain")
        assert cell.settings["batch_size"] == preset["batch_size"]
        assert cell.settings["frames"] == 32
    assert cells_of(config(profile="paper", set=()), "5")[0].settings["backbone"] == "r2plus1d_18"


def test_cells_of_one_network_share_their_run(config: Callable[..., AblateConfig]) -> None:
    first, second = (cells_of(config(), number) for number in ("1", "2"))
    assert [cell.run for cell in first] == [cell.run for cell in second]
    cells = cells_of(config(seeds=3), "5")
    assert len({cell.run for cell in cells}) == 3 * (len(TABLES["5"]) - 1)  # not from-scratch


def test_seeds_come_one_after_the_other(config: Callable[..., AblateConfig]) -> None:
    cells = cells_of(config(seeds=2, seed=5, rows=("mcn", "untrained")), "5")
    assert [(cell.seed, cell.row) for cell in cells] == [
        (5, "mcn"), (5, "untrained"), (6, "mcn"), (6, "untrained"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "changes", "said"),
    [
        ("6", {}, "table '6' cannot be run: one of 1, 2, 3, 4, 5"),
        ("5", {"rows": ("mnc",)}, "--rows: table 5 has no 'mnc', only contrast"),
        ("5", {"set": ("epoch=3",)}, "--set epoch=3: give NAME=VALUE"),
        ("5", {"set": ("epochs",)}, "--set epochs: give NAME=VALUE"),
        ("5", {"set": ("validation=true",)}, "give --subset held-out"),
        ("5", {"set": ("classes=[Bob]",)}, "give --unseen"),
        ("5", {"unseen": ("Nap",)}, "no class 'Nap'"),
        ("5", {"rows": ("from-scratch",)}, "--rows from-scratch: it is evaluated by finetune"),
        ("5", {"tuned": "x", "set": ("lr=.1",)}, "--set lr=... and --tuned x: give one of them"),
    ],
)
def test_what_there_is_not(
    table: str, changes: dict[str, Any], said: str, config: Callable[..., AblateConfig]
) -> None:
    with pytest.raises(MCNError, match=said):
        cells_of(config(**changes), table)


def test_data_that_cannot_be_evaluated_is_refused_before_anything_runs(
    config: Callable[..., AblateConfig], own_data: Path
) -> None:
    shutil.rmtree(own_data / "splits")
    with pytest.raises(MCNError, match="has no test list"):
        ablate(config(data=str(own_data)), "5")


def test_cells_are_recorded_once_and_a_table_is_continued(
    config: Callable[..., AblateConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = config(rows=("contrast", "untrained"), evaluate=EVERY, jobs=2)
    records = ablate(few, "5")
    assert sorted(record.row for record in records) == ["contrast", "untrained"]
    for record in records:
        assert set(record.metrics) >= {"probe_top1", "retrieval_top1", "retrieval_top5"}
        assert ("finetune_top1" in record.metrics) == (record.row == "contrast")
        assert (record.data.train, record.data.test) == (32, 8)
        assert record.metrics.keys() >= {"headline_top1", "headline_top5", "motion_auc"}
        assert record.setting["pretrain"]["epochs"] == 1
        untaken = {"finetune"} if record.row == "untrained" else set()
        assert record.setting.keys() == {"pretrain", *EVERY} - untaken
        assert record.setting["headline"]["recipe"] == "headline"
        names = {name for name in record.metrics if name.endswith("top1")}
        assert (
            record.hits.right.keys() == names
        )  # that the bits agree with the metrics, a record checks itself
        assert sorted(record.hits.sources) == [0] * 4 + [1] * 4
        assert record.versions["torch"]
        assert len(record.curve.get("loss", [])) == (record.row == "contrast")
        assert all(0 < seconds < 600 for seconds in record.curve.get("seconds", []))
        assert str(tmp_path) not in json.dumps(record.setting)
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    assert ablate(few, "5") == records
    assert "2 cells, 2 of them recorded" in capsys.readouterr().out
    more = ablate(config(rows=("contrast", "untrained"), seeds=2, evaluate=few.evaluate), "5")
    assert sorted((record.row, record.seed) for record in more) == [
        ("contrast", 0), ("contrast", 1), ("untrained", 0), ("untrained", 1),
    ]  # fmt: skip
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    # Other settings are other cells, and their records do not replace these.
    other = ablate(config(rows=("untrained",), set=("frames=6",), evaluate=few.evaluate), "5")
    assert len(other) == 1
    assert len(load_records(tmp_path / "results")) == 5


def test_a_cell_that_fails_does_not_stop_the_others(
    config: Callable[..., AblateConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    # A batch that the videos do not fill fails the trained row, and only that.
    bad = config(rows=("contrast", "untrained"), set=("batch_size=1000",))
    with pytest.raises(MCNError, match=r"1 of 2 cells failed \(the first: contrast, seed 0: .*--batch_size"):
        ablate(bad, "5")
    assert [record.row for record in load_records(bad.results)] == ["untrained"]
    assert "see " in capsys.readouterr().out


def test_a_run_that_diverges_is_recorded_as_one(config: Callable[..., AblateConfig]) -> None:
    (record,) = ablate(config(rows=("contrast",), set=("lr=1e30", "epochs=2")), "5")
    assert record.metrics == {"diverged_after": 0.0}
    assert not record.hits.right
    assert "diverged" in render(5, records=[record])


def test_a_row_whose_start_diverges_is_recorded_as_diverged(config: Callable[..., AblateConfig]) -> None:
    (record,) = ablate(config(rows=("mcn-warm-start",), set=("lr=1e30", "epochs=2")), "5")
    assert record.metrics == {"diverged_after": 0.0}
    assert record.curve == {}


def test_nothing_is_chosen(config: Callable[..., AblateConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell asked for is run and recorded, whatever the others' results are; there is no best of."""
    seen = []

    def fake(work: Any) -> str:
        seen.append((work[0].row, work[0].seed))
        return "not run"

    monkeypatch.setattr(ablation, "_in_process", fake)
    with pytest.raises(MCNError):
        ablate(config(seeds=3), "5")
    names = [row.name for row in TABLES["5"] if row.name != "from-scratch"]  # which has nothing to be probed
    assert sorted(seen) == sorted((name, seed) for name in names for seed in range(3))
    # A network is watched on the test list only where somebody asks for it, and never by these settings.
    assert all(cell.settings.get("eval_every", 0) == 0 for n in TABLES for cell in cells_of(config(), n))


def test_the_command_prints_the_papers_rows_and_the_measured_ones(
    config: Callable[..., AblateConfig], action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(action_data), "--profile", "smoke", "--seeds", "1", "--rows", "[untrained]"]
    where = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--threads", "1"]
    assert main(["ablate", "table5", *flags, *where, "--name", "drawn actions"]) == 0
    said = capsys.readouterr().out
    assert "77.3" in said
    assert "drawn actions" in said
    assert "untrained (not in the paper)" in said
    assert main(["ablate", "table5", *flags, *where, "--preset", "smoke"]) == 2  # it is --profile here
    assert "unrecognized arguments: --preset" in capsys.readouterr().err
    assert main(["ablate", "table9", *flags, *where]) == 1
    assert capsys.readouterr().err.startswith("mcn ablate: table '9' cannot be run")
