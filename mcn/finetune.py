"""Supervised fine-tuning of a backbone with a new classifier, and prediction (paper, Tables 1, 7, 8).

RGB, random clips in training, the mean of the softmax over evenly spread centre-cropped clips in
testing (protocol rows 39 to 42); the last epoch counts, nothing is chosen on the test list.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mcn.backbones import build_backbone
from mcn.checkpoint import load_checkpoint, save_checkpoint
from mcn.config import FinetuneConfig, build
from mcn.data.augment import AugmentConfig, center_crop
from mcn.data.datasets import Videos, load_videos
from mcn.data.loader import BadVideos, Step, TestClips, TrainClips, clip_views, epoch_plan, train_steps
from mcn.data.readers import open_video
from mcn.data.sampling import uniform_clips
from mcn.errors import MCNError
from mcn.features import VIEWS, load_network, one_view
from mcn.optim import learning_rate, parameter_groups
from mcn.pretrain import not_finite
from mcn.run import RunFolder, choose_device, progress_bar, seed_everything, seed_for


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


def finetune(config: FinetuneConfig) -> tuple[Path, Accuracy | None]:
    """Train a classifier, continuing where a run in the same folder stopped, then test it.

    Gives the run folder and the test accuracy (``None`` without a test list). Raises
    :class:`MCNError` as :func:`mcn.pretrain.pretrain` does.
    """
    videos = load_videos(config.data, "train", config.split)
    if not videos.labels:
        raise MCNError(f"{config.data} has no labels: put the videos into one folder a class")
    per_epoch = len(videos) // config.batch_size
    if per_epoch == 0:
        raise MCNError(
            f"{len(videos)} training videos do not fill a batch: lower --batch_size {config.batch_size}"
        )
    run = RunFolder(config, "finetune")
    backbone, build_with = _backbone(config, run.device)
    seed_everything(seed_for(config.seed, "classifier"))
    model = Classifier(backbone, len(videos.classes), config.dropout).to(run.device).train()
    optimizer = torch.optim.SGD(parameter_groups(model, config), lr=config.lr, momentum=config.momentum)
    bad = BadVideos(len(videos), config.max_bad)
    done, total = 0, per_epoch * config.epochs
    if run.resumed is not None:
        state = load_checkpoint(run.resumed, run.device)
        model.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        bad.seen.update(state["bad_videos"])
        done = int(state["step"])
    run.rewind_metrics(done)
    labels = torch.tensor(videos.labels, device=run.device)

    with progress_bar(total, done, f"finetune {run.path.name}") as bar:
        for step, (_, clips) in enumerate(_steps(config, videos, per_epoch, done), start=done):
            started = time.perf_counter()
            for clip in clips:
                for line in bad.report(clip.bad):
                    bar.write(line)
            lr = learning_rate(config, step, total)
            torch.manual_seed(seed_for(config.seed, "dropout", step))
            second = "residual" if config.view == "rgb" else config.view
            view1, view2, index = clip_views(clips, config.size, second, run.device)
            logits = model((view1, view2)[VIEWS[config.view]])
            loss = F.cross_entropy(logits, labels[index])
            if not math.isfinite(loss.item()):
                raise MCNError(not_finite(f"the loss is {loss.item()}", step, lr, run))
            optimizer.zero_grad()
            loss.backward()
            largest = nn.utils.get_total_norm(
                [p.grad for p in model.parameters() if p.grad is not None], norm_type=math.inf
            ).item()
            if not math.isfinite(largest):
                raise MCNError(not_finite(f"the gradient is {largest}", step, lr, run))
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            right = (logits.argmax(1) == labels[index]).float().mean().item()
            rate = len(clips) / (time.perf_counter() - started)
            run.log(step + 1, epoch=step // per_epoch, lr=lr, loss=loss.item(), top1=100 * right)
            bar.set_postfix({"loss": f"{loss.item():.2f}", "clips/s": f"{rate:.0f}"}, refresh=False)
            bar.update()
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == total:
                state = _state(config, step + 1, model, optimizer, bad, videos, build_with)
                save_checkpoint(run.checkpoints, step + 1, state, config.keep)
    if bad.seen:
        tqdm.write(bad.summary())
    run.close()
    accuracy = evaluate(model, load_videos(config.data, "test", config.split), config, run.device)
    if accuracy:
        run.write_json("test.json", dataclasses.asdict(accuracy))
    return run.path, accuracy


def _backbone(config: FinetuneConfig, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone to start from and what :func:`build_backbone` makes it with."""
    network, built = load_network(config, device)
    return network.backbone(VIEWS[config.view]), {"name": built.backbone, "width": built.width}


