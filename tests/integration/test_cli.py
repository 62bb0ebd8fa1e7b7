"""The command line: help, where settings come from, and each command on a smoke checkpoint."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mcn._torchvision import torchvision
from mcn._version import __version__
from mcn.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from mcn.cli import _parse, main
from mcn.commands import COMMANDS as TABLE
from mcn.config import PretrainConfig, load_preset
from mcn.data.datasets import load_videos
from mcn.export import export_backbone
from mcn.loading import load_network
from mcn.pretrain import Pretraining, pretrain

COMMANDS = (
    "demo",
    "pretrain",
    "probe",
    "finetune",
    "retrieve",
    "features",
    "attend",
    "diagnose",
    "predict",
    "ablate",
    "doctor",
    "bench",
    "estimate",
    "export",
    "table",
)

# What a number is counted in has to be said where it is asked for.
UNITS = {
    "threshold": "full brightness",
    "accuracy": "per cent",
    "frames": "Frames",
    "stride": "frames",
    "size": "pixels",
    "batch_size": "Videos|Clips",
    "epochs": "Passes",
    "milestones": "shares",
    "warmup": "Share",
    "max_bad": "share",
    "read_timeout": "Seconds",
    "workers": "Processes",
    "threads": "threads",
    "clips": "Clips a video",
    "eval_every": "Epochs",
    "eval_clips": "Clips a video",
    "checkpoint_every": "Steps",
    "keep": "Checkpoints",
    "fcm_group": "Videos",
    "negatives": "each video",
    "width": "Channels|Width",
    "inner_steps": "steps",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where runs/ goes if no --out is given


def test_usage_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(TABLE) == COMMANDS
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " in said] == list(COMMANDS)
    assert main([]) == 2
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_defaults_and_units(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert TABLE[command].help in " ".join(said.split())
    assert "lambda" not in said
    blocks = [" ".join(block.split()) for block in re.split(r"\n  (?=-)", said)]
    texts = {m[1]: block for block in blocks if (m := re.match(r"(?:-\w.*, )?--(\w+)", block))}
    optional = {name: text for name, text in texts.items() if "required" not in text}
    assert [n for n, text in optional.items() if "default:" not in text] == [
        name for name in ("help", "config", "print_config") if name in optional
    ]
    config = TABLE[command].config
    for field in dataclasses.fields(config) if config else ():
        default = "null" if field.default is None else str(field.default)
        assert field.name in texts, field.name
        assert f"default: {default}" in texts[field.name], field.name
        assert re.search(UNITS.get(field.name, ""), texts[field.name]), field.name


def test_help_has_a_commands_own_settings_first_and_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in TABLE.items():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said = capsys.readouterr().out
        assert said.startswith(f"usage: mcn {name} ")
        assert "[--SETTING VALUE ...]\n" in said.partition("\n\n")[0] + "\n"
        assert "(row" not in said
        assert "type: " not in said
        flags = re.findall(r"^  (?:-\w \w+, )?--(\w+)", said, re.MULTILINE)
        assert len(flags) == len(set(flags))
        for field in dataclasses.fields(command.config) if command.config else ():
            assert field.name in flags
        blocks = re.findall(r"\n\n(\S.*):\n  --(\w+)", said)
        if name == "probe":
            own = "Linear probe of a frozen backbone, after one of two recipes"
            assert blocks[0] == (own, "batch_size")
            assert ("Precision and memory order of the network", "precision") in blocks


def test_every_setting_has_a_description() -> None:
    for name, command in TABLE.items():
        if command.config is not None:
            parser = __import__("mcn.cli", fromlist=["command_parser"]).command_parser(name)
            silent = [a.dest for a in parser._actions if not a.help]
            assert silent == []


def test_flags_beat_the_config_file_beats_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("lr: 0.5\nseed: 9\nmilestones: [0.1, 0.2]\n")
    smoke = load_preset("smoke", "pretrain")
    flags = [["--preset", "smoke"], ["--config", str(path)], ["--lr", "0.25"]]
    for order in (flags, flags[::-1], [flags[2], flags[0], flags[1]]):
        args = _parse("pretrain", [word for part in order for word in part])
        assert (args.lr, args.seed, args.batch_size) == (0.25, 9, smoke["batch_size"])
        assert list(args.milestones) == [0.1, 0.2]
        assert args.dim == smoke["dim"]
        assert args.tau == PretrainConfig().tau  # nobody speaks of it
    assert _parse("pretrain", [f"--config={path}", "--preset=smoke"]).lr == 0.5
    assert _parse("pretrain", ["--preset", "smoke"]).lr == smoke["lr"]
    path.write_text("preset: smoke\nlr: 0.5\n")
    args = _parse("pretrain", ["--config", str(path)])
    assert (args.lr, args.dim) == (0.5, smoke["dim"])


ONE_CORE = """
import os, warnings
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
warnings.simplefilter("error")  # PyTorch's, of more workers than cores
from mcn.config import PretrainConfig
from torch.utils.data import DataLoader
workers = PretrainConfig().workers
DataLoader([0], num_workers=workers)
print(workers)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_workers_that_nobody_set_are_no_more_than_the_cores() -> None:
    found = subprocess.run([sys.executable, "-c", ONE_CORE], capture_output=True, text=True, timeout=60)
    assert (found.stdout, found.stderr) == ("1\n", "")


