"""A run that is killed at any moment and continued ends with the same bits as one that never was."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mcn.checkpoint import latest_checkpoint, load_checkpoint
from mcn.errors import MCNError
from mcn.finetune import finetune
from mcn.pretrain import pretrain
from mcn.probe import headline_probe
from mcn.run import RunFolder

# Eight steps, checkpoints after 3, 6 and 8: with stages two epochs of 4, without one epoch of 8.
STEPS = 8
SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {"order": "exact", "epochs": 2},
    "none": {"order": "none", "epochs": 1},
    "annealed": {"order": "exact", "epochs": 2, "first_order_until": 0.5},
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "finetune": {"from_scratch": True},
    "probe": {"recipe": "headline"},
}

# Dies at the last moment before a file gets its name ("whole": all bytes are there, "half": half of
# them are) or just after, when it happens for the n-th time.
DIE_WHILE_WRITING = """
import os, signal
from pathlib import Path
rename = Path.replace
def dying(self, target):
    global left
    left -= Path(target).match(pattern)
    if left == 0 and Path(target).match(pattern):
        if moment == "half":
            os.truncate(self, self.stat().st_size // 2)
        if moment == "after":
            rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.replace = dying
function(config)
"""

DIE_IN_A_METRICS_LINE = """
import os, signal
from mcn.run import RunFolder
log = RunFolder.log
def dying(self, step, **values):
    log(self, step, **values)
    if step == last:
        size = self.metrics_path.stat().st_size
        os.truncate(self.metrics_path, size - cut)
        os.kill(os.getpid(), signal.SIGKILL)
RunFolder.log = dying
function(config)
"""


def all_tensors(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a nested checkpoint by its path."""
    if isinstance(value, dict):
        pairs = [all_tensors(v, f"{name}/{k}") for k, v in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [all_tensors(v, f"{name}/{i}") for i, v in enumerate(value)]
    else:
        return {name: value}
    return {key: leaf for pair in pairs for key, leaf in pair.items()}


def metrics(run: Path) -> list[dict[str, float]]:
    """All that a run logged but its speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "clips_per_second"} for line in lines]


def assert_same_run(run: Path, reference: Path, steps: int = STEPS) -> None:
    states = [all_tensors({**load_checkpoint(r), "config": None}) for r in (run, reference)]
    assert states[0].keys() == states[1].keys()
    assert any("momentum_buffer" in name for name in states[0])
    assert any("running_mean" in name for name in states[0])
    for name, value in states[0].items():
        other = states[1][name]
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, f"{name} differs"
    assert [line["step"] for line in metrics(run)] == list(range(1, steps + 1))
    assert metrics(run) == metrics(reference)
    assert not list(run.rglob("*.partial"))
    names = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert names[-2:] == ["step_00000006.pt", "step_00000008.pt"]


@pytest.fixture(scope="module")
def config_of(smoke_config: Callable[..., Any]) -> Callable[..., Any]:
    def make(kind: str, out: Path, **changes: Any) -> Any:
        fixed = {"out": out, "threads": 1, "checkpoint_every": 3}
        if kind in CLASSIFIERS:  # 32 videos in batches of 8: two epochs of 4 steps
            return smoke_config(kind, **fixed, **CLASSIFIERS[kind], **{"epochs": 2, "clips": 1, **changes})
        return smoke_config("pretrain", **fixed, **SETTINGS[kind], **changes)

    return make


@pytest.fixture(scope="module")
def reference(
    config_of: Callable[..., Any], processes: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The run of one kind that was never killed, with decoding in the main process."""
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            out = tmp_path_factory.mktemp("reference") / kind
            assert processes.finish(function_of(kind), config_of(kind, out, workers=0)) == 0
            made[kind] = out
        return made[kind]

    return run


def function_of(kind: str) -> Callable[..., Any]:
    return {"finetune": finetune, "probe": headline_probe}.get(kind, pretrain)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["exact", "none", "annealed"])
def test_killed_at_random_moments(
    kind: str, workers: int, config_of: Any, reference: Any, processes: Any, tmp_path: Path
) -> None:
    chance = random.Random(f"{kind} {workers}")
    run = tmp_path / "run"
    config = config_of(kind, run, workers=workers)
    for steps in sorted(chance.sample(range(1, STEPS), 2)):
        processes.kill(run, steps, chance, pretrain, config)
    assert processes.finish(pretrain, config) == 0
    assert_same_run(run, reference(kind))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["exact", "none", "finetune", "probe"])
