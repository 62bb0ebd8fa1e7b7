"""Many ranks are one process with as many shares: the same numbers, the same state, the same files."""

import json
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from subprocess import run as run_to_end
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from on_ranks import command, commands, on_ranks, start_on_ranks, trained_in_double

from mcn.checkpoint import latest_checkpoint, load_checkpoint

PLAIN = {"order": "exact", "method": "fast", "negatives": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "fast": PLAIN,
    "balanced": {**PLAIN, "method": "balanced"},
    "lean": {**PLAIN, "method": "lean"},
    "two inner steps": {**PLAIN, "inner_steps": 2, "outer_support_weight": 0.3, "norm_update": "query"},
    "first": {**PLAIN, "order": "first", "bank_update": "query"},
    "none": {**PLAIN, "order": "none", "negatives": 0, "shuffle_views": True},
    "annealed": {**PLAIN, "first_order_until": 0.5},
    "clipped": {**PLAIN, "inner_clip": 0.5},
    "task a share": {**PLAIN, "task": "share"},
    "task a share, first": {**PLAIN, "task": "share", "order": "first"},
}
ALL = tuple(SETTINGS)


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of two trainings, of any tensor's entry or logged number."""
    assert one["tensors"].keys() == other["tensors"].keys()
    assert one["numbers"].keys() == other["numbers"].keys()
    tensors = [(value - other["tensors"][name]).abs().max().item() for name, value in one["tensors"].items()]
    return max(tensors + [abs(value - other["numbers"][name]) for name, value in one["numbers"].items()])


@pytest.mark.parametrize(
    ("size", "shares", "batch", "names"),
    [
        (2, 2, 5, ALL),
        (2, 4, 9, ("fast", "lean")),
        pytest.param(3, 3, 7, ALL, marks=pytest.mark.slow),
        pytest.param(2, 4, 8, ALL, marks=pytest.mark.slow),
    ],
)
def test_ranks_are_one_process_with_as_many_shares(
    size: int, shares: int, batch: int, names: tuple[str, ...], processes: Any, tmp_path: Path
) -> None:
    """In float64, after three steps: network, statistics, bank, momenta and what is logged.

    More shares than ranks: each rank takes several, one after the other.
    """
    settings = [{**SETTINGS[name], "shares": shares, "batch_size": batch} for name in names]
    found = on_ranks(processes, size, tmp_path, trained_in_double, settings)
    expected = trained_in_double(settings)
    for number, name in enumerate(names):
        ranks = [each[number] for each in found]
        assert distance(ranks[0], expected[number]) <= 1e-9, name
        for other in ranks[1:]:
            assert ranks[0]["numbers"] == other["numbers"], name
            for key, value in ranks[0]["tensors"].items():
                assert torch.equal(value, other["tensors"][key]), (name, key)
    named = dict(zip(names, expected, strict=True))
    for name in {"balanced", "lean"} & named.keys():
        assert distance(named["fast"], named[name]) <= 1e-9, name
    for name in {"first", "task a share", "annealed", "clipped"} & named.keys():  # other algorithms
        assert distance(named["fast"], named[name]) > 1e-6, name


def flags(data: Path, out: Path, *more: str) -> list[str]:
    fixed = f"pretrain --preset smoke --data {data} --out {out} --threads 1 --device cpu --checkpoint_every 3"
    return [*fixed.split(), *more]


