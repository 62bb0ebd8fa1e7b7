"""Supervised fine-tuning of a backbone with a new classifier, and prediction (paper, Tables 1, 7, 8).

RGB, random clips in training, the mean of the softmax over evenly spread centre-cropped clips in
testing (protocol rows 39 to 42); the last epoch counts, nothing is chosen on the test list.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcn.backbones import build_backbone
from mcn.checkpoint import load_checkpoint
from mcn.config import FinetuneConfig, build
from mcn.data.augment import center_crop_batch
from mcn.data.datasets import Videos, load_videos
from mcn.data.loader import Clip, TestClips, clip_views, clips_of, readable_videos
from mcn.data.safe import open_safely
from mcn.errors import MCNError
from mcn.features import VIEWS, load_network, one_view
from mcn.loop import checked_steps, train
from mcn.optim import check_finite, parameter_groups
from mcn.run import RunFolder, choose_device, seed_everything, seed_for


class Classifier(nn.Module):
    """A backbone, dropout and one new fully connected layer: ``(B, 3, T, H, W)`` -> ``(B, classes)``."""

    def __init__(self, backbone: nn.Module, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(int(backbone.out_features), classes)  # type: ignore[arg-type]

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of each clip."""
        return self.fc(self.dropout(self.backbone(clip)))


@dataclass(frozen=True)
class Accuracy:
    """Per cent of all test videos, unreadable ones counted as wrong."""

    top1: float
    top5: float
    clip_top1: float
    videos: int


class Finetuning:
    """Classifier and optimiser of a run, and the step that moves them."""

    def __init__(self, config: FinetuneConfig, videos: Videos, device: torch.device) -> None:
        self.config, self.device, self.classes = config, device, videos.classes
        network, built = load_network(config, device)
        self.built_with = {"name": built.backbone, "width": built.width}
        seed_everything(seed_for(config.seed, "classifier"))
        backbone = network.backbone(VIEWS[config.view])
        self.model = Classifier(backbone, len(videos.classes), config.dropout).to(device).train()
        groups = parameter_groups(self.model, config)
        self.optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
        self.labels = torch.tensor(videos.labels, device=device)

    def step(self, support: list[Clip], query: list[Clip], number: int, lr: float) -> dict[str, float]:
        """One step of cross-entropy on ``query``; there is no support stage here."""
        torch.manual_seed(seed_for(self.config.seed, "dropout", number))
        second = "residual" if self.config.view == "rgb" else self.config.view
        *views, index = clip_views(query, self.config.size, second, self.device)
        logits = self.model(views[VIEWS[self.config.view]])
        loss = F.cross_entropy(logits, self.labels[index])
        self.optimizer.zero_grad()
        loss.backward()
        check_finite(loss, [p.grad for p in self.model.parameters() if p.grad is not None])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        right = (logits.argmax(1) == self.labels[index]).float().mean().item()
        return {"loss": loss.item(), "top1": 100 * right}

    def watch(self, epoch: int) -> dict[str, float]:
        """Nothing: the test list is looked at once, at the end (row 42)."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, enough for :func:`predict` too."""
        return {
            "config": dataclasses.asdict(self.config),
            "network": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "classes": list(self.classes),
            "backbone": self.built_with,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.model.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def finetune(config: FinetuneConfig) -> tuple[Path, Accuracy | None]:
    """Train a classifier, continuing where a run in the same folder stopped, then test it.

    Gives the run folder and the test accuracy (``None`` without a test list). Raises
    :class:`~mcn.errors.MCNError` as :func:`mcn.pretrain.pretrain` does.
    """
    videos = load_videos(config.data, "train", config.split)
    if not videos.labels:
        raise MCNError(f"{config.data} has no labels: put the videos into one folder a class")
    checked_steps(len(videos), config.batch_size, stages=False)  # before a folder is made
    run = RunFolder(config, "finetune")
    training = Finetuning(config, videos, run.device)
    train(training, run, videos, config)
    accuracy = evaluate(training.model, load_videos(config.data, "test", config.split), config, run.device)
    if accuracy:
        run.write_json("test.json", dataclasses.asdict(accuracy))
    return run.path, accuracy


@torch.no_grad()
def clip_probabilities(
    model: nn.Module, raw: Tensor, size: int, view: str, device: torch.device | str
) -> Tensor:
    """Softmax of each of a video's clips: uint8 ``(clips, T + 1, H, W, 3)`` -> ``(clips, classes)``."""
    clip = center_crop_batch(raw, size, device=device)
    return model(one_view(clip, view)).softmax(dim=1)


def evaluate(
    model: nn.Module, videos: Videos, config: FinetuneConfig, device: torch.device
) -> Accuracy | None:
    """Top-1 and top-5 a video (mean softmax over clips) and top-1 a clip."""
    if not len(videos):
        return None
    model.eval()
    dataset = TestClips(
        videos,
        frames=config.frames,
        stride=config.stride,
        clips=config.clips,
        reader=config.reader,
        timeout=config.read_timeout,
    )
    top1 = top5 = clip_top1 = 0.0
    for index, raw in readable_videos(dataset, config.workers, config.max_bad, "test"):
        each = clip_probabilities(model, raw, config.size, config.view, device)
        best = each.mean(0).argsort(descending=True)[:5].tolist()
        label = videos.labels[index]
        top1 += best[0] == label
        top5 += label in best
        clip_top1 += (each.argmax(1) == label).float().mean().item()
    share = 100.0 / len(videos)
    return Accuracy(top1 * share, top5 * share, clip_top1 * share, len(videos))


def predict(video: str | Path, checkpoint: str | Path, device: str = "auto") -> list[tuple[str, float]]:
    """Classes of one video file by a fine-tuned network, most probable first, with probabilities.

    Raises :class:`~mcn.errors.MCNError` for a checkpoint that is not fine-tuned or a video that
    cannot be read.
    """
    place = choose_device(device)
    state = load_checkpoint(checkpoint, place)
    if "classes" not in state:
        raise MCNError(
            f"{checkpoint} is not fine-tuned: `mcn finetune` writes checkpoints that know their classes"
        )
    config = build(FinetuneConfig, state["config"])
    model = Classifier(build_backbone(**state["backbone"]), len(state["classes"]), config.dropout).to(place)
    model.load_state_dict(state["network"])
    model.eval()
    with open_safely(video, config.reader, timeout=config.read_timeout) as opened:
        raw = clips_of(opened, config.frames, config.stride, config.clips)
    mean = clip_probabilities(model, raw, config.size, config.view, place).mean(0)
    return [(state["classes"][i], mean[i].item()) for i in mean.argsort(descending=True).tolist()]
