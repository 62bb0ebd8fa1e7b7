"""What fine-tuning and the headline linear probe share: a classifier on a backbone, its steps, its test.

A network is trained on random clips and tested by the mean of the softmax over evenly spread ones
(protocol rows 39 to 43); the last epoch counts, nothing is chosen on the test list.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcn._weights import require
from mcn.backbones import build_backbone
from mcn.checkpoint import find_checkpoint, load_checkpoint, own_checkpoint
from mcn.classifier import Classifier, Head
from mcn.clip_features import (
    CROPS,
    CROPS_IN_WORDS,
    VIEWS,
    clips_in_words,
    evaluation_clips,
    evaluation_crops,
    is_flow,
    one_view,
)
from mcn.composes import check_together
from mcn.config import FinetuneConfig, ProbeConfig
from mcn.data.datasets import Videos
from mcn.data.loader import Clip, clip_views, readable_videos
from mcn.distributed import Ranks
from mcn.loading import load_network
from mcn.loop import checked_steps, shares_for, train
from mcn.loss_scale import LossScale
from mcn.metrics import Evaluation, Tally
from mcn.network import running_statistics
from mcn.optim import check_finite, parameter_groups, sgd
from mcn.precision import prepare, resolved
from mcn.run import RunFolder, choose_device, seed_everything, seed_for
from mcn.shares import WeightedSum, in_cut
from mcn.starting_points import classifier_backbone

Config = FinetuneConfig | ProbeConfig
C = TypeVar("C", bound=FinetuneConfig | ProbeConfig)


@dataclass(frozen=True)
class Start:
    """The backbone that a run starts from, how to build another like it, and where it came from."""

    backbone: nn.Module
    build: dict[str, Any]  #: arguments of :func:`mcn.backbones.build_backbone`
    origin: str


def starting_point(config: Config, device: torch.device) -> Start:
    """The backbone of the config's checkpoint or other file of weights, or one that was never trained.

    Raises :class:`~mcn.errors.MCNError` as :func:`mcn.loading.load_network` does.
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
    require(state, ("backbone", "head", "start"), checkpoint)
    return Start(classifier_backbone(state, checkpoint).to(device), state["backbone"], state["start"])


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
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> None:
        self.config, self.start, self.head, self.device = config, start, head, device
        self.ranks, self.shares = ranks, config.shares or ranks.size  # of a batch, over all processes
        self.classes = list(videos.classes)
        self.penalties = tuple(penalties) or (config.weight_decay,)
        width = int(start.backbone.out_features)  # type: ignore[arg-type]
        heads = []
        for _ in self.penalties:
            seed_everything(seed_for(config.seed, "classifier"))
            heads.append(Head(width, len(self.classes), **head))
        precision = resolved(config, device)
        self.model = Classifier(
            start.backbone.requires_grad_(not frozen), heads,
            frozen=frozen, precision=precision, checkpointing=getattr(config, "checkpointing", False),
        )  # fmt: skip
        prepare(self.model.to(device).train(), config, precision)
        trained: Sequence[nn.Module] = heads if frozen else [self.model]
        groups = [
            group
            for module, penalty in zip(trained, self.penalties, strict=True)
            for group in parameter_groups(module, dataclasses.replace(config, weight_decay=penalty))
        ]
        self.optimizer = sgd(groups, config, device)
        self.scale = LossScale(on=precision.name == "fp16" and not frozen)
        self.labels = torch.tensor(videos.labels, device=device)

    def step(self, support: list[Clip], query: list[Clip], number: int, lr: float) -> dict[str, float]:
        """One step of cross-entropy on ``query``; there is no support stage here."""
        return self._learn(lambda: self._shares(query, number), lr)

    def learn(self, clip: Tensor, labels: Tensor, lr: float) -> dict[str, float]:
        """Move by one batch, the network's input and classes ``(B,)``; gives the heads' mean numbers."""
        return self._learn(lambda: iter([(clip, labels, 1.0)]), lr)

    def _shares(self, clips: list[Clip], number: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        """This process's shares of step ``number``: the network's input, classes, weight in the batch."""
        config = self.config
        own = self.shares // self.ranks.size
        first = self.ranks.rank * own
        second = "residual" if config.view == "rgb" else config.view
        for share, (part, weight) in enumerate(in_cut(config.batch_size, self.shares, first, own), first):
            torch.manual_seed(seed_for(config.seed, "dropout", number, *([share] if share else [])))
            *views, index = clip_views(clips[part], config.size, second, self.device)
            yield views[VIEWS[config.view]], self.labels[index], weight

    def _learn(
        self, shares: Callable[[], Iterator[tuple[Tensor, Tensor, float]]], lr: float
    ) -> dict[str, float]:
        """Move by the mean gradient of all processes' shares; gives their mean numbers."""
        before = running_statistics(self.model)
        try:
            gradient, left_behind = self.scale.carried(lambda: self._gradient(shares(), before))
        finally:
            self._set_statistics(before)
        numbers = {name: left_behind.pop(name) for name in ("loss", "top1")}
        for name, parameter in self._moving().items():
            parameter.grad = gradient[name]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._set_statistics(left_behind)
        return {name: value.item() for name, value in numbers.items()}

    def _moving(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _gradient(
        self, shares: Iterator[tuple[Tensor, Tensor, float]], before: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Over all processes' shares, computed one at a time: the gradient; numbers and statistics, means.

        Raises ``FloatingPointError`` for a loss or gradient that is not finite.
        """
        moving, scale = self._moving(), self.scale.value
        gradients, left = WeightedSum(), WeightedSum()
        for clip, labels, weight in shares:
            self._set_statistics(before)  # each share goes on from the same ones
            logits = self.model(clip)
            # Heads share no parameter that moves, so the sum's gradient is each one's own.
            loss = torch.stack([F.cross_entropy(each, labels) for each in logits]).sum()
            parts = torch.autograd.grad(scale * loss, tuple(moving.values()))
            gradients.add(dict(zip(moving, parts, strict=True)), weight)
            right = (logits.argmax(-1) == labels).to(loss.dtype).mean()
            numbers = {"loss": loss.detach() / len(logits), "top1": 100 * right}
            left.add({**numbers, **running_statistics(self.model)}, weight)
        gradient, left_behind = self.ranks.reduce(gradients.total), self.ranks.reduce(left.total)
        gradient = {name: g / scale for name, g in gradient.items()}
        check_finite(left_behind["loss"], gradient.values())
        return gradient, left_behind

    @torch.no_grad()
    def _set_statistics(self, statistics: dict[str, Tensor]) -> None:
        buffers = dict(self.model.named_buffers())
        for name, value in statistics.items():
            buffers[name].copy_(value)

    def watch(self, epoch: int) -> dict[str, float]:
        """Nothing: the test list is looked at once, at the end (row 42)."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: enough to go on, and to predict, without any other file."""
        return {
            "config": dataclasses.asdict(self.config),
            "network": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scale": self.scale.state(),
            "classes": self.classes,
            "backbone": self.start.build,
            "head": self.head,
            "start": self.start.origin,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.model.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scale.load(state.get("scale", {}))


def checked(config: C, videos: Videos, head: dict[str, Any], ranks: Ranks) -> C:
    """The config with its shares said; refuses what cannot be trained on ``videos``, before a folder is made.

    Raises :class:`~mcn.errors.MCNError` for videos without labels or fewer than a batch, and as
    :func:`mcn.composes.check_together` and :func:`mcn.loop.shares_for` do.
    """
    videos.check_labels()
    check_together(_command(config), config)
    config = shares_for(config, ranks, "BatchNorm compares videos" if head.get("normalise") else "")
    checked_steps(len(videos), config.batch_size, stages=False)
    return config


def _command(config: Config) -> str:
    return "probe" if isinstance(config, ProbeConfig) else "finetune"


def fit(
    config: Config,
    videos: Videos,
    head: dict[str, Any],
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    *,
    start: Start | None = None,
    **how: Any,
) -> tuple[RunFolder, Classification]:
    """Train a classifier to the end, continuing where a run in the same folder stopped.

    ``how`` goes to :class:`Classification`. What is wrong with the start is said before a folder is made;
    a run that is continued needs nothing but its own checkpoint. ``start`` is the run's, where it is at hand
    already. Of several ``ranks`` each computes its shares of every batch.
    """
    config = checked(config, videos, head, ranks)
    if start is None and not own_checkpoint(config.out):
        start = starting_point(config, choose_device(config.device))
    run = RunFolder(config, _command(config), ranks)
    if start is None:
        assert run.resumed is not None
        start = continued(run.resumed, run.device)
    training = Classification(config, videos, start, head, run.device, ranks=ranks, **how)
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
    model: Classifier,
    videos: Videos,
    config: Config,
    device: torch.device,
    progress: str = "test",
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> list[Evaluation]:
    """Accuracies of each head on a list: per clip, and per video by the mean softmax over its clips.

    Unreadable videos are named, counted against ``max_bad``, and wrong. The model is left in eval mode. Of
    several ``ranks`` each looks at its part of the list, and all give the same.
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
    own = ranks.part(range(len(videos)))
    shown = progress if ranks.first else ""
    seen = readable_videos(dataset, config.workers, config.max_bad, shown, own, ranks)
    tallies = [Tally(videos.labels, videos.classes) for _ in model.heads]
    for index, raw in seen:
        for tally, clips in zip(tallies, clip_probabilities(model, raw, config, device), strict=True):
            tally.add(index, clips)
    for others in ranks.objects(tallies):
        for tally, other in zip(tallies, others, strict=True):
            tally.take(other)
    return [tally.evaluation() for tally in tallies]


def report(run: RunFolder, found: Evaluation, **more: Any) -> None:
    """Keep a run's result: ``test.json`` (with chance), the tables of :meth:`mcn.metrics.Evaluation.save`."""
    if run.ranks.first:
        found.save(run.path)
    run.write_json("test.json", {**found.summary(), "chance": found.chance[1], **more})


def how_tested(config: Config) -> str:
    """How a run is tested, in words."""
    return f"{answered_by(config)}, split {config.split}, last epoch"


def answered_by(config: Config) -> str:
    """What a video's answer is made of, in words for the line of protocol.

    >>> answered_by(FinetuneConfig())
    '10 uniform clips of 32 frames, stride 1, 128 pixels, centre crop, mean softmax, rgb'
    """
    clips = f"{config.clips} uniform clips of {clips_in_words(config)}"
    return f"{clips}, {CROPS_IN_WORDS[config.crops]}, mean softmax, {config.view}"