def _steps(config: FinetuneConfig, videos: Videos, per_epoch: int, done: int) -> Iterator[Any]:
    dataset = TrainClips(
        videos,
        frames=config.frames,
        stride=config.stride,
        reader=config.reader,
        augment=AugmentConfig(size=config.size) if config.augment else None,
        seed=config.seed,
    )

    def plan() -> Iterator[Step]:
        for epoch in range(done // per_epoch, config.epochs):
            steps = epoch_plan(len(videos), config.batch_size, epoch, config.seed, stages=False)
            yield from steps[done % per_epoch if epoch == done // per_epoch else 0 :]

    return train_steps(dataset, plan(), config.workers)


def _state(
    config: FinetuneConfig,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    bad: BadVideos,
    videos: Videos,
    build_with: dict[str, Any],
) -> dict[str, Any]:
    return {
        "step": step,
        "config": dataclasses.asdict(config),
        "network": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "bad_videos": bad.seen,
        "classes": list(videos.classes),
        "backbone": build_with,
    }


@torch.no_grad()
def clip_probabilities(
    model: nn.Module, raw: Tensor, size: int, view: str, device: torch.device | str
) -> Tensor:
    """Softmax of each of a video's clips: uint8 ``(clips, T + 1, H, W, 3)`` -> ``(clips, classes)``."""
    clip = torch.stack([center_crop(c.to(device), size) for c in raw])
    return model(one_view(clip, view)).softmax(dim=1)


def evaluate(
    model: nn.Module, videos: Videos, config: FinetuneConfig, device: torch.device
) -> Accuracy | None:
    """Top-1 and top-5 a video (mean softmax over clips) and top-1 a clip."""
    if not len(videos):
        return None
    model.eval()
    dataset = TestClips(
        videos, frames=config.frames, stride=config.stride, clips=config.clips, reader=config.reader
    )
    bad = BadVideos(len(videos), config.max_bad)
    top1 = top5 = clip_top1 = 0.0
    loader = DataLoader(dataset, batch_size=None, num_workers=config.workers)
    for index, raw, reason in tqdm(loader, desc="test", unit="video", dynamic_ncols=True):
        if raw is None:
            for line in bad.report(((videos.names[index], reason),), "counted as wrong"):
                tqdm.write(line)
            continue
        each = clip_probabilities(model, raw, config.size, config.view, device)
        best = each.mean(0).argsort(descending=True)[:5].tolist()
        label = videos.labels[index]
        top1 += best[0] == label
        top5 += label in best
        clip_top1 += (each.argmax(1) == label).float().mean().item()
    if bad.seen:
        tqdm.write(bad.summary())
    share = 100.0 / len(videos)
    return Accuracy(top1 * share, top5 * share, clip_top1 * share, len(videos))


def predict(video: str | Path, checkpoint: str | Path, device: str = "auto") -> list[tuple[str, float]]:
    """Classes of one video file by a fine-tuned network, most probable first, with probabilities.

    Raises :class:`MCNError` for a checkpoint that is not fine-tuned or a video that cannot be read.
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
    with open_video(video, config.reader) as opened:
        wanted = uniform_clips(len(opened), config.frames + 1, config.stride, config.clips)
        raw = torch.from_numpy(opened.frames([i for clip in wanted for i in clip]))
    raw = raw.unflatten(0, (config.clips, config.frames + 1))
    mean = clip_probabilities(model, raw, config.size, config.view, place).mean(0)
    return [(state["classes"][i], mean[i].item()) for i in mean.argsort(descending=True).tolist()]
