"""What fine-tuning and the headline linear probe share: a classifier on a backbone, its steps, its test.

A network is trained on random clips and tested by the mean of the softmax over evenly spread ones
(protocol rows 39 to 43); the last epoch counts, nothing is chosen on the test list.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcn.backbones import build_backbone
from mcn.checkpoint import find_checkpoint, latest_checkpoint, load_checkpoint
from mcn.clip_features import CROPS, VIEWS, evaluation_clips, evaluation_crops, is_flow, one_view
from mcn.config import FinetuneConfig, ProbeConfig
from mcn.data.datasets import Videos
from mcn.data.loader import Clip, clip_views, readable_videos
from mcn.errors import MCNError
from mcn.features import load_network
from mcn.loop import checked_steps, train
from mcn.metrics import Evaluation, Tally
from mcn.optim import check_finite, parameter_groups
from mcn.run import RunFolder, choose_device, seed_everything, seed_for
from mcn.starting_points import classifier_backbone

Config = FinetuneConfig | ProbeConfig


class Head(nn.Module):
    """What reads classes off a feature, ``(B, F)`` -> ``(B, classes)``: dropout and a fully connected layer.

    ``normalise`` puts L2 normalisation and a BatchNorm with scale and shift before it, and starts the
    layer small, as CoCLR's linear probe does (:eq:`eq-transfer-headline`, row 43).
    """

    def __init__(self, width: int, classes: int, *, dropout: float = 0.0, normalise: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if normalise else None
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)
        if normalise:
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of each feature."""
        if self.norm is not None:
            features = self.norm(F.normalize(features, dim=1))
        return self.fc(self.dropout(features))


