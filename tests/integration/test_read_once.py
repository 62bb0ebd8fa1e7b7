"""An evaluation reads its checkpoint and each of its lists once, and hands them on."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mcn.checkpoint import find_checkpoint
from mcn.cli import main
from mcn.data import datasets

SMALL = ["--preset", "smoke", "--threads", "1", "--device", "cpu", "--workers", "0", "--clips", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of weights (by path) and each list (by name) is read."""
    found: Counter[str] = Counter()
    load, select = torch.load, datasets.select

    def loading(path: Any, **how: Any) -> Any:
        contents = load(path, **how)
        if how.get("mmap"):  # a look at the settings: reads no tensor, unless somebody uses one
            return {name: contents.get(name) for name in ("config", "network")}
        found[str(path)] += 1
        return contents

    def selecting(layout: Any, subset: str, split: int) -> Any:
        found[subset] += 1
        return select(layout, subset, split)

    monkeypatch.setattr(torch, "load", loading)
    monkeypatch.setattr(datasets, "select", selecting)
    return found


EVALUATIONS = {
    "probe": (["probe", "--cache", "none"], ["train", "test"]),
    "probe, sweep": (["probe", "--cache", "none", "--sweep", "[0.1,1]"], ["train", "test"]),
    "headline, sweep": (
        ["probe", "--recipe", "headline", "--sweep", "[0.1,1]", "--epochs", "1"],
        ["train", "test"],
    ),
    "finetune": (["finetune", "--epochs", "1"], ["train", "test"]),
    "retrieve": (["retrieve", "--cache", "none"], ["train", "test"]),
    "retrieve, two views": (["retrieve", "--cache", "none", "--view", "rgb+residual"], ["train", "test"]),
    "retrieve, Fig. 4": (
        ["retrieve", "--cache", "none", "--sheet", "fig4.png", "--beside", "untrained"],
        ["train", "test"],
    ),
    "retrieve, query": (["retrieve", "--query", "VIDEO", "--index", "x.npz"], ["all"]),
    "attend, list": (["attend", "--compare", "untrained"], ["test"]),
    "attend, video": (["attend", "VIDEO", "-o", "maps.png", "--compare", "untrained"], []),
    "features": (["features", "DATA", "-o", "x.npz"], ["all"]),
}


@pytest.mark.parametrize("what", EVALUATIONS)
def test_checkpoint_and_lists_are_read_once(
    what: str, trained: Path, action_data: Path, read: Counter[str]
) -> None:
    words, lists = EVALUATIONS[what]
    put = {"VIDEO": str(next(action_data.rglob("*.mp4"))), "DATA": str(action_data)}
    data = [] if words[0] == "features" or what == "attend, video" else ["--data", str(action_data)]
    words = [put.get(word, word) for word in words]
    assert main([*words, *SMALL, *data, "--checkpoint", str(trained)]) == 0
    assert read == Counter([str(find_checkpoint(trained)), *lists])


def test_predict_reads_its_checkpoint_once(finetuned: Path, action_data: Path, read: Counter[str]) -> None:
    video = str(next(action_data.rglob("*.mp4")))
    assert main(["predict", video, "--checkpoint", str(finetuned), "--device", "cpu"]) == 0
    assert read == {str(find_checkpoint(finetuned)): 1}


def test_labels_are_asked_for_in_one_place(
    trained: Path, action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    for part in ("train", "test"):
        (flat / part).mkdir(parents=True)
        for video in sorted(action_data.rglob("*.mp4"))[:4]:
            (flat / part / video.name).symlink_to(video)
    said = set()
    for command in ("probe", "retrieve", "probe --recipe headline", "finetune", "ablate table5"):
        checkpoint = [] if command.startswith("ablate") else [*SMALL, "--checkpoint", str(trained)]
        assert main([*command.split(), "--data", str(flat), *checkpoint]) == 1
        said.add(capsys.readouterr().err.partition(": ")[2])
    (line,) = {each.partition(" (recognised")[0] for each in said}
    assert line == f"{flat} has no labels: put the videos into one folder a class"