def records(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last checkpoint but its settings, and what was logged but the speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    state = load_checkpoint(run)
    return (
        {name: value for name, value in state.items() if name != "config"},
        [{name: value for name, value in line.items() if name != "clips_per_second"} for line in lines],
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def assert_same_records(run: Path, reference: Path) -> None:
    (state, lines), (other, expected) = records(run), records(reference)
    assert lines == expected
    assert same(state, other)
    assert not list(run.rglob("*.partial"))


def test_a_command_on_ranks_is_the_command(processes: Any, own_data: Path, tmp_path: Path) -> None:
    """The same bits and the same words, also where a video of one rank's cannot be read."""
    broken = sorted(path for path in (own_data / "videos").rglob("*.*"))[3]
    broken.write_bytes(b"not a video")
    run, reference = tmp_path / "run", tmp_path / "reference"
    more = ("--eval_every", "1", "--max_bad", "0.2", "--epochs", "1", "--shares", "2")
    found = on_ranks(processes, 2, tmp_path / "ranks", command, flags(own_data, run, *more))
    expected = command(flags(own_data, reference, *more))
    assert [status for status, *_ in found] == [expected[0]] * 2 == [0, 0]
    assert found[0][1].replace(str(run), str(reference)) == expected[1]
    assert found[1][1:] == ("", "")
    assert_same_records(run, reference)
    state, lines = records(run)
    assert [Path(name).name for name in state["bad_videos"]] == [broken.name]
    assert "knn_top1" in lines[-1]


@pytest.mark.parametrize("failing", ["error", "bug", "killed"])
def test_a_rank_that_dies_ends_the_run(
    failing: str, processes: Any, action_data: Path, tmp_path: Path
) -> None:
    """Nobody hangs, the one that failed says why, and nobody else does."""
    arguments = flags(action_data, tmp_path / "run")
    started = start_on_ranks(processes, 2, tmp_path / "ranks", command, arguments, failing)
    for process in started:
        process.join(60)
    codes = [process.exitcode for process in started]
    status, _, errors = torch.load(tmp_path / "ranks" / "0.pt", weights_only=False)
    told = [line for line in errors.splitlines() if line.startswith("mcn pretrain")]
    assert (codes[0], status) == (0, 1)
    if failing == "killed":
        assert codes[1] == -signal.SIGKILL
        assert len(told) == 1
        assert told[0].startswith("mcn pretrain: rank 0 of 2: another process of this run is gone")
        return
    assert told == []
    if failing == "bug":  # ends with its traceback, as in one process
        assert codes[1] == 1
        return
    other = torch.load(tmp_path / "ranks" / "1.pt", weights_only=False)
    assert (other[0], other[2]) == (1, "mcn pretrain: rank 1 of 2: the disk is on fire\n")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--shares", "3"], "--shares 3 on 2 processes: each takes as many shares, so give a multiple of 2"),
        (["--shares", "4"], "--batch_size 4: FCM compares videos, so each of 4 shares needs at least 2"),
        (["--task", "share", "--order", "none"], "--task share: with --order none there is no inner update"),
        (["--device", "cuda:0"], "--device cuda:0: 2 processes cannot share it; leave it auto or cuda"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3 (did you mean --epochs?)"),
    ],
)
def test_what_does_not_go_together_is_said_once(
    more: list[str], named: str, processes: Any, action_data: Path, tmp_path: Path
) -> None:
    found = on_ranks(processes, 2, tmp_path, command, flags(action_data, tmp_path / "run", *more))
    said = [errors for _, _, errors in found if errors]
    assert len(said) == 1
    assert named in said[0]
    assert said[0].count("\n") == 1
    assert all(status > 0 for status, *_ in found)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_evaluations_on_ranks_are_the_evaluations(
    processes: Any, trained: Path, action_data: Path, tmp_path: Path
) -> None:
    """Fine-tuning, both probes, retrieval and features: the same words, numbers and files."""

    def asked(out: Path) -> list[list[str]]:
        fixed = f"--preset smoke --data {action_data} --threads 1 --device cpu --cache {out}/kept".split()
        start = ["--checkpoint", str(trained), "--clips", "2"]
        train = ["--epochs", "1", "--batch_size", "6", "--shares", "2"]
        headline = ["--recipe", "headline", "--sweep", "[0.001,0.1]"]
        alone = ["features", str(action_data), "--preset", "smoke", "--cache", "none"]
        return [
            ["finetune", *fixed[:-2], *start, *train, "--out", f"{out}/finetune"],
            ["probe", *fixed, *start, *train, *headline, "--out", f"{out}/head"],
            ["probe", *fixed, *start, "--out", f"{out}/quick"],
            ["retrieve", *fixed, *start, "--out", f"{out}/retrieve"],
            [*alone, *start, "-o", f"{out}/all.npz"],
        ]  # fmt: skip

    run, reference = tmp_path / "run", tmp_path / "reference"
    found = on_ranks(processes, 2, tmp_path / "ranks", commands, asked(run))
    expected = commands(asked(reference))
    for number, (first, second, alone) in enumerate(zip(*found, expected, strict=True)):
        name = asked(run)[number][0]
        assert (first[0], second[0], alone[0]) == (0, 0, 0), (name, first[2], second[2])
        assert first[1].replace(str(run), str(reference)) == alone[1], name
        assert second[1:] == ("", ""), name
    for folder in ("finetune", "head", "head/sweep"):
        assert_same_records(run / folder, reference / folder)
    for file in ("finetune/test.json", "head/test.json", "head/sweep.json", "head/confusion.csv"):
        assert (run / file).read_text() == (reference / file).read_text(), file
    arrays = [np.load(folder / "all.npz") for folder in (run, reference)]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[1])
    kept = [sum(path.stat().st_size for path in (f / "kept").rglob("*.bin")) for f in (run, reference)]
    assert kept[0] >= kept[1] > 1000  # a header for each process that wrote


