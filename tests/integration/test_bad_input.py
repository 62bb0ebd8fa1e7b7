"""Whatever is wrong with files or settings: one line that names it and the remedy, never a traceback."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import mcn.pretrain
from mcn.bank import FeatureBank
from mcn.checkpoint import latest_checkpoint, load_checkpoint
from mcn.cli import main
from mcn.data.datasets import Videos, load_videos
from mcn.data.loader import TrainClips
from mcn.data.plan import Request
from mcn.errors import MCNError
from mcn.features import Features, features_of
from mcn.holdout import videos_of
from mcn.pretrain import pretrain
from mcn.probe import linear_probe, run_probe
from mcn.retrieval import retrieve, run_retrieval
from mcn.run import generator_for


def write_video(path: Path, frames: int) -> None:
    noise = np.random.default_rng(frames)
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(frames):
            image = noise.integers(256, size=(32, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_audio(path: Path) -> None:
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def damage(data: Path) -> dict[str, str]:
    """Spoil five training videos, a sixth has one frame only; names of the bad ones, and how."""
    videos = load_videos(data, "train")
    kinds = ["broken", "empty", "audio", "folder", "vanished"]
    for number, kind in enumerate([*kinds, "one frame"]):
        path = videos.path(number * 5)
        path.unlink()
        if kind == "broken":
            path.write_bytes(random.Random(0).randbytes(4000))
        elif kind == "empty":
            path.touch()
        elif kind == "audio":
            write_audio(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "vanished":
            path.write_bytes(b"deleted once the lists have been read")
        else:
            write_video(path, 1)
    return {kind: videos.names[number * 5] for number, kind in enumerate(kinds)}


def losing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Delete a video between reading the list and reading the videos."""

    def load(*args: Any) -> Videos:
        videos = videos_of(*args)
        (videos.folder / name).unlink(missing_ok=True)
        return videos

    monkeypatch.setattr(mcn.pretrain, "videos_of", load)