def test_killed_at_many_random_moments(
    kind: str, seed: int, config_of: Any, reference: Any, processes: Any, tmp_path: Path
) -> None:
    chance = random.Random(f"{kind} {seed}")
    run = tmp_path / "run"
    for steps in sorted(chance.choices(range(STEPS + 1), k=5)):
        config = config_of(kind, run, workers=chance.choice([0, 1, 2]))
        processes.kill(run, steps, chance, function_of(kind), config)
    assert processes.finish(function_of(kind), config_of(kind, run)) == 0
    assert_same_run(run, reference(kind))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_killed_classifiers(
    kind: str, config_of: Any, reference: Any, processes: Any, tmp_path: Path
) -> None:
    run, function = tmp_path / "run", function_of(kind)
    config = config_of(kind, run, workers=0)
    known = {"function": function, "config": config, "pattern": "step_*.pt", "moment": "half", "left": 2}
    assert processes.finish(exec, DIE_WHILE_WRITING, known) == -signal.SIGKILL
    processes.kill(run, 4, random.Random(0), function, config_of(kind, run, workers=2))
    assert processes.finish(function, config) == 0
    assert_same_run(run, reference(kind))
    result = [json.loads((r / "test.json").read_text()) for r in (run, reference(kind))]
    assert result[0] == result[1]
    assert result[0]["videos"] == 8


