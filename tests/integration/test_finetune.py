"""Supervised fine-tuning, its evaluation, and prediction of single files."""

import csv
import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mcn.checkpoint import load_checkpoint
from mcn.classifier import Classifier
from mcn.classify import Classification, clip_probabilities, evaluate, load_classifier
from mcn.cli import main
from mcn.config import FinetuneConfig, PretrainConfig, load_preset
from mcn.data.datasets import load_videos
from mcn.data.readers import open_video
from mcn.data.sampling import uniform_clips
from mcn.errors import MCNError
from mcn.finetune import finetune, predict
from mcn.loading import load_network, network_from_config
from mcn.metrics import Evaluation

CPU = torch.device("cpu")


class Knowing(torch.nn.Module):
    """Answers from a list, one row of logits a call."""

    def __init__(self, answers: list[list[float]]) -> None:
        super().__init__()
        self.answers = iter(answers)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return torch.tensor(next(self.answers)).log().expand(len(clip), -1)


def evaluated(answers: list[list[float]], videos: Any, config: FinetuneConfig) -> Evaluation:
    (found,) = evaluate(Classifier(Knowing(answers), [torch.nn.Identity()]), videos, config, CPU)
    return found


def test_it_starts_from_the_checkpoint(
    smoke_config: Callable[..., Any], trained: Path, tmp_path: Path
) -> None:
    still = {"lr": 0.0, "weight_decay": 0.0, "epochs": 1, "clips": 1}
    heads = []
    for view, seed in (("rgb", 0), ("rgb", 1), ("residual", 0)):
        run, _ = finetune(
            smoke_config(
                "finetune", out=tmp_path / f"{view}{seed}", checkpoint=trained, view=view, seed=seed, **still
            )
        )
        before, after = load_checkpoint(trained)["network"], load_checkpoint(run)["network"]
        weights = [name for name in after if name.startswith("backbone.") and "weight" in name]
        assert weights
        for name in weights:
            assert torch.equal(after[name], before[f"backbones.{name.removeprefix('backbone.')}".replace(
                "backbones.", f"backbones.{int(view == 'residual')}.")])  # fmt: skip
        heads.append(after["heads.0.fc.weight"])
    assert torch.equal(heads[0], heads[2])  # the new layer follows from the seed of this run alone
    assert not torch.equal(heads[0], heads[1])


def test_every_way_to_share_backbones_can_be_fine_tuned(
    smoke_config: Callable[..., Any], tmp_path: Path
) -> None:
    from mcn.pretrain import pretrain

    for name, settings in {"mixed": {"statistics": "mixed"}, "separate": {"sharing": "separate"}}.items():
        run = pretrain(
            smoke_config("pretrain", out=tmp_path / name, epochs=1, batch_size=16, order="none", **settings)
        )
        tuned, accuracy = finetune(
            smoke_config(
                "finetune", out=tmp_path / f"{name}-tuned", checkpoint=run, view="residual", epochs=1, clips=1
            )
        )
        assert accuracy is not None
        assert tuned.is_dir()


def test_evaluation_averages_clips_and_counts_every_video(
    smoke_config: Callable[..., Any], action_data: Path
) -> None:
    videos = load_videos(action_data, "test")
    config = smoke_config("finetune", clips=2, workers=0)
    right = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7]]
    answers = [right[label] for label in videos.labels]
    assert set(evaluated(answers, videos, config).summary().values()) == {100.0, 8, 0}
    answers[0] = right[1]  # one of eight is wrong
    found = evaluated(answers, videos, config)
    assert (found.top1, found.top5, found.clip_top1, found.videos) == (87.5, 100.0, 87.5, 8)