def test_print_config_shows_what_a_run_would_have(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {field.name for field in dataclasses.fields(PretrainConfig)}
    laptop = {name: v for name, v in load_preset("laptop", "pretrain").items() if name in known}
    flags = ["--preset", "laptop", "--lr", "0.25"]
    for order in ([*flags, "--print_config"], ["--print_config", *flags]):
        with pytest.raises(SystemExit) as stopped:
            main(["pretrain", *order])
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        settings = yaml.safe_load(shown)  # once: twice would be two of each
        assert shown.count("\nepochs:") == 1
        assert {name: settings[name] for name in laptop} == {**laptop, "lr": 0.25}
    path = tmp_path / "printed.yaml"
    path.write_text(shown)
    assert _parse("pretrain", ["--config", str(path)]).lr == 0.25
    with pytest.raises(SystemExit):  # what is required may be missing
        main(["features", "--checkpoint", str(trained), "--print_config=skip_default"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["checkpoint"] == str(trained)
    assert main(["pretrain", "--preset", "huge", "--print_config"]) == 1
    assert "'huge'" in capsys.readouterr().err


def test_a_preset_speaks_to_each_command() -> None:
    for command in ("pretrain", "finetune", "probe", "retrieve", "features"):
        folder = ["folder", "-o", "out.npz"] if command == "features" else []
        args = _parse(command, [*folder, "--preset", "smoke"])
        config = TABLE[command].config
        assert config is not None
        names = {field.name for field in dataclasses.fields(config)}
        known = {name: value for name, value in load_preset("smoke", command).items() if name in names}
        assert {name: getattr(args, name) for name in known} == known


def test_the_config_of_a_run_reproduces_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    assert main(["pretrain", "--config", str(trained / "config.yaml"), "--out", str(again)]) == 0
    assert f"run folder: {again}" in capsys.readouterr().out
    one, other = (load_checkpoint(run)["network"] for run in (trained, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    first, second = ((run / "config.yaml").read_text().splitlines() for run in (trained, again))
    assert [line for line in first if line not in second] == [f"out: {trained}"]


def test_what_pretrain_says_next_works(
    action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--preset", "smoke", "--data", str(action_data), "--threads", "1", "--epochs", "1"]
    assert main(["pretrain", *flags]) == 0
    said = capsys.readouterr().out
    (run,) = (tmp_path / "runs").glob("pretrain-*")
    assert f"run folder: {run.relative_to(tmp_path)}" in said
    following = shlex.split(re.search(r"next: +(mcn .*)", said)[1])
    assert following[0] == "mcn"
    assert main([*following[1:], "--workers", "0"]) == 0
    assert "linear probe: top-1" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["videos", "videos/Bob"])  # classes without lists; no labels
def test_what_pretrain_says_next_fits_the_data(
    folder: str, action_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = action_data / folder
    flags = ["--preset", "smoke", "--data", str(data), "--threads", "1", "--epochs", "1"]
    assert main(["pretrain", *flags, "--batch_size", "4"]) == 0
    following = shlex.split(re.search(r"next: +(mcn .*)", capsys.readouterr().out)[1])
    assert following[:4] == ["mcn", "retrieve", "--query", "VIDEO"]
    video = str(load_videos(data, "all").path(0))
    assert main([video if word == "VIDEO" else word for word in following[1:]] + ["--workers", "0"]) == 0
    assert re.search(r"^  1 +-?\d\.\d+  \S+\.mp4$", capsys.readouterr().out, re.MULTILINE)


def test_pretraining_ends_well_without_the_test_videos(
    own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in load_videos(own_data, "test").names:
        (own_data / "videos" / name).unlink()
    flags = ["--preset", "smoke", "--data", str(own_data), "--threads", "1", "--epochs", "1"]
    assert main(["pretrain", *flags, "--out", str(tmp_path / "run")]) == 0
    assert "next:       mcn retrieve --query VIDEO" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["videos", "videos/Bob"])
@pytest.mark.parametrize("command", ["probe", "probe --recipe headline", "retrieve"])
def test_an_evaluation_without_a_test_list_computes_nothing(
    command: str,
    folder: str,
    trained: Path,
    action_data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def computes(*_: Any, **__: Any) -> None:
        raise AssertionError("a video was opened")

    monkeypatch.setattr("mcn.data.datasets.Videos.open", computes)
    assert main([*command.split(), *where(trained, action_data / folder)]) == 1
    said = capsys.readouterr()
    assert "has no test list" in said.err
    assert said.out == ""
    assert not Path("runs").exists()


def test_finetune_without_a_test_list_says_so_first(
    action_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--preset", "smoke", "--data", str(action_data / "videos"), "--threads", "1", "--epochs", "1"]
    assert main(["finetune", "--from_scratch", *flags]) == 0
    assert "has no test list: a network is trained, and not tested" in capsys.readouterr().out.splitlines()[0]


def where(checkpoint: Path, data: Path) -> list[str]:
    flags = ["--preset", "smoke", "--data", str(data), "--checkpoint", str(checkpoint)]
    return [*flags, "--threads", "1", "--device", "cpu"]


def test_probe_and_retrieve(trained: Path, action_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *where(trained, action_data)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"top-1 \d+\.\d % of 8 videos \(chance 25\.0 %\)", said)
    made_of = "pooled features, mean of 2 clips of 4 frames, stride 2, 24 pixels, centre crop, rgb"
    assert f"(C = 1) on standardised frozen features; {made_of}; split 1\n" in said  # which protocol
    made = {"probe": re.search(r"^protocol: +(.*)$", said, re.MULTILINE)[1]}
    assert main(["retrieve", *where(trained, action_data), "--top", "[1,32]"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"top-1 \d+\.\d %, top-32 100\.0 % \(8 queries\)", said)
    assert "chance:    top-1 25.0 %, top-32 100.0 % (random picks of 32 training videos)" in said
    assert f"{made_of}, cosine; split 1: the training list answers the test list\n" in said
    made["retrieve"] = re.search(r"^protocol: +(.*)$", said, re.MULTILINE)[1]
    for command in ("probe", "retrieve"):  # each number's record has the line that was printed beside it
        (path,) = Path("runs").glob(f"{command}-*/result.json")
        assert made[command] == json.loads(path.read_text())["protocol"]


def test_the_run_folder_and_the_file_are_the_same_checkpoint(
    trained: Path, action_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for checkpoint in (trained, find_checkpoint(trained)):
        assert main(["retrieve", *where(checkpoint, action_data)]) == 0
        said.append(re.sub("run folder.*", "", capsys.readouterr().out))
    assert len(list(Path("runs").glob("retrieve-*"))) == 2  # a folder each, within a second too
    assert said[0] == said[1]


def test_features_come_back(
    trained: Path, action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "features.npz"
    flags = ["--preset", "smoke", "--checkpoint", str(trained), "--threads", "1"]
    assert main(["features", str(action_data), "-o", str(path), "--subset", "test", *flags]) == 0
    said = capsys.readouterr().out
    assert "(8, 32)" in said
    made_of = "pooled features, mean of 2 clips of 4 frames, stride 2, 24 pixels, centre crop, rgb"
    assert said.endswith(f"\nprotocol: {made_of}\n")
    videos = load_videos(action_data, "test")
    with np.load(path, allow_pickle=False) as stored:
        assert stored["features"].shape == (8, 32)
        assert stored["features"].dtype == np.float32
        assert np.isfinite(stored["features"]).all()
        assert tuple(stored["names"]) == videos.names
        assert tuple(stored["labels"]) == videos.labels
        assert tuple(stored["classes"]) == videos.classes
        of_test = dict(zip(stored["names"], stored["features"], strict=True))
    assert main(["features", str(action_data), "-o", str(path), *flags, "--workers", "2"]) == 0
    with np.load(path) as stored:  # all 40, by workers: the same feature for the same video
        assert len(stored["names"]) == 40
        assert all((of_test[n] == x).all() for n, x in zip(stored["names"], stored["features"], strict=True)
                   if n in of_test)  # fmt: skip
        assert sum(n in of_test for n in stored["names"]) == 8


@pytest.mark.parametrize("command", [["features", "-o", "x.npz"], ["doctor"]])
def test_a_folder_and_another_as_data_are_refused(
    command: list[str], action_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, str(action_data), "--preset", "smoke", "--data", "elsewhere"]) == 1
    assert f"{action_data} and --data elsewhere: this command takes its folder" in capsys.readouterr().err


def test_features_of_a_flat_folder_have_no_labels(action_data: Path, tmp_path: Path) -> None:
    flags = ["--preset", "smoke", "--threads", "1"]
    assert main(["features", str(action_data / "videos/Bob"), "-o", str(tmp_path / "x.npz"), *flags]) == 0
    with np.load(tmp_path / "x.npz") as stored:
        assert set(stored.files) == {"names", "features"}


def test_finetune_and_predict(
    trained: Path, action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    assert main(["finetune", *where(trained, action_data), "--epochs", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"top-1 \d+\.\d %, top-5 100\.0 % a video, .*\(8 videos, 2 clips each; chance: top-1 25", said
    )
    video = load_videos(action_data, "test").path(2)
    following = shlex.split(re.search(r"next: +(mcn .*)", said)[1])
    assert main([str(video) if word == "VIDEO" else word for word in following[1:]]) == 0
    *lines, protocol = capsys.readouterr().out.splitlines()
    clips = "2 uniform clips of 4 frames, stride 2, 24 pixels, centre crop"
    assert protocol == f"protocol: {clips}, mean softmax, rgb"
    found = [re.fullmatch(r" *(\d+\.\d) %  (\w+)", line) for line in lines]
    assert sorted(m[2] for m in found) == sorted(load_videos(action_data, "test").classes)
    shares = [float(m[1]) for m in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert main(["predict", str(video), "--checkpoint", str(out), "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [lines[0], protocol]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    assert main(["predict", str(broken), "--checkpoint", str(out)]) == 1
    assert str(broken) in capsys.readouterr().err


def test_finetune_from_scratch_is_one_flag(
    action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--preset", "smoke", "--data", str(action_data), "--threads", "1", "--epochs", "1"]
    assert main(["finetune", *flags]) == 1
    assert "--from_scratch" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert main(["finetune", "--from_scratch", *flags]) == 0
    said = capsys.readouterr().out
    assert "start: r3d_small never pre-trained (seed 0)" in said
    assert "protocol:  trained from scratch, 1 epochs; 2 uniform clips of 4 frames" in said
    assert re.search(r"classes: +\w+ \d+ %, ", said)
    config = next(Path("runs").glob("finetune-*/config.yaml"))
    assert main(["finetune", "--config", str(config), "--out", str(tmp_path / "again")]) == 0


def test_probe_of_other_targets(trained: Path, action_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *where(trained, action_data), "--target", "group"]) == 0
    said = capsys.readouterr().out
    # Two test groups in four classes: two clips of each are fitted to, the other two scored, and back.
    assert re.search(r"linear probe of group: top-1 \d+\.\d % of 8 videos \(chance 50\.0 %\)", said)
    assert "target: the source video (scene) among those of its class" in said
    assert main(["probe", *where(trained, action_data), "--target", "direction"]) == 0
    assert re.search(r"of direction: top-1 \d+\.\d % of 2 videos \(chance 50\.0 %\)", capsys.readouterr().out)
    assert main(["probe", *where(trained, action_data), "--target", "group", "--recipe", "headline"]) == 1
    assert "--target group: it is for --recipe quick" in capsys.readouterr().err


def test_probe_headline_says_that_it_is(
    trained: Path, action_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*where(trained, action_data), "--epochs", "1"]
    assert main(["probe", *flags, "--recipe", "headline", "--sweep", "[0.001,0.1]"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"chosen: weight_decay 0\.\d+ of 0\.001: .* held-out training videos", said)
    assert re.search(
        r"linear probe: top-1 \d+\.\d %, top-5 100\.0 % a video, .*\(8 videos.*chance: top-1 25\.0 %", said
    )
    assert "protocol:     headline probe: frozen backbone in eval mode" in said
    (run,) = Path("runs").glob("probe-*")
    names = {"test.json", "classes.csv", "confusion.csv", "classes.json", "sweep.json"}
    assert names <= {path.name for path in run.iterdir()}
    assert main(["probe", *flags, "--sweep", "[0.1,1]"]) == 0
    said = capsys.readouterr().out
    chosen = re.search(r"chosen: c (\S+) of", said)[1]
    assert f"quick probe: logistic regression (C = {chosen}, chosen on held-out training videos)" in said


def test_exported_weights_are_torchvisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = Pretraining(PretrainConfig(backbone="r3d_18", dim=8, seed=3), num_videos=4)
    with torch.no_grad():
        for number, view in enumerate(training.network.backbones):
            for name, buffer in view.named_buffers():
                if name.endswith("running_mean"):
                    buffer.fill_(0.01 * (number + 1))
    path = save_checkpoint(tmp_path, 0, {"step": 0, "bad_videos": {}, **training.state()})
    network = training.network.eval()
    clip = torch.rand(1, 3, 4, 32, 32)
    for number, view in enumerate(("rgb", "second")):
        target = tmp_path / f"{view}.safetensors"
        assert main(["export", str(path), "-o", str(target), "--view", view]) == 0
        assert str(target) in capsys.readouterr().out
        model = torchvision.models.video.r3d_18()
        missing, unexpected = model.load_state_dict(load_file(target), strict=False)
        assert sorted(missing) == ["fc.bias", "fc.weight"]
        assert unexpected == []
        model.fc = torch.nn.Identity()
        with torch.no_grad():
            assert torch.equal(model.eval()(clip), network.features(clip, number))


def test_what_has_one_backbone_exports_it_for_either_view(
    finetuned: Path, smoke_config: Callable[..., Any], tmp_path: Path
) -> None:
    mixed = pretrain(
        smoke_config("pretrain", out=tmp_path / "mixed", statistics="mixed", order="none", epochs=1)
    )
    for run in (finetuned, mixed):
        one, other = (load_file(export_backbone(run, tmp_path / v, v)) for v in ("rgb", "second"))
        assert one.keys() == other.keys()
        assert len(one) > 20
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_views_that_a_network_never_saw_are_refused(
    trained: Path, action_data: Path, smoke_config: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    device = torch.device("cpu")
    load_network(smoke_config("probe", checkpoint=trained, view="residual"), device)
    assert main(["probe", *where(trained, action_data), "--view", "signed_residual"]) == 1
    said = capsys.readouterr().err
    assert "trained on rgb and residual" in said
    assert "--view" in said


def test_an_evaluation_takes_the_clips_of_its_checkpoint_unless_told(trained: Path) -> None:
    from mcn.cli import _parse

    seen = _parse("probe", ["--preset", "laptop", "--checkpoint", str(trained)])
    assert (seen.frames, seen.stride, seen.size) == (4, 2, 24)  # smoke's, not laptop's 8, 2, 32
    assert seen.clips == 4  # the rest is the preset's
    told = _parse("probe", ["--checkpoint", str(trained), "--frames", "6"])
    assert (told.frames, told.stride, told.size) == (6, 2, 24)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--index", "i.npz"], "--index i.npz: it goes with --query"),
        (["--beside", "untrained"], "--beside untrained: it goes with --sheet"),
        (["--query", "a.mp4", "--beside", "untrained"], "--beside untrained: it goes with --sheet"),
    ],
)
def test_retrieve_refuses_what_it_would_ignore(
    flags: list[str], said: str, action_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["retrieve", "--preset", "smoke", "--data", str(action_data), *flags]) == 1
    assert said in capsys.readouterr().err