@pytest.mark.slow
def test_torchrun_starts_again_after_kill_9(action_data: Path, tmp_path: Path) -> None:
    """A rank is killed twice; the run goes on from its checkpoints, and ends as one that never was."""
    run, reference = tmp_path / "run", tmp_path / "reference"
    more = ("--epochs", "5")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    mcn = ["--max-restarts", "3", "-m", "mcn", *flags(action_data, run, *more)]
    with (tmp_path / "errors").open("w+") as errors, Popen([*torchrun, *mcn], stderr=errors) as process:
        for number, steps in enumerate((4, 11)):
            wait_until(lambda steps=steps: len(logged(run)) >= steps, process)
            rank_of(process.pid, number).kill()
            assert latest_checkpoint(run / "checkpoints") is not None
            wait_until(lambda steps=steps: len(logged(run)) < steps, process)  # it has gone back
        try:
            process.wait(120)
        finally:
            process.kill()
        errors.seek(0)
        assert process.returncode == 0, errors.read()
    assert command(flags(action_data, reference, *more, "--shares", "2"))[0] == 0
    assert len(logged(run)) == 20
    assert_same_records(run, reference)


def wait_until(holds: Callable[[], bool], process: "Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while not holds() and process.poll() is None:
        if time.monotonic() > deadline:
            process.terminate()
            raise AssertionError("the run hangs")
        time.sleep(0.01)


def logged(run: Path) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def rank_of(torchrun: int, rank: int) -> psutil.Process:
    for process in psutil.Process(torchrun).children():
        if process.environ().get("RANK") == str(rank):
            return process
    raise AssertionError(f"no rank {rank}")


@pytest.mark.slow
def test_torchrun_says_what_failed_and_where(action_data: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    again = [*torchrun, "--max-restarts", "1", "-m", "mcn", *flags(action_data, tmp_path / "run")]
    at = again.index("--out")
    for arguments, told in (
        (again[:at] + again[at + 2 :], "torchrun --max-restarts starts a run again in the same folder"),
        ([*torchrun, "-m", "mcn", "demo"], "starts its runs itself: start it without torchrun"),
        ([*torchrun, "-m", "mcn", *flags(tmp_path, tmp_path / "run")], f"{tmp_path}"),
    ):
        done = run_to_end(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        said = [line for line in done.stderr.splitlines() if re.match("mcn [a-z]+: ", line)]
        assert done.returncode == 1
        assert len(said) == (2 if "--max-restarts" in arguments else 1)  # once each time it is started
        assert told in said[0]
    table = run_to_end([*torchrun, "-m", "mcn", "table", "2"], capture_output=True, text=True, timeout=120)
    assert table.returncode == 0
    assert table.stdout.count("Table 2") == 1
    assert not (tmp_path / "run").exists()