@pytest.mark.parametrize(
    ("pattern", "moment", "count", "left"),
    [
        ("step_*.pt", "half", 2, ["step_00000003.pt"]),
        ("step_*.pt", "whole", 1, []),
        ("step_*.pt", "after", 3, ["step_00000003.pt", "step_00000006.pt", "step_00000008.pt"]),
        ("config.yaml", "half", 1, []),
        ("metrics.jsonl", "half", 1, []),
    ],
)
def test_killed_while_it_writes_a_file(
    pattern: str,
    moment: str,
    count: int,
    left: list[str],
    config_of: Any,
    reference: Any,
    processes: Any,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    config = config_of("exact", run)
    known = {"function": pretrain, "config": config, "pattern": pattern, "moment": moment, "left": count}
    assert processes.finish(exec, DIE_WHILE_WRITING, known) == -signal.SIGKILL
    assert sorted(path.name for path in run.glob("checkpoints/step_*.pt")) == left
    if left:
        load_checkpoint(run)  # the newest is whole
    assert len(list(run.rglob(".*.partial"))) == (moment != "after")
    if pattern == "step_*.pt":  # and once more, while the interrupted run is being continued
        known = {**known, "pattern": "metrics.jsonl", "moment": "half", "left": 1}
        assert processes.finish(exec, DIE_WHILE_WRITING, known) == -signal.SIGKILL
    assert processes.finish(pretrain, config) == 0
    assert_same_run(run, reference("exact"))


@pytest.mark.parametrize("cut", [1, 20, 10_000])
def test_killed_inside_a_line_of_metrics(
    cut: int, config_of: Any, reference: Any, processes: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = config_of("exact", run)
    # Short of the end by more than the digits in which two runs' speeds may differ.
    cut = min(cut, len((reference("exact") / "metrics.jsonl").read_text().splitlines()[0]) - 6)
    known = {"function": pretrain, "config": config, "last": 5, "cut": cut}
    assert processes.finish(exec, DIE_IN_A_METRICS_LINE, known) == -signal.SIGKILL
    assert not (run / "metrics.jsonl").read_text().endswith("\n")
    assert processes.finish(pretrain, config) == 0
    assert_same_run(run, reference("exact"))


def test_the_command_line_continues_after_kill_9(config_of: Any, reference: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = config_of("exact", run).data
    flags = f"--preset smoke --data {data} --out {run} --threads 1 --checkpoint_every 3 --device cpu"
    command = [sys.executable, "-m", "mcn.cli", "pretrain", *flags.split()]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while latest_checkpoint(run / "checkpoints") is None and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"run folder: {run}" in done.stdout
    assert_same_run(run, reference("exact"))


def test_same_seed_same_bits_and_another_seed_others(
    config_of: Any, reference: Any, processes: Any, tmp_path: Path
) -> None:
    for kind in ("exact", "none"):
        assert processes.finish(pretrain, config_of(kind, tmp_path / kind, workers=2)) == 0
        assert_same_run(tmp_path / kind, reference(kind))
    assert processes.finish(pretrain, config_of("none", tmp_path / "other", seed=1)) == 0
    before, other = (load_checkpoint(run)["network"] for run in (reference("none"), tmp_path / "other"))
    weights = [name for name, tensor in before.items() if tensor.dim() > 1]
    assert weights
    assert not any(torch.equal(before[name], other[name]) for name in weights)
    assert metrics(reference("none"))[0]["loss"] != metrics(tmp_path / "other")[0]["loss"]


def test_a_finished_run_is_left_as_it_is(config_of: Any, reference: Any, processes: Any) -> None:
    run = reference("exact")
    files = [run / "metrics.jsonl", run / "config.yaml", *(run / "checkpoints").iterdir()]
    before = [path.read_bytes() for path in files]
    written = latest_checkpoint(run / "checkpoints").stat().st_mtime_ns
    assert processes.finish(pretrain, config_of("exact", run)) == 0
    assert [path.read_bytes() for path in files] == before
    assert latest_checkpoint(run / "checkpoints").stat().st_mtime_ns == written
    assert_same_run(run, reference("exact"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.02}, "lr was 0.03, is now 0.02"),
        ({"order": "first"}, "order was exact, is now first"),
        ({"milestones": (0.5,)}, "milestones was"),
        ({"width": None}, "width was 4, is now None"),
    ],
)
def test_other_settings_are_refused(changes: Any, named: str, config_of: Any, tmp_path: Path) -> None:
    config = config_of("exact", tmp_path / "run", shares=1)
    RunFolder(config, "pretrain")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(MCNError, match=named) as refused:
        pretrain(type(config)(**{**vars(config), **changes}))
    assert "\n" not in str(refused.value)
    assert "another --out" in str(refused.value)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_another_command_in_the_same_folder_is_refused(config_of: Any, tmp_path: Path) -> None:
    RunFolder(config_of("exact", tmp_path / "run"), "pretrain")
    with pytest.raises(MCNError, match="holds a run with other settings"):
        finetune(config_of("finetune", tmp_path / "run"))


def test_a_run_may_go_on_elsewhere(config_of: Any, reference: Any, processes: Any, tmp_path: Path) -> None:
    """Number of workers, run folder and what is kept do not change what is computed."""
    run = tmp_path / "run"
    config = config_of("exact", run, workers=0, keep=1)
    known = {"function": pretrain, "config": config, "pattern": "step_*.pt", "moment": "after", "left": 1}
    assert processes.finish(exec, DIE_WHILE_WRITING, known) == -signal.SIGKILL
    moved = run.rename(tmp_path / "moved")
    config = config_of("exact", moved, workers=2, max_bad=0.5)
    assert processes.finish(pretrain, config) == 0
    assert_same_run(moved, reference("exact"))


def test_evaluations_along_the_way_are_logged_once(config_of: Any, processes: Any, tmp_path: Path) -> None:
    """A run that also evaluates itself each epoch trains the same and continues the same."""
    runs = [tmp_path / "whole", tmp_path / "killed"]
    configs = [config_of("exact", run, eval_every=1, eval_clips=1) for run in runs]
    assert processes.finish(pretrain, configs[0]) == 0
    known = {"function": pretrain, "config": configs[1], "pattern": "step_*.pt", "moment": "after", "left": 2}
    assert processes.finish(exec, DIE_WHILE_WRITING, known) == -signal.SIGKILL
    assert processes.finish(pretrain, configs[1]) == 0
    assert metrics(runs[0]) == metrics(runs[1])
    evaluated = [line for line in metrics(runs[0]) if "knn_top1" in line]
    assert [line["step"] for line in evaluated] == [4, 8]
    assert all(0 <= line["knn_top1"] <= 100 for line in evaluated)
    states = [load_checkpoint(run)["network"] for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
