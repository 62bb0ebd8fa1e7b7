"""Supervised fine-tuning, its evaluation, and prediction of single files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mcn.backbones import build_backbone
from mcn.checkpoint import load_checkpoint
from mcn.data.datasets import load_videos
from mcn.data.readers import open_video
from mcn.data.sampling import uniform_clips
from mcn.errors import MCNError
from mcn.features import load_network
from mcn.finetune import Accuracy, Classifier, clip_probabilities, evaluate, finetune, predict

CPU = torch.device("cpu")


class Knowing(torch.nn.Module):
    """Answers from a list, one row of logits a call."""

    def __init__(self, answers: list[list[float]]) -> None:
        super().__init__()
        self.answers = iter(answers)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return torch.tensor(next(self.answers)).log().expand(len(clip), -1)


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
        heads.append(after["fc.weight"])
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
    assert evaluate(Knowing(answers), videos, config, CPU) == Accuracy(100.0, 100.0, 100.0, 8)
    answers[0] = right[1]  # one of eight is wrong
    assert evaluate(Knowing(answers), videos, config, CPU) == Accuracy(87.5, 100.0, 87.5, 8)


def test_an_unreadable_test_video_counts_as_wrong(
    smoke_config: Callable[..., Any], own_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = load_videos(own_data, "test")
    videos.path(3).write_bytes(b"broken")
    right = [[float(i == label) for i in range(4)] for n, label in enumerate(videos.labels) if n != 3]
    config = smoke_config("finetune", data=own_data, clips=1, workers=0, max_bad=0.2)
    assert evaluate(Knowing(right), videos, config, CPU) == Accuracy(87.5, 87.5, 87.5, 8)
    said = capsys.readouterr().out
    assert said.count("counted as wrong") == 1
    assert f"1 of 8 videos could not be read: {videos.names[3]}" in said


def test_the_result_is_recorded(finetuned: Path) -> None:
    result = json.loads((finetuned / "test.json").read_text())
    assert result["videos"] == 8
    assert 0 <= result["top1"] <= result["top5"] == 100.0  # four classes
    lines = [json.loads(line) for line in (finetuned / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0].keys() >= {"loss", "top1", "lr", "epoch"}


def test_prediction_is_the_mean_over_clips(finetuned: Path, action_data: Path) -> None:
    video = load_videos(action_data, "test").path(0)
    found = predict(video, finetuned, "cpu")
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert sum(p for _, p in found) == pytest.approx(1, abs=1e-5)

    state = load_checkpoint(finetuned)
    assert sorted(name for name, _ in found) == sorted(state["classes"])
    model = Classifier(build_backbone(**state["backbone"]), 4).eval()
    model.load_state_dict(state["network"])
    with open_video(video) as opened, torch.no_grad():
        each = [
            clip_probabilities(model, torch.from_numpy(opened.frames(i))[None], 24, "rgb", "cpu")
            for i in uniform_clips(len(opened), 5, 2, 2)
        ]
    mean = torch.cat(each).mean(0)
    assert dict(found) == pytest.approx(
        dict(zip(state["classes"], mean.tolist(), strict=True)), abs=1e-5
    )  # fmt: skip


def test_folders_without_labels_or_test_list(
    smoke_config: Callable[..., Any], action_data: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(action_data.glob("videos/*/*.mp4")):
        shutil.copy(path, flat)
    with pytest.raises(MCNError, match="has no labels"):
        finetune(smoke_config("finetune", data=flat, out=tmp_path / "run"))
    config = smoke_config("finetune", data=action_data / "videos", out=tmp_path / "run", epochs=1)
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
    with pytest.raises(MCNError, match="lower --batch_size 33"):
        finetune(smoke_config("finetune", out=tmp_path / "run", batch_size=33))
    assert not (tmp_path / "run").exists()
