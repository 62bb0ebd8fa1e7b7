"""Run folders, their records, and the seeds of everything."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mcn._version import __version__
from mcn.config import PretrainConfig, to_yaml
from mcn.errors import MCNError
from mcn.run import (
    RunFolder,
    choose_device,
    generator_for,
    read_metrics,
    seed_everything,
    seed_for,
)


def config(path: Path, **changes: Any) -> PretrainConfig:
    return PretrainConfig(out=str(path), device="cpu", **changes)


def test_seeds_depend_on_every_key_and_nothing_else() -> None:
    keys = [("a",), ("b",), (0,), (1,), ("0",), (0, "a"), ("a", 0), (0, "a", 0), (0, "a", 1), (0, 1), (1, 0)]
    seeds = [seed_for(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds == [seed_for(*key) for key in keys]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(0, "order", 0) == 2094333682667709378  # a run may be resumed by a later version
    one, other = (torch.rand(3, generator=generator_for(0, "x")) for _ in range(2))
    assert torch.equal(one, other)


def test_all_global_generators_are_seeded() -> None:
    draws = []
    for _ in range(2):
        seed_everything(seed_for(3))
        draws.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "toaster"):
        with pytest.raises(MCNError, match=f"'{name}' is not available"):
            choose_device(name)


def test_a_run_folder_records_where_it_comes_from(tmp_path: Path) -> None:
    run = RunFolder(config(tmp_path / "a" / "run", lr=0.5), "pretrain")
    assert run.resumed is None
    assert yaml.safe_load((run.path / "config.yaml").read_text())["lr"] == 0.5
    record = json.loads((run.path / "environment.json").read_text())
    assert record["mcn"] == __version__
    assert record["torch"] == torch.__version__
    assert record.keys() >= {"commit", "python", "torchvision", "device", "threads", "command"}


def test_without_a_name_every_run_has_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [RunFolder(PretrainConfig(device="cpu"), "pretrain").path for _ in range(4)]
    assert len(set(runs)) == 4
    assert all(str(run).startswith("runs/pretrain-2") for run in runs)
    Path("runs").rename("elsewhere")
    Path("runs").touch()
    with pytest.raises(MCNError, match=r"cannot write runs/pretrain.*--out"):
        RunFolder(PretrainConfig(device="cpu"), "pretrain")


def test_threads_are_set(tmp_path: Path) -> None:
    RunFolder(config(tmp_path, threads=2), "pretrain")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.5},
        {"order": "none"},
        {"inner_lr": 0.01},
        {"milestones": (0.5, 0.667)},  # one line fewer in the file
        {"milestones": (0.667, 0.5, 0.833)},  # the same lines in another order
        {"data": "elsewhere"},
        {"seed": 1},
    ],
)
def test_other_settings_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    RunFolder(config(tmp_path), "pretrain")
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(MCNError, match=f"other settings \\({next(iter(changes))} was ") as refused:
        RunFolder(config(tmp_path, **changes), "pretrain")
    assert "\n" not in str(refused.value)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_where_and_how_it_is_kept_may_change(tmp_path: Path) -> None:
    RunFolder(config(tmp_path), "pretrain")
    changes = {"workers": 0, "threads": 1, "max_bad": 0.5, "checkpoint_every": 7, "keep": 9}
    RunFolder(config(tmp_path, **changes), "pretrain")
    found = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert {name: found[name] for name in changes} == changes
    RunFolder(config(tmp_path), "pretrain")


@pytest.mark.parametrize("text", ["", "lr: [", "- a list", "\x00"])
def test_a_damaged_record_is_said_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(MCNError, match=r"config\.yaml is damaged") as refused:
        RunFolder(config(tmp_path), "pretrain")
    assert "\n" not in str(refused.value)


def test_partial_files_are_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / ".metrics.jsonl.4711.partial").write_text("half")
    RunFolder(config(tmp_path), "pretrain")
    assert not list(tmp_path.glob(".*"))


def opened(path: Path, step: int = 0) -> RunFolder:
    run = RunFolder(config(path), "pretrain")
    run.rewind_metrics(step)
    return run


@pytest.mark.parametrize("torn", ["", '{"step": 5, "lo', '{"step": 5, "loss": 5.0}', "\n", '{"step'])
def test_metrics_go_on_from_the_checkpoint(torn: str, tmp_path: Path) -> None:
    run = opened(tmp_path)
    for step in (1, 2, 3, 4):
        run.log(step, loss=float(step), accuracy=None)
    run.close()
    with run.metrics_path.open("a") as file:
        file.write(torn)
    run = opened(tmp_path, step=3)
    run.log(4, loss=40.0)
    run.close()
    lines = read_metrics(run.metrics_path)
    assert lines == [{"step": s, "loss": loss} for s, loss in ((1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0))]


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    run = opened(tmp_path)
    for step in (1, 2, 3, 4):
        run.log(step, loss=float(step))
    run.close()
    time.sleep(1.1)  # TensorBoard reads the files by name, which orders them by whole seconds alone
    run = opened(tmp_path, step=2)
    for step in (3, 4):
        run.log(step, loss=10.0 * step)
    run.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run._writer, "add_scalar", full)
    with pytest.raises(MCNError, match=r"tensorboard: No space left on device \(free"):
        run.log(1, loss=1.0)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(MCNError, match=r"metrics\.jsonl: No space left"):
        run.log(1, loss=1.0)


def test_the_config_file_is_the_config(smoke_config: Callable[..., Any], tmp_path: Path) -> None:
    settings = smoke_config("pretrain", out=tmp_path)
    RunFolder(settings, "pretrain")
    assert (tmp_path / "config.yaml").read_text() == to_yaml(settings)