class Classifier(nn.Module):
    """A backbone and the ``N`` heads that read it (one, but in a sweep): clips -> ``(N, B, classes)``.

    A ``frozen`` backbone stays in eval mode and gets no gradient.

    >>> model = Classifier(build_backbone("r3d_small", 4), [Head(32, 5)])
    >>> model(torch.rand(2, 3, 4, 16, 16)).shape
    torch.Size([1, 2, 5])
    """

    def __init__(self, backbone: nn.Module, heads: Sequence[nn.Module], *, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.heads, self.frozen = backbone, nn.ModuleList(heads), frozen

    def train(self, mode: bool = True) -> "Classifier":
        """As any module's, but for a frozen backbone, which is always in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of each head, of clips ``(B, 3, T, H, W)``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(clip)
        return torch.stack([head(features) for head in self.heads])


@dataclass(frozen=True)
class Start:
    """The backbone that a run starts from, how to build another like it, and where it came from."""

    backbone: nn.Module
    build: dict[str, Any]  #: arguments of :func:`mcn.backbones.build_backbone`
    origin: str


def starting_point(config: Config, device: torch.device) -> Start:
    """The backbone of the config's checkpoint or other file of weights, or one that was never trained.

    Raises :class:`~mcn.errors.MCNError` as :func:`mcn.features.load_network` does.
    """
    network, trained = load_network(config, device)
    build = {"name": trained.backbone, "width": trained.width}
    if not config.checkpoint:
        origin = f"{trained.backbone} never pre-trained (seed {config.seed})"
    elif trained.init_from == config.checkpoint:
        origin = f"{trained.backbone} of {config.checkpoint} (not pre-trained by mcn)"
    else:
        how = f"order {trained.order}, cls_weight {trained.cls_weight:g}, seed {trained.seed}"
        origin = f"{trained.backbone} of {find_checkpoint(config.checkpoint)} ({how})"
    return Start(network.backbone(VIEWS[config.view]), build, origin)


def continued(checkpoint: str | Path, device: torch.device) -> Start:
    """The start of a run that has a checkpoint of its own, without the one it started from."""
    state = load_checkpoint(checkpoint, device)
    return Start(classifier_backbone(state).to(device), state["backbone"], state["start"])


class Classification:
    """Classifier and optimiser of a run, and the step that moves them.

    ``head`` are the settings of its :class:`Head`. With a ``frozen`` backbone there may be several
    ``penalties``: a head each, that start alike and are trained side by side on the same features,
    each exactly as it would be alone.
    """

    def __init__(
        self,
        config: Config,
        videos: Videos,
        start: Start,
        head: dict[str, Any],
        device: torch.device,
        *,
        frozen: bool = False,
        penalties: Sequence[float] = (),
    ) -> None:
        self.config, self.start, self.head, self.device = config, start, head, device
        self.classes = list(videos.classes)
        self.penalties = tuple(penalties) or (config.weight_decay,)
        width = int(start.backbone.out_features)  # type: ignore[arg-type]
        heads = []
        for _ in self.penalties:
            seed_everything(seed_for(config.seed, "classifier"))
            heads.append(Head(width, len(self.classes), **head))
        self.model = Classifier(start.backbone.requires_grad_(not frozen), heads, frozen=frozen)
        self.model.to(device).train()
        trained: Sequence[nn.Module] = heads if frozen else [self.model]
        groups = [
            group
            for module, penalty in zip(trained, self.penalties, strict=True)
            for group in parameter_groups(module, dataclasses.replace(config, weight_decay=penalty))
        ]
        self.optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
        self.labels = torch.tensor(videos.labels, device=device)

    def step(self, support: list[Clip], query: list[Clip], number: int, lr: float) -> dict[str, float]:
        """One step of cross-entropy on ``query``; there is no support stage here."""
        torch.manual_seed(seed_for(self.config.seed, "dropout", number))
        view = self.config.view
        second = "residual" if view == "rgb" else view
        *views, index = clip_views(query, self.config.size, second, self.device)
        return self.learn(views[VIEWS[view]], self.labels[index], lr)

    def learn(self, clip: Tensor, labels: Tensor, lr: float) -> dict[str, float]:
        """Move by one batch, the network's input and classes ``(B,)``; gives the heads' mean numbers."""
        logits = self.model(clip)
        # Heads share no parameter that moves, so the sum's gradient is each one's own.
        loss = torch.stack([F.cross_entropy(each, labels) for each in logits]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        check_finite(loss, [p.grad for p in self.model.parameters() if p.grad is not None])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        right = (logits.argmax(-1) == labels).float().mean().item()
        return {"loss": loss.item() / len(logits), "top1": 100 * right}

    def watch(self, epoch: int) -> dict[str, float]:
        """Nothing: the test list is looked at once, at the end (row 42)."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: enough to go on, and to predict, without any other file."""
        return {
            "config": dataclasses.asdict(self.config),
            "network": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "classes": self.classes,
            "backbone": self.start.build,
            "head": self.head,
            "start": self.start.origin,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.model.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def fit(
    config: Config, videos: Videos, head: dict[str, Any], *, after: Path | None = None, **how: Any
) -> tuple[RunFolder, Classification]:
    """Train a classifier to the end, continuing where a run in the same folder stopped.

    ``how`` goes to :class:`Classification`. What is wrong with the start is said before a folder is made;
    a run that is continued needs nothing but its own checkpoint. ``after`` is a run whose frozen backbone
    is taken instead of the config's.
    """
    if not videos.labels:
        raise MCNError(f"{config.data} has no labels: put the videos into one folder a class")
    checked_steps(len(videos), config.batch_size, stages=False)
    known = (latest_checkpoint(Path(config.out) / "checkpoints") if config.out else None) or after
    start = None if known else starting_point(config, choose_device(config.device))
    run = RunFolder(config, "probe" if isinstance(config, ProbeConfig) else "finetune")
    if start is None:
        start = continued(run.resumed or str(after), run.device)
    training = Classification(config, videos, start, head, run.device, **how)
    print(f"start: {start.origin}")
    train(training, run, videos, config, flow=config.view if is_flow(config.view) else None)
    return run, training


def load_classifier(state: dict[str, Any], device: torch.device) -> Classifier:
    """The classifier of a checkpoint's ``state``, in eval mode."""
    backbone = build_backbone(**state["backbone"])
    head = Head(int(backbone.out_features), len(state["classes"]), **state["head"])  # type: ignore[arg-type]
    model = Classifier(backbone, [head]).to(device)
    model.load_state_dict(state["network"])
    return model.eval()


@torch.no_grad()
def clip_probabilities(model: nn.Module, raw: Tensor, config: Config, device: torch.device) -> Tensor:
    """Softmax of each of a video's clips, of ten crops their mean, float64 ``(heads, clips, classes)``.

    ``raw`` is what was read, uint8 ``(clips, T + 1, H, W, 3)`` (of flow ``T``). At most ``batch_size``
    images go through the network at a time (ten, if a clip has ten crops).
    """

    def each() -> Iterator[Tensor]:
        for some in raw.split(max(1, config.batch_size // CROPS[config.crops])):
            seen = evaluation_crops(some.to(device), config.size, config.crops, config.view)
            logits = model(one_view(seen, config.view)).double()
            yield logits.softmax(-1).unflatten(1, (len(some), -1)).mean(2)

    return torch.cat(list(each()), dim=1).cpu()


def evaluate(
    model: Classifier, videos: Videos, config: Config, device: torch.device, progress: str = "test"
) -> list[Evaluation]:
    """Accuracies of each head on a list: per clip, and per video by the mean softmax over its clips.

    Unreadable videos are named, counted against ``max_bad``, and wrong. The model is left in eval mode.
    """
    model.eval()
    dataset = evaluation_clips(
        videos,
        config.view,
        frames=config.frames,
        stride=config.stride,
        clips=config.clips,
        reader=config.reader,
        timeout=config.read_timeout,
    )
    tallies = [Tally(videos.labels, videos.classes) for _ in model.heads]
    for index, raw in readable_videos(dataset, config.workers, config.max_bad, progress):
        for tally, clips in zip(tallies, clip_probabilities(model, raw, config, device), strict=True):
            tally.add(index, clips)
    return [tally.evaluation() for tally in tallies]


def report(run: RunFolder, found: Evaluation, **more: Any) -> None:
    """Keep a run's result: ``test.json``, and the tables of :meth:`mcn.metrics.Evaluation.save`."""
    found.save(run.path)
    run.write_json("test.json", {**found.summary(), **more})


def how_tested(config: Config) -> str:
    """How a run is tested, in words."""
    crops = "centre crop" if config.crops == "centre" else "ten crops"
    return (
        f"{config.clips} uniform clips of {config.frames} frames, {crops}, mean softmax, {config.view}, "
        f"split {config.split}, last epoch"
    )
