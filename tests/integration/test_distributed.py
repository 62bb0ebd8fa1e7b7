"""Many ranks are one process with as many shares: the same numbers, the same state, the same files."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from on_ranks import command, on_ranks, start_on_ranks, trained_in_double

from mcn.checkpoint import load_checkpoint

PLAIN = {"order": "exact", "method": "fast", "negatives": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "fast": PLAIN,
    "balanced": {**PLAIN, "method": "balanced"},
    "lean": {**PLAIN, "method": "lean"},
    "two inner steps": {**PLAIN, "inner_steps": 2, "outer_support_weight": 0.3, "norm_update": "query"},
    "first": {**PLAIN, "order": "first", "bank_update": "query"},
    "none": {**PLAIN, "order": "none", "negatives": 0, "shuffle_views": True},
    "task a share": {**PLAIN, "task": "share"},
    "task a share, first": {**PLAIN, "task": "share", "order": "first"},
}


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of two trainings, of any tensor's entry or logged number."""
    assert one["tensors"].keys() == other["tensors"].keys()
    assert one["numbers"].keys() == other["numbers"].keys()
    tensors = [(value - other["tensors"][name]).abs().max().item() for name, value in one["tensors"].items()]
    return max(tensors + [abs(value - other["numbers"][name]) for name, value in one["numbers"].items()])


@pytest.mark.parametrize(("size", "shares", "batch"), [(2, 2, 5), (3, 3, 7)])
def test_ranks_are_one_process_with_as_many_shares(
    size: int, shares: int, batch: int, processes: Any, tmp_path: Path
) -> None:
    """In float64, after three steps: network, statistics, bank, momenta and what is logged."""
    settings = [{**changes, "shares": shares, "batch_size": batch} for changes in SETTINGS.values()]
    found = on_ranks(processes, size, tmp_path, trained_in_double, settings)
    expected = trained_in_double(settings)
    for number, name in enumerate(SETTINGS):
        ranks = [each[number] for each in found]
        assert distance(ranks[0], expected[number]) <= 1e-9, name
        for other in ranks[1:]:
            assert ranks[0]["numbers"] == other["numbers"], name
            for key, value in ranks[0]["tensors"].items():
                assert torch.equal(value, other["tensors"][key]), (name, key)
    named = dict(zip(SETTINGS, expected, strict=True))
    assert distance(named["fast"], named["balanced"]) <= 1e-9
    assert distance(named["fast"], named["lean"]) <= 1e-9
    assert distance(named["fast"], named["task a share"]) > 1e-6  # another algorithm


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
