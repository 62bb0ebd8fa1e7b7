"""Files that are whole or not there, and few of them."""

import errno
import os
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from mcn.checkpoint import (
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mcn.errors import MCNError
from mcn.files import write_atomically

STATE = {"network": {"w": torch.arange(3.0)}, "step": 7, "config": {"milestones": (0.5, 0.7), "width": None}}


def test_a_checkpoint_is_data_only(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, STATE)
    assert path.name == "step_00000007.pt"
    assert torch.equal(torch.load(path, weights_only=True)["network"]["w"], torch.arange(3.0))
    state = load_checkpoint(path)
    assert (state["step"], state["config"]) == (7, STATE["config"])


def test_real_checkpoints_are_data_only(trained: Path, finetuned: Path) -> None:
    for run in (trained, finetuned):
        state = torch.load(find_checkpoint(run), weights_only=True)
        assert state.keys() >= {"network", "optimizer", "step", "config", "bad_videos"}


@pytest.mark.parametrize(("keep", "left"), [(2, [3, 10]), (1, [10]), (5, [1, 2, 3, 10]), (0, [10])])
def test_few_are_kept(keep: int, left: list[int], tmp_path: Path) -> None:
    other = tmp_path / "step_best.pt"
    other.touch()
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, step, STATE, keep)
    other.unlink()  # it is not one of ours and was left alone
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step:08d}.pt" for step in left]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000010.pt"


def test_what_a_killed_process_left_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / ".step_00000001.pt.4711.partial").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 2, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002.pt"]


def test_finding_one(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    path = save_checkpoint(tmp_path / "checkpoints", 3, STATE)
    assert find_checkpoint(tmp_path) == find_checkpoint(str(path)) == path
    for where in (tmp_path / "nowhere", tmp_path / "checkpoints"):
        with pytest.raises(MCNError, match=r"no checkpoint at .*checkpoints/step_\*\.pt"):
            find_checkpoint(where)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "half", "code", "list", "foreign"])
def test_what_is_no_checkpoint_is_said_in_one_line(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "half":
        torch.save(STATE, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        torch.save(
            {"code": {"network": Path(".")}, "list": [1], "foreign": {"state_dict": {}}}[content], path
        )
    with pytest.raises(MCNError, match=r"file\.pt") as refused:
        load_checkpoint(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed\nat")],
)
def test_a_failed_write_keeps_what_was_there(failure: Exception, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"before"))

    def fill(file: IO[bytes]) -> None:
        file.write(b"aft")
        raise failure

    with pytest.raises(MCNError, match=r"cannot write .*file: (No space|PytorchStream)") as refused:
        write_atomically(path, fill)
    assert "\n" not in str(refused.value)
    assert "free some space" in str(refused.value)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MCNError, match="cannot write"):
        write_atomically(tmp_path / "file" / "below", lambda file: file.write(b""))
    with pytest.raises(MCNError, match="cannot write"):
        write_atomically(tmp_path, lambda file: file.write(b""))  # a folder is in the way
    assert not list(tmp_path.rglob("*.partial"))


def test_bytes_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("name"), rename(self, to))[1])
    write_atomically(tmp_path / "new" / "file", lambda file: file.write(b"x"))
    assert order == ["sync", "name"]
    assert (tmp_path / "new" / "file").read_bytes() == b"x"