def test_an_unreadable_test_video_counts_as_wrong(
    smoke_config: Callable[..., Any], own_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = load_videos(own_data, "test")
    videos.path(3).write_bytes(b"broken")
    right = [[float(i == label) for i in range(4)] for n, label in enumerate(videos.labels) if n != 3]
    config = smoke_config("finetune", data=own_data, clips=1, workers=0, max_bad=0.2)
    found = evaluated(right, videos, config)
    assert (found.top1, found.top5, found.clip_top1, found.clip_top5) == (87.5, 87.5, 87.5, 87.5)
    assert (found.videos, found.unreadable) == (8, 1)
    said = capsys.readouterr().out
    assert said.count("counted as wrong") == 1
    assert f"1 of 8 videos could not be read: {videos.names[3]}" in said


def test_the_result_is_recorded(finetuned: Path) -> None:
    result = json.loads((finetuned / "test.json").read_text())
    assert (result["videos"], result["chance"]) == (8, 25.0)
    assert 0 <= result["top1"] <= result["top5"] == 100.0  # four classes
    lines = [json.loads(line) for line in (finetuned / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0].keys() >= {"loss", "top1", "lr", "epoch"}


def test_prediction_is_the_mean_over_clips(
    finetuned: Path, action_data: Path, smoke_config: Callable[..., Any]
) -> None:
    video = load_videos(action_data, "test").path(0)
    found, said = predict(video, finetuned, "cpu")
    assert said == "2 uniform clips of 4 frames, stride 2, 24 pixels, centre crop, mean softmax, rgb"
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert sum(p for _, p in found) == pytest.approx(1, abs=1e-5)

    state = load_checkpoint(finetuned)
    assert sorted(name for name, _ in found) == sorted(state["classes"])
    config, model = smoke_config("finetune"), load_classifier(state, CPU)
    with open_video(video) as opened:
        each = [
            clip_probabilities(model, torch.from_numpy(opened.frames(i))[None], config, CPU)[0]
            for i in uniform_clips(len(opened), 5, 2, 2)
        ]
    mean = torch.cat(each).mean(0)
    assert dict(found) == pytest.approx(dict(zip(state["classes"], mean.tolist(), strict=True)), abs=1e-5)


def test_folders_without_labels_or_test_list(
    smoke_config: Callable[..., Any], action_data: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(action_data.glob("videos/*/*.mp4")):
        shutil.copy(path, flat)
    with pytest.raises(MCNError, match="has no labels"):
        finetune(smoke_config("finetune", data=flat, out=tmp_path / "run", from_scratch=True))
    data = action_data / "videos"
    config = smoke_config("finetune", data=data, out=tmp_path / "run", epochs=1, from_scratch=True)
    run, accuracy = finetune(config)  # class folders without lists: all is training data
    assert accuracy is None
    assert not (run / "test.json").exists()


def test_checkpoints_of_the_other_kind_are_refused(
    smoke_config: Callable[..., Any], trained: Path, finetuned: Path, tmp_path: Path, action_data: Path
) -> None:
    with pytest.raises(MCNError, match="not a pre-training checkpoint"):
        load_network(smoke_config("probe", checkpoint=finetuned), CPU)
    with pytest.raises(MCNError, match="is not fine-tuned"):
        predict(next(action_data.rglob("*.mp4")), trained, "cpu")


def test_a_batch_larger_than_the_data_is_refused(smoke_config: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(MCNError, match="lower --batch_size 33 to 32"):
        finetune(smoke_config("finetune", out=tmp_path / "run", batch_size=33, from_scratch=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("crops", ["centre", "ten"])
def test_top1_a_video_is_that_of_a_naive_loop(
    crops: str, finetuned: Path, action_data: Path, smoke_config: Callable[..., Any]
) -> None:
    """Frames, crops, softmax, mean and counting once more, one image at a time in plain Python."""
    from mcn.clip_features import ten_crops
    from mcn.data.augment import augment_batch, center_crop
    from mcn.views import normalise

    model = load_classifier(load_checkpoint(finetuned), CPU)
    videos = load_videos(action_data, "test")
    config = smoke_config("finetune", clips=3, workers=0, crops=crops)
    (found,) = evaluate(model, videos, config, CPU)
    right = right_clips = 0.0
    confusion = [[0] * 4 for _ in range(4)]
    for index, label in enumerate(videos.labels):
        with open_video(videos.path(index)) as opened:
            windows = [opened.frames(w) for w in uniform_clips(len(opened), 5, 2, 3)]
        means = []
        for window in map(torch.from_numpy, windows):
            if crops == "centre":
                images = [center_crop(window, 24)]
            else:
                images = [augment_batch([window], [box], 24, colour=False)[0] for box in ten_crops(32, 32)]
            each = []
            for image in images:  # (3, T + 1, H, W)
                with torch.no_grad():
                    logits = model(normalise(image[None, :, :-1], "rgb"))[0, 0].tolist()
                total = sum(math.exp(value) for value in logits)
                each.append([math.exp(value) / total for value in logits])
            means.append([sum(column) / len(each) for column in zip(*each, strict=True)])
            right_clips += means[-1].index(max(means[-1])) == label
        mean = [sum(column) / 3 for column in zip(*means, strict=True)]
        confusion[label][mean.index(max(mean))] += 1
        right += mean.index(max(mean)) == label
    assert found.top1 == 100 * right / 8
    assert found.clip_top1 == pytest.approx(100 * right_clips / 24)
    assert found.confusion.tolist() == confusion


def test_numbers_do_not_depend_on_workers_or_the_size_of_batches(
    finetuned: Path, action_data: Path, smoke_config: Callable[..., Any]
) -> None:
    model, videos = load_classifier(load_checkpoint(finetuned), CPU), load_videos(action_data, "test")
    results = [
        evaluate(model, videos, smoke_config("finetune", **changes), CPU)[0]
        for changes in ({"workers": 0, "batch_size": 1}, {"workers": 2, "batch_size": 64})
    ]
    assert results[0].summary() == results[1].summary()
    assert torch.equal(results[0].confusion, results[1].confusion)


def test_tables_are_written_beside_the_result(finetuned: Path, trained: Path) -> None:
    result = json.loads((finetuned / "test.json").read_text())
    assert f"r3d_small of {trained}/checkpoints/step_" in result["start"]
    assert "fine-tuned, all parameters" in result["protocol"]
    assert "2 uniform clips of 4 frames, stride 2, 24 pixels, centre crop" in result["protocol"]
    with (finetuned / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["videos"]) * float(row["top1"]) for row in rows) / 8 == pytest.approx(result["top1"])
    tables = json.loads((finetuned / "classes.json").read_text())
    trace = sum(row[number] for number, row in enumerate(tables["confusion"]))
    assert 100 * trace / 8 == pytest.approx(result["top1"])
    assert [score["name"] for score in tables["classes"]] == [row["name"] for row in rows]


def test_from_scratch_has_to_be_said_and_the_result_says_it(
    smoke_config: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(MCNError, match=r"no --checkpoint: .* --from_scratch"):
        finetune(smoke_config("finetune", out=out))
    with pytest.raises(MCNError, match="a run starts from one of them"):
        finetune(smoke_config("finetune", out=out, checkpoint="pretrained", from_scratch=True))
    with pytest.raises(MCNError, match="no checkpoint at forgotten"):
        finetune(smoke_config("finetune", out=out, checkpoint="forgotten"))
    assert not out.exists()
    still = {"lr": 0.0, "weight_decay": 0.0, "epochs": 1, "clips": 1, "seed": 5}
    finetune(smoke_config("finetune", out=out, from_scratch=True, **still))
    untrained = network_from_config(PretrainConfig(backbone="r3d_small", width=4, seed=5)).backbone(0)
    own = load_checkpoint(out)["network"]
    for name, parameter in untrained.named_parameters():
        assert torch.equal(own[f"backbone.{name}"], parameter), name
    result = json.loads((out / "test.json").read_text())
    assert result["start"] == "r3d_small never pre-trained (seed 5)"
    assert result["protocol"].startswith("trained from scratch")


def test_a_run_goes_on_when_its_pre_training_is_gone(
    smoke_config: Callable[..., Any],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = shutil.copytree(trained, tmp_path / "start")
    changes = {"checkpoint": start, "epochs": 2, "clips": 1, "checkpoint_every": 3}
    whole, _ = finetune(smoke_config("finetune", out=tmp_path / "whole", **changes))
    step = Classification.step

    def dying(self: Any, support: Any, query: Any, number: int, lr: float) -> dict[str, float]:
        if number == 5:
            raise KeyboardInterrupt
        return step(self, support, query, number, lr)

    monkeypatch.setattr(Classification, "step", dying)
    config = smoke_config("finetune", out=tmp_path / "run", **changes)
    with pytest.raises(KeyboardInterrupt):
        finetune(config)
    monkeypatch.undo()
    shutil.rmtree(start)
    flags = ["--preset", "smoke", "--data", config.data, "--device", "cpu", "--threads", "1"]
    flags += [f"--{name}={value}" for name, value in changes.items()]
    assert main(["finetune", *flags, "--out", str(tmp_path / "run")]) == 0
    assert f"start: r3d_small of {start}" in capsys.readouterr().out
    one, two = (load_checkpoint(run)["network"] for run in (whole, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    results = [(run / "test.json").read_text() for run in (whole, tmp_path / "run")]
    assert results[0] == results[1]


def test_presets_have_the_papers_batch_rate_and_epochs() -> None:
    """Sec. 4.2: 300 epochs at .02, batches of 72 and 200; for S3D the paper says nothing."""
    batches = {"r2plus1d_18": 72, "r3d_18": 200, "s3d": 72}
    for backbone, batch in batches.items():
        known = {**dataclasses.asdict(FinetuneConfig()), **load_preset(f"paper-{backbone}", "finetune")}
        assert (known["backbone"], known["batch_size"]) == (backbone, batch)
        assert (known["lr"], known["epochs"], known["dropout"]) == (0.02, 300, 0.5)
        assert (known["momentum"], known["weight_decay"], known["schedule"]) == (0.9, 0.001, "steps")
        assert tuple(known["milestones"]) == (0.4, 0.8)  # 120 and 240 (row 40)
        assert (known["clips"], known["frames"], known["size"]) == (10, 32, 128)