def test_bad_videos_are_named_once_and_replaced(
    own_data: Path,
    smoke_config: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = damage(own_data)
    losing(monkeypatch, bad["vanished"])
    run = pretrain(smoke_config("pretrain", data=own_data, out=tmp_path / "run", max_bad=0.2))
    said = capsys.readouterr().out
    reasons = {
        "broken": "not readable",
        "empty": "empty",
        "audio": "no video stream",
        "folder": "not a file",
        "vanished": "No such file",
    }
    for kind, name in bad.items():
        lines = [line for line in said.splitlines() if name in line and "another is drawn instead" in line]
        assert len(lines) == 1, kind  # in two epochs
        assert reasons[kind] in lines[0]
    assert "5 of 32 videos could not be read" in said.splitlines()[-1]
    state = load_checkpoint(run)
    assert sorted(state["bad_videos"]) == sorted(bad.values())

    first = FeatureBank(32, 16, generator=generator_for(0, "bank")).rows
    names = load_videos(own_data, "train").names
    moved = [names[i] for i in range(32) if not torch.equal(state["bank"]["rows"][:, i], first[:, i])]
    assert set(names) - set(moved) == set(bad.values())  # what stands in for a video writes its own row


def test_bad_videos_do_not_depend_on_workers(
    own_data: Path, smoke_config: Callable[..., Any], processes: Any, tmp_path: Path
) -> None:
    bad = damage(own_data)
    (load_videos(own_data, "train").folder / bad["vanished"]).unlink()
    states = []
    for workers in (0, 2):
        config = smoke_config(
            "pretrain", data=own_data, out=tmp_path / f"run{workers}", workers=workers, max_bad=0.2, epochs=1
        )
        assert processes.finish(pretrain, config) == 0
        states.append(load_checkpoint(tmp_path / f"run{workers}"))
    for part in ("network", "bank"):
        assert all(torch.equal(states[1][part][name], value) for name, value in states[0][part].items())
    assert states[0]["bad_videos"] == states[1]["bad_videos"]


def test_a_video_of_one_frame_is_padded(own_data: Path) -> None:
    damage(own_data)
    videos = load_videos(own_data, "train")
    clip = TrainClips(videos, frames=4)[Request(25, 0, 0)]
    assert clip.video == 25
    assert clip.bad == ()
    assert clip.frames.shape == (5, 32, 32, 3)
    assert (clip.frames == clip.frames[0]).all()


def test_nothing_but_bad_videos_is_not_an_endless_loop(own_data: Path) -> None:
    videos = load_videos(own_data, "train")
    for index in range(len(videos)):
        videos.path(index).write_bytes(b"broken")
    clip = TrainClips(videos, frames=4)[Request(3, 0, 0)]
    assert clip.frames.numel() == 0
    assert clip.bad[0][0] == videos.names[3]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_too_many_bad_videos_stop_a_run(
    workers: str, own_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = damage(own_data)
    (load_videos(own_data, "train").folder / bad["vanished"]).unlink()
    flags = ["--preset", "smoke", "--data", str(own_data), "--out", str(tmp_path / "run"), "--threads", "1"]
    assert main(["pretrain", *flags, "--workers", workers, "--max_bad", "0.1"]) == 1
    said = capsys.readouterr()
    message = one_line(said.err, "pretrain")
    assert re.search("4 of 32 videos cannot be read, .*limit.* 10%", message)
    assert "--max_bad" in message
    # The advice is good: the same run goes on with a higher limit.
    assert main(["pretrain", *flags, "--workers", workers, "--max_bad", "0.2"]) == 0


def one_line(stderr: str, command: str) -> str:
    """The error message, after making sure that there is one, on one line, behind any progress bar."""
    assert "Traceback" not in stderr
    assert stderr.endswith("\n")
    lines = stderr.replace("\r", "\n").strip().splitlines()
    assert lines[-1].startswith(f"mcn {command}: ")
    assert sum(line.startswith("mcn ") for line in lines) == 1
    assert [line for line in lines[:-1] if line.strip() and not re.search(r"\d+/\d+ \[", line)] == []
    return lines[-1]


def sharp(labels: list[int]) -> torch.Tensor:
    """Features that give the class away."""
    return torch.nn.functional.one_hot(torch.tensor(labels)).float()


def test_an_unreadable_test_video_is_a_wrong_answer() -> None:
    labels = [0, 1, 2, 3] * 4
    videos = Videos(Path(), tuple(map(str, labels)), tuple(labels), tuple("abcd"))
    train, test = Features(sharp(labels), videos), Features(sharp(labels), videos)
    assert linear_probe(train, test).top1 == 100.0
    assert retrieve(test, train, top=(1,)).accuracy[1] == 100.0
    test.x[[2, 7]] = float("nan")
    assert linear_probe(train, test).top1 == pytest.approx(87.5)
    found = retrieve(test, train, top=(1, 16))
    assert found.accuracy == {1: pytest.approx(87.5), 16: pytest.approx(87.5)}
    assert found.queries == 16
    # In the gallery it is nobody's neighbour while there are others, and no training example.
    train.x[[0, 5]] = float("nan")
    assert not torch.isin(
        retrieve(test, train, top=(14,)).neighbours[test.readable], torch.tensor([0, 5])
    ).any()
    assert linear_probe(train, test).train_top1 == 100.0


def test_evaluations_of_files_count_unreadable_ones(
    own_data: Path, smoke_config: Callable[..., Any], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = load_videos(own_data, "test")
    test.path(5).write_bytes(b"broken")
    where = {"data": own_data, "checkpoint": trained, "max_bad": 0.2}
    found = run_retrieval(smoke_config("retrieve", top=(1, 32), **where))
    assert found.queries == 8
    assert found.accuracy[32] == pytest.approx(87.5)  # every class is in the gallery
    probed = run_probe(smoke_config("probe", **where))
    assert probed.videos == 8
    assert probed.top1 <= 87.5
    said = capsys.readouterr().out
    assert said.count(f"counted as wrong: {test.path(5)}") == 2  # once an evaluation
    assert said.count("1 of 8 videos could not be read") == 2
    for index in range(8):
        test.path(index).write_bytes(b"broken")
    with pytest.raises(MCNError, match="none of the 8 videos"):
        features_of(smoke_config("probe", **{**where, "max_bad": 1.0}), "test")
    with pytest.raises(MCNError, match=r"2 of 8 videos cannot be read, .*limit.* 20%"):
        features_of(smoke_config("probe", **where), "test")


DATA, OUT, TRAINED = "DATA", "OUT", "TRAINED"  # filled in by the test
PRETRAIN = ["pretrain", "--preset", "smoke", "--data", DATA, "--out", OUT]
FINETUNE = ["finetune", "--preset", "smoke", "--data", DATA, "--out", OUT]
PROBE = ["probe", "--preset", "smoke", "--data", DATA]
RETRIEVE = ["retrieve", "--preset", "smoke", "--data", DATA]
FEATURES = ["features", DATA, "--preset", "smoke"]

WRONG: list[tuple[list[str], int, list[str]]] = [
    (["nonsense"], 2, ["'nonsense'", "pretrain, probe"]),
    (["pretrain", "--nonsense", "1"], 2, ["--nonsense", "mcn pretrain --help"]),
    ([*PRETRAIN, "--epoch", "3"], 2, ["--epoch 3", "did you mean --epochs?"]),  # no abbreviations
    ([*PRETRAIN, "--batch-size=4"], 2, ["--batch-size=4", "did you mean --batch_size?"]),
    (["predict", "nowhere.mp4", "--check", TRAINED], 2, ["--check", "did you mean --checkpoint?"]),
    (["pretrain", "--preset", "huge"], 1, ["'huge'", "laptop"]),
    (["pretrain", "--config", "nowhere.yaml"], 2, ["nowhere.yaml"]),
    (["pretrain"], 1, ["--data"]),
    (["pretrain", "--data", "nowhere"], 1, ["no such folder: nowhere"]),
    (["pretrain", "--data", "EMPTY"], 1, ["no videos in", ".mp4"]),
    (["pretrain", "--data", "LOST"], 1, ["no videos in LOST/videos", "looked for .avi"]),
    (["pretrain", "--data", "OTHERS"], 1, ["OTHERS/splits names 32", "are not in", "right folder"]),
    ([*PRETRAIN, "--lr", "fast"], 2, ["lr", "fast", "float"]),
    ([*PRETRAIN, "--lr"], 2, ["--lr"]),
    ([*PRETRAIN, "--lr", "-1"], 1, ["--lr is -1", "at least 0"]),
    ([*PRETRAIN, "--epochs", "1.5"], 2, ["epochs", "1.5", "int"]),
    ([*PRETRAIN, "--epochs", "0"], 1, ["--epochs is 0", "at least 1"]),
    ([*PRETRAIN, "--augment", "perhaps"], 2, ["augment", "perhaps"]),
    ([*PRETRAIN, "--split", "4"], 2, ["split", "4"]),
    ([*PRETRAIN, "--backbone", "vgg"], 2, ["vgg", "r3d_18"]),
    ([*PRETRAIN, "--width", "2"], 1, ["--width 2", "at least 4"]),
    ([*PRETRAIN, "--backbone", "s3d", "--width", "32"], 1, ["s3d", "fixed width"]),
    ([*PRETRAIN, "--batch_size", "0"], 1, ["--batch_size is 0"]),
    ([*PRETRAIN, "--batch_size", "1"], 1, ["--batch_size 1", "at least 2"]),
    ([*PRETRAIN, "--batch_size", "17"], 1, ["32 training videos", "34", "--batch_size 17"]),
    ([*PRETRAIN, "--frames", "0"], 1, ["--frames is 0"]),
    ([*PRETRAIN, "--stride", "0", "--workers", "2"], 1, ["--stride is 0"]),
    ([*PRETRAIN, "--size", "0"], 1, ["--size is 0"]),
    ([*PRETRAIN, "--workers", "-1"], 1, ["--workers is -1"]),
    ([*PRETRAIN, "--threads", "-1"], 1, ["--threads is -1"]),
    ([*PRETRAIN, "--max_bad", "5"], 1, ["--max_bad is 5", "from 0 to 1"]),
    ([*PRETRAIN, "--bank_momentum", "1"], 1, ["--bank_momentum is 1"]),
    ([*PRETRAIN, "--tau", "0"], 1, ["--tau is 0", "above 0"]),
    ([*PRETRAIN, "--negatives", "-1"], 1, ["--negatives is -1"]),
    ([*PRETRAIN, "--fcm_group", "1"], 1, ["--fcm_group is 1"]),
    ([*PRETRAIN, "--checkpoint_every", "0"], 1, ["--checkpoint_every is 0"]),
    ([*PRETRAIN, "--device", "cuda:99"], 1, ["cuda:99"]),
    ([*PRETRAIN, "--device", "toaster"], 1, ["'toaster'"]),
    ([*PRETRAIN, "--out", "FILE"], 1, ["--out"]),
    ([*PRETRAIN, "--out", "FILE/below"], 1, ["--out"]),
    ([*PRETRAIN, "--init_from", "nowhere.pt"], 1, ["nowhere.pt"]),
    ([*PRETRAIN, "--init_from", "FILE"], 1, ["not a readable checkpoint"]),
    ([*PRETRAIN, "--view2", "flow_v"], 1, ["flow", "cannot be read"]),
    ([*FINETUNE], 1, ["no --checkpoint", "--from_scratch"]),
    ([*FINETUNE, "--checkpoint", TRAINED, "--from_scratch"], 1, ["--from_scratch and --checkpoint TRAINED"]),
    ([*FINETUNE, "--from_scratch", "perhaps"], 2, ["from_scratch", "perhaps"]),
    ([*FINETUNE, "--from_scratch", "--batch_size", "33"], 1, ["--batch_size 33"]),
    ([*FINETUNE, "--dropout", "2"], 1, ["--dropout is 2"]),
    ([*FINETUNE, "--checkpoint", "nowhere"], 1, ["no checkpoint at nowhere"]),
    ([*PROBE, "--checkpoint", "EMPTY"], 1, ["no checkpoint at", "checkpoints/step_"]),
    ([*PROBE, "--c", "0"], 1, ["--c is 0"]),
    ([*PROBE, "--recipe", "best"], 2, ["best", "headline"]),
    ([*PROBE, "--sweep", "[1,0]"], 1, ["--sweep is", "above 0"]),
    ([*PROBE, "--holdout", "1"], 1, ["--holdout is 1"]),
    ([*PROBE, "--recipe", "headline", "--batch_size", "1"], 1, ["--batch_size 1", "BatchNorm"]),
    ([*PROBE, "--recipe", "headline", "--view", "rgb+residual"], 1, ["--view rgb+residual", "one view"]),
    ([*PROBE, "--recipe", "headline", "--data", "DATA/videos"], 1, ["no test list"]),
    ([*PROBE, "--clips", "0"], 1, ["--clips is 0"]),
    ([*PROBE, "--out", "FILE/below"], 1, ["FILE/below", "--out"]),
    ([*PROBE, "--data", "DATA/videos"], 1, ["no test list"]),
    ([*RETRIEVE, "--top", "[]"], 1, ["--top", "[1,5]"]),
    ([*RETRIEVE, "--top", "many"], 2, ["top", "many"]),
    ([*RETRIEVE, "--view", "flow"], 2, ["view", "flow"]),
    ([*RETRIEVE, "--second_checkpoint", TRAINED], 1, ["--second_checkpoint", "rgb+flow_v", "--view is rgb"]),
    ([*RETRIEVE, "--query", "nowhere.mp4"], 1, ["nowhere.mp4", "No such file"]),
    ([*RETRIEVE, "--view", "rgb+flow_v", "--query", "nowhere.mp4"], 1, ["no stored flow"]),
    (
        ["retrieve", "--preset", "smoke", "--query", "DATA/videos/Bob/v_Bob_g01_c01.mp4"],
        1,
        ["--data is", "--index"],
    ),
    (
        [*FEATURES, "-o", "OUT/x.npz", "--rank", "2", "--world", "2"],
        1,
        ["--rank 2 --world 2", "0 to world - 1"],
    ),
    ([*FEATURES, "-o", "OUT/x.npz", "--rank", "1", "--world", "2"], 1, ["--world 2", "--cache"]),
    ([*FEATURES], 2, ["output"]),
    ([*FEATURES, "-o", "FILE/below.npz"], 1, ["below.npz"]),
    (["predict", "nowhere.mp4", "--checkpoint", "nowhere"], 1, ["no checkpoint at nowhere"]),
    (["predict", "nowhere.mp4", "--checkpoint", TRAINED], 1, ["not fine-tuned", "mcn finetune"]),
    (["export", "nowhere", "-o", "x.safetensors"], 1, ["no checkpoint at nowhere"]),
    (["export", TRAINED, "-o", "FILE/x.safetensors"], 1, ["x.safetensors"]),
    (["export", TRAINED, "-o", "x.safetensors", "--view", "third"], 2, ["third"]),
    (["demo", "--preset", "huge"], 2, ["huge"]),
]


@pytest.mark.parametrize(("arguments", "status", "words"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_wrong_input_is_one_line(
    arguments: list[str],
    status: int,
    words: list[str],
    action_data: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    Path("FILE").write_text("a file")
    Path("LOST/videos").mkdir(parents=True)
    for name in ("LOST", "OTHERS"):
        Path(name).mkdir(exist_ok=True)
        Path(name, "splits").symlink_to(action_data / "splits")
    Path("OTHERS/videos/another").mkdir(parents=True)
    Path("OTHERS/videos/another/video.mp4").touch()
    Path(DATA).symlink_to(action_data)
    Path(TRAINED).symlink_to(trained)
    assert main(arguments) == status
    said = (
        one_line(capsys.readouterr().err, arguments[0])
        if arguments != ["nonsense"]
        else capsys.readouterr().err
    )
    for word in words:
        assert word in said
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("folder", ["nowhere", "others"])
@pytest.mark.parametrize("command", [["doctor"], ["features", "-o", "x.npz", "--subset", "train"]])
def test_a_positional_folder_is_not_called_a_flag(
    command: list[str], folder: str, action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "others/videos/another").mkdir(parents=True)
    (tmp_path / "others/videos/another/video.mp4").touch()
    (tmp_path / "others/splits").symlink_to(action_data / "splits")
    assert main([*command, str(tmp_path / folder), "--preset", "smoke"]) == 1
    said = one_line(capsys.readouterr().err, command[0])
    assert str(tmp_path / folder) in said
    assert "--data" not in said


def test_config_files_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "settings.yaml"
    for text, word in {
        "lr: 0.5\nnonsense: 9\n": "nonsense",
        "lr: [\n": "parsing",
        "- 1\n": "config",
        "lr: fast\n": "fast",
        "preset: huge\n": "huge",
    }.items():
        path.write_text(text)
        assert main(["pretrain", "--config", str(path)]) != 0
        assert word in one_line(capsys.readouterr().err, "pretrain")


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_divergence_keeps_the_last_good_checkpoint(
    command: str, action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--preset", "smoke", "--data", str(action_data), "--out", str(run), "--threads", "1"]
    flags += ["--schedule", "constant", "--checkpoint_every", "1", "--lr", "1e30"]
    flags += ["--from_scratch"] * (command == "finetune")
    assert main([command, *flags]) == 1
    message = one_line(capsys.readouterr().err, command)
    kept = latest_checkpoint(run / "checkpoints")
    assert "at learning rate 1e+30" in message
    assert "Lower --lr" in message
    assert str(kept) in message
    state = load_checkpoint(run)
    assert all(tensor.isfinite().all() for tensor in state["network"].values() if tensor.is_floating_point())


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from mcn.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_a_full_disk_keeps_the_last_checkpoint(
    smoke_config: Callable[..., Any], processes: Any, tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    changes = {"checkpoint_every": 3, "threads": 1}
    assert processes.finish(pretrain, smoke_config("pretrain", out=whole, **changes)) == 0
    config = smoke_config("pretrain", out=run, **changes)
    flags = ["--preset", "smoke", "--data", config.data, "--out", str(run), "--threads", "1"]
    flags += ["--checkpoint_every", "3", "--device", "cpu"]
    processes.kill(run, 4, random.Random(0), pretrain, config)
    before = {path.name for path in (run / "checkpoints").glob("step_*.pt")}
    assert before

    result = run_full_disk(100_000, ["pretrain", *flags])
    if before != {"step_00000006.pt", "step_00000008.pt"}:
        assert result.returncode == 1
        message = one_line(result.stderr, "pretrain")
        assert f"cannot write {run}/checkpoints/step_0000000" in message
        assert "free some space" in message
    assert {path.name for path in (run / "checkpoints").iterdir()} == before  # no torn file either

    assert processes.finish(pretrain, config) == 0
    states = [load_checkpoint(path)["network"] for path in (run, whole)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_full_disk_while_logging(action_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--preset", "smoke", "--data", str(action_data), "--out", str(run), "--threads", "1"]
    result = run_full_disk(1200, ["pretrain", *flags, "--epochs", "50", "--checkpoint_every", "1000"])
    assert result.returncode == 1
    assert f"cannot write {run}" in one_line(result.stderr, "pretrain")


def run_full_disk(limit: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FULL_DISK, str(limit), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_interrupting_says_how_to_go_on(action_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = f"pretrain --preset smoke --data {action_data} --out {run} --epochs 1000 --workers 2 --threads 1"
    command = [sys.executable, "-m", "mcn.cli", *flags.split()]
    # A shell's background jobs ignore Ctrl-C, and so would what they start: give it back.
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not latest_checkpoint(run / "checkpoints") and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: loader workers get it too
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from the last checkpoint" in one_line(said, "pretrain")


@pytest.fixture(scope="session")
def cut_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of 60 frames whose file ends in the middle of one: more than a clip can be read."""
    path = tmp_path_factory.mktemp("cut") / "film.avi"
    frames = np.random.default_rng(0).integers(0, 256, (60, 32, 48, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


@pytest.mark.parametrize("command", ["attend", "predict", "retrieve"])
def test_a_damaged_file_is_said_to_be(
    command: str,
    cut_film: Path,
    trained: Path,
    finetuned: Path,
    action_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its readable part is used, and nobody takes that for the whole."""
    arguments = {
        "attend": ["attend", str(cut_film), "-o", str(tmp_path / "maps.png"), "--checkpoint", str(trained)],
        "predict": ["predict", str(cut_film), "--checkpoint", str(finetuned)],
        "retrieve": [
            *("retrieve", "--query", str(cut_film), "--data", str(action_data)),
            *("--preset", "smoke", "--checkpoint", str(trained), "--cache", "none"),
        ],
    }[command]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert said.count(f"damaged video, what can be read of it is used: {cut_film}: cut short") == 1
