"""Hours and memory of the paper's runs: arithmetic against numbers by hand, and a tiny run."""

from pathlib import Path

import pytest

from mcn.bench import Memory
from mcn.cli import main
from mcn.estimate import RUNS, Cost, batch_of, lines_of


def test_hours_are_seconds_a_clip_times_clips():
    """UCF101: 9,537 videos, 500 epochs, .36 s a clip: 476.85 h; two devices share them."""
    costs = {"fast": Cost(0.36, 0.0, None), "finetune": Cost(0.1, 0.0, None)}
    one, two = (lines_of("r3d_18", costs, devices, 2**35) for devices in (1, 2))
    assert "20 days" in one[1]  # 19.87
    assert "9.9 days" in two[1]
    assert "did not fit" in one[2]
    assert "24 h" in one[4]  # an epoch of Kinetics
    assert len(one) == 1 + 2 * 3 + 2


@pytest.mark.parametrize(
    ("devices", "said"), [(1, "86 GiB at batch 80, too much: at most 26"), (4, "26 GiB at batch 20, fits")]
)
def test_memory_is_a_line_in_the_batch(devices, said):
    gib = 2**30
    costs = {"fast": Cost(0.1, 0.0, Memory({}, 5.6 * gib, 1.0 * gib))}
    line = lines_of("r3d_18", costs, devices, int(34 * gib))[1]
    assert said in line


def test_runs_are_the_papers():
    assert [(run.videos, run.epochs) for run in RUNS if run.stage == "pretrain"] == [
        (9537, 500),
        (240_000, 1),
    ]
    assert {run.epochs for run in RUNS if run.stage == "finetune"} == {300}
    assert batch_of("s3d", "pretrain") == 28


def test_the_command_says_what_it_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = ["--width", "4", "--frames", "4", "--size", "16", "--batch_size", "2", "--rounds", "1"]
    file = tmp_path / "lines.txt"
    arguments = ["--backbones", "[r3d_18]", "--device", "cpu", "--devices", "4", "--out", str(file)]
    assert main(["estimate", *arguments, *small]) == 0
    said = capsys.readouterr().out
    assert file.read_text() == said
    assert "512 times a measured one" in said  # 32 x 128 x 128 / (4 x 16 x 16)
    assert "4 devices share the batch" in said
    assert "pre-training, UCF101, fast" in said
    assert main(["estimate", "--devices", "0"]) == 1
    assert "--devices is 0: it should be at least 1" in capsys.readouterr().err
