"""What ``mcn doctor`` measures, and what it makes of it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcn.cli import main
from mcn.config import AttendConfig, build
from mcn.data.datasets import load_videos
from mcn.doctor import Diagnosis, diagnose
from mcn.errors import MCNError
from mcn.features import features_of
from mcn.motion import measure
from mcn.preparation.prepare import PrepareConfig, prepare
from mcn.pretrain import pretrain


def made(**times: Any) -> Diagnosis:
    known = {"first_look": 0.03, "read": 0.01, "loader": 0.005, "augment": 0.002, "network": 0.002}
    return Diagnosis(**{**known, "workers": 2, "cores": 8, "prepared": False, "device": "CPU", **times})


def test_the_slower_side_limits() -> None:
    assert made().limit == "decoding"
    assert made(loader=0.003).limit == "network"
    assert made(loader=0.003, augment=0.004).limit == "augmentation"


def test_advice_fits_the_machine_and_the_data() -> None:
    assert "--workers 3; this machine has 8 cores" in made().advice
    assert "Prepare the data once" in made().advice
    assert "--workers" not in made(workers=8).advice
    assert "Prepare the data" not in made(prepared=True).advice
    assert "more cores or a faster disk" in made(prepared=True, workers=8).advice
    assert "--workers 8;" in made(read=1.0).advice  # no more than there are cores
    assert "--augment false" in made(loader=0.001, augment=0.009).advice
    assert "--order first" in made(loader=0.001).advice


def test_one_worker_is_one() -> None:
    assert "  read a clip, 1 worker  " in made(workers=1).lines()[2]
    assert "  read a clip, 2 workers  " in made(workers=2).lines()[2]


def test_it_times_every_stage_of_a_run(
    smoke_config: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for order in ("exact", "none"):
        found = diagnose(smoke_config("pretrain", order=order, workers=0), seconds=0.1)
        for name in ("first_look", "read", "loader", "augment", "network"):
            assert 0 < getattr(found, name) < 10, name
        assert found.loader == found.read  # no workers: one process does both
    assert "32 videos: layout of UCF101, 4 classes" in capsys.readouterr().out


def test_the_command_prints_a_table_and_a_verdict(
    action_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--preset", "smoke", "--workers", "1", "--seconds", "0.1", "--device", "cpu"]
    assert main(["doctor", str(action_data), *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 7
    assert all("a second" in line for line in said[1:])
    assert "it is limited by" in said[-1]
    assert main(["doctor", str(action_data / "nowhere"), *flags]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_prepared_frames_smaller_than_a_clip_are_said(
    own_data: Path, smoke_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(own_data, tmp_path / "small", PrepareConfig(short_side=20, workers=1), progress=False)
    flags = {"data": tmp_path / "small", "workers": 0}
    asked = "--size 24 enlarges {} of {} prepared videos (short side from 20 pixels): give --size 20"
    capsys.readouterr()
    diagnose(smoke_config("pretrain", size=24, **flags), seconds=0.01)
    assert capsys.readouterr().out.splitlines()[1].startswith(asked.format(32, 32))
    pretrain(smoke_config("pretrain", size=24, epochs=1, out=tmp_path / "run", **flags))
    assert capsys.readouterr().out.splitlines()[1].startswith(asked.format(32, 32))
    features_of(smoke_config("probe", size=24, **flags), "test")
    assert capsys.readouterr().out.splitlines()[1].startswith(asked.format(8, 8))
    watched = build(AttendConfig, dataclasses.asdict(smoke_config("probe", size=24, **flags)))
    measure(watched, "test")
    assert capsys.readouterr().out.splitlines()[1].startswith(asked.format(8, 8))
    for config in (
        smoke_config("probe", size=20, **flags),
        smoke_config("probe", size=64, data=own_data, workers=0),  # files as they are: nobody knows
    ):
        features_of(config, "test")
        assert "--size" not in capsys.readouterr().out


def test_what_is_known_already_is_not_called_a_first_look(
    own_data: Path, smoke_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = smoke_config("pretrain", data=own_data, workers=0)
    videos = load_videos(own_data)
    assert diagnose(config, seconds=0.01).lines()[0].startswith("  first look at a video (once) ")
    for index in range(32):
        with videos.open(index):
            pass
    found = diagnose(config, seconds=0.01)
    assert found.lines()[0].startswith("  open a video, looked at before ")
    videos.path(0).touch()  # a file that has changed since is new
    assert [videos.known(index) for index in (0, 1)] == [False, True]
    assert diagnose(config, seconds=0.01).new
    videos.path(1).unlink()
    assert not videos.known(1)
    prepare(own_data, tmp_path / "small", PrepareConfig(workers=1), progress=False)
    found = diagnose(smoke_config("pretrain", data=tmp_path / "small", workers=0), seconds=0.01)
    assert found.lines()[0].startswith("  open a video, prepared ")


def test_videos_that_cannot_be_read_are_said(
    own_data: Path, smoke_config: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((own_data / "videos").rglob("*.mp4")):
        path.write_bytes(b"no video")
    with pytest.raises(MCNError, match="cannot be read"):
        diagnose(smoke_config("pretrain", data=own_data, workers=0), seconds=0.1)
