"""Self-supervised pre-training: the loop (paper, Sec. 3.5).

One path for all rows of the paper's Table 5: the contrastive baseline is ``cls_weight=0`` and
``order="none"``, contrast + binary loss is ``order="none"``, and MCN is all of it.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mcn.bank import FeatureBank, draw_negatives
from mcn.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from mcn.config import PretrainConfig
from mcn.data.augment import AugmentConfig
from mcn.data.datasets import Videos, load_videos
from mcn.data.loader import (
    BadVideos,
    Clip,
    Step,
    TrainClips,
    clip_views,
    epoch_plan,
    steps_per_epoch,
    train_steps,
)
from mcn.errors import MCNError
from mcn.features import network_from_config
from mcn.losses import classification_loss, meta_loss, multiview_loss
from mcn.meta import MetaGradient, Params, meta_gradient
from mcn.network import call_with, running_statistics, shared_parameters
from mcn.optim import learning_rate
from mcn.retrieval import nearest_neighbour_accuracy
from mcn.run import RunFolder, generator_for, progress_bar, seed_for


@dataclass(frozen=True)
class Batch:
    """One stage's videos, as a loss sees them: nothing in it changes while it is differentiated."""

    view1: Tensor  #: (B, 3, T, H, W)
    view2: Tensor
    index: Tensor  #: (B,) rows in the bank
    rows: Tensor  #: (2, N, D) the bank's snapshot
    negatives: Tensor | None  #: (B, k) rows, or None for the whole bank
    seed: int  #: of dropout, so that a recomputation drops the same units


class Traces(NamedTuple):
    """What a stage leaves behind for the loop to commit."""

    z1: Tensor  #: features for the bank
    z2: Tensor
    buffers: dict[str, Tensor]  #: BatchNorm's running statistics after this stage
    contrast: Tensor  #: the two parts of the loss
    classification: Tensor


class StageLoss:
    """Eq. 5 on one stage's batch as a pure function of the parameters.

    What the stage leaves behind is kept from the *first* evaluation; recomputations, which the
    Hessian product may need, count for nothing (protocol rows 13 and 36). Running statistics go on
    from where ``previous``, the stage before, left them.
    """

    def __init__(
        self, network: nn.Module, batch: Batch, config: PretrainConfig, previous: "StageLoss | None" = None
    ) -> None:
        self.network, self.batch, self.config, self.previous = network, batch, config, previous
        self.traces: Traces | None = None

    def __call__(self, params: Params) -> Tensor:
        """The meta loss at ``params``, a scalar."""
        config, batch = self.config, self.batch
        before = self.previous.traces if self.previous else None
        buffers = (
            {k: v.clone() for k, v in before.buffers.items()} if before else running_statistics(self.network)
        )
        torch.manual_seed(batch.seed)
        out = call_with(self.network, params, buffers, batch.view1, batch.view2)
        contrast = multiview_loss(
            out.z1, out.z2, batch.rows, batch.index,
            negatives=batch.negatives, tau=config.tau, positive=config.positive, directions=config.directions,
        )  # fmt: skip
        binary = classification_loss(out.logits, out.labels, out.group, reduction=config.cls_reduction)
        if self.traces is None:
            self.traces = Traces(
                out.z1.detach(), out.z2.detach(), buffers, contrast.detach(), binary.detach()
            )
        return meta_loss(binary, contrast, cls_weight=config.cls_weight)


class Pretraining:
    """Network, bank and optimiser of a run, and the step that moves them."""

    def __init__(self, config: PretrainConfig, num_videos: int, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.network = network_from_config(config).to(self.device).train()
        self.bank = FeatureBank(
            num_videos,
            self.network.dim,
            momentum=config.bank_momentum,
            generator=generator_for(config.seed, "bank"),
        ).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    @property
    def stages(self) -> bool:
        """Whether a step has a support stage before the query stage."""
        return self.config.order != "none"

    def batch(self, clips: list[Clip], step: int, stage: str) -> Batch:
        """Augment one stage's clips and draw what its loss needs."""
        config = self.config
        view1, view2, index = clip_views(clips, config.size, config.view2, self.device)
        if config.shuffle_views:
            mixed = torch.randperm(len(clips), generator=generator_for(config.seed, "shuffle", stage, step))
            view2 = view2[mixed.to(self.device)]
        negatives = None
        if 0 < config.negatives < len(self.bank) - 1:
            draw = generator_for(config.seed, "negatives", stage, step)
            negatives = draw_negatives(index, len(self.bank), config.negatives, draw)
        seed = seed_for(config.seed, "dropout", stage, step)
        return Batch(view1, view2, index, self.bank.snapshot(), negatives, seed)

    def step(self, support: Batch | None, query: Batch, lr: float) -> dict[str, float]:
        """One outer step: inner update on ``support``, meta update on ``query`` (Sec. 3.5).

        Raises ``FloatingPointError`` for a loss or gradient that is not finite; nothing has changed then.
        """
        params = shared_parameters(self.network)
        support_loss = None if support is None else StageLoss(self.network, support, self.config)
        previous = support_loss if self.config.norm_update == "both" else None
        query_loss = StageLoss(self.network, query, self.config, previous)

        meta = self._gradient(support_loss, query_loss, params, lr)
        if not math.isfinite(meta.query_loss.item()):
            raise FloatingPointError(f"the loss is {meta.query_loss.item()}")
        largest = nn.utils.get_total_norm(meta.gradients.values(), norm_type=math.inf).item()
        if not math.isfinite(largest):
            raise FloatingPointError(f"the gradient is {largest}")

        for name, parameter in params.items():
            parameter.grad = meta.gradients[name]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()  # \theta <- \theta - \alpha_2 (meta-gradient), with momentum and decay
        self.optimizer.zero_grad()
        self._commit(support_loss, query_loss)

        traces = query_loss.traces
        assert traces is not None
        numbers = {
            "loss": meta.query_loss,
            "contrast": traces.contrast,
            "classification": traces.classification,
        }
        if meta.support_loss is not None:
            numbers["support_loss"] = meta.support_loss
        return {name: value.item() for name, value in numbers.items()}

    def _gradient(
        self, support: StageLoss | None, query: StageLoss, params: Params, lr: float
    ) -> MetaGradient:
        config = self.config
        if support is None:
            return meta_gradient(None, query, params, 0.0, inner_steps=0)
        inner_lr = lr if config.inner_lr is None else config.inner_lr
        meta = meta_gradient(
            support, query, params, inner_lr,
            order=config.order, method=config.method, inner_steps=config.inner_steps,
        )  # fmt: skip
        if config.outer_support_weight:
            plain = meta_gradient(None, support, params, 0.0, inner_steps=0).gradients
            for name, gradient in meta.gradients.items():
                gradient.add_(plain[name], alpha=config.outer_support_weight)
        return meta

    @torch.no_grad()
    def _commit(self, support: StageLoss | None, query: StageLoss) -> None:
        """Write what the stages left behind: running statistics, and bank rows in stage order."""
        assert query.traces is not None
        for name, buffer in self.network.named_buffers():
            buffer.copy_(query.traces.buffers[name])
        for stage in (support if self.config.bank_update == "both" else None, query):
            if stage is not None and stage.traces is not None:
                self.bank.update(stage.batch.index, stage.traces.z1, stage.traces.z2)

    def state(self, step: int, bad: BadVideos) -> dict[str, Any]:
        """All that a resumed run needs; every random draw follows from config and step alone."""
        return {
            "step": step,
            "config": dataclasses.asdict(self.config),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bank": self.bank.state_dict(),
            "bad_videos": bad.seen,
        }

    def load(self, state: dict[str, Any]) -> int:
        """Take up a saved state; gives the number of steps done."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.bank.load_state_dict(state["bank"])
        return int(state["step"])


def pretrain(config: PretrainConfig) -> Path:
    """Train as ``config`` says, continuing where a run in the same folder stopped; gives the run folder.

    Raises :class:`MCNError` for what the user can mend: a wrong folder, too many unreadable videos,
    a loss that is not finite (the last good checkpoint is kept), a full disk.
    """
    videos = load_videos(config.data, "train", config.split)
    per_epoch = _checked_steps(config, videos)
    run = RunFolder(config, "pretrain")
    training = Pretraining(config, len(videos), run.device)
    bad = BadVideos(len(videos), config.max_bad)
    done, total = _start(training, run, bad), per_epoch * config.epochs
    run.rewind_metrics(done)

    dataset = TrainClips(
        videos,
        frames=config.frames,
        stride=config.stride,
        reader=config.reader,
        augment=AugmentConfig(size=config.size) if config.augment else None,
        flow=config.view2 if config.view2.startswith("flow") else None,
        seed=config.seed,
    )
    plan = _plan(config, len(videos), per_epoch, done)
    clips = train_steps(dataset, plan, config.workers, pin=run.device.type == "cuda")
    with progress_bar(total, done, f"pretrain {run.path.name}") as bar:
        for step, (support_clips, query_clips) in enumerate(clips, start=done):
            started = time.perf_counter()
            for clip in support_clips + query_clips:
                for line in bad.report(clip.bad):
                    bar.write(line)
            lr = learning_rate(config, step, total)
            support = training.batch(support_clips, step, "support") if support_clips else None
            query = training.batch(query_clips, step, "query")
            try:
                numbers = training.step(support, query, lr)
            except FloatingPointError as error:
                raise MCNError(not_finite(str(error), step, lr, run)) from error
            rate = len(support_clips + query_clips) / (time.perf_counter() - started)
            run.log(step + 1, epoch=step // per_epoch, lr=lr, **numbers, clips_per_second=round(rate, 2))
            _show(bar, numbers, rate)
            _after_step(training, run, videos, bad, step + 1, per_epoch, total)
    if bad.seen:
        tqdm.write(bad.summary())
    run.close()
    return run.path


def _checked_steps(config: PretrainConfig, videos: Videos) -> int:
    if config.batch_size < 2:
        raise MCNError(f"--batch_size {config.batch_size}: FCM compares videos, so a batch needs at least 2")
    per_epoch = steps_per_epoch(len(videos), config.batch_size, config.order != "none")
    if per_epoch == 0:
        need = config.batch_size * (2 if config.order != "none" else 1)
        raise MCNError(
            f"{len(videos)} training videos are fewer than a step needs ({need}): "
            f"lower --batch_size {config.batch_size}"
        )
    return per_epoch


def _start(training: Pretraining, run: RunFolder, bad: BadVideos) -> int:
    """Resume from the run's newest checkpoint, or start afresh; gives the number of steps done."""
    if run.resumed is not None:
        state = load_checkpoint(run.resumed, run.device)
        bad.seen.update(state["bad_videos"])
        return training.load(state)
    if training.config.init_from:
        state = load_checkpoint(training.config.init_from, run.device)
        try:
            training.network.load_state_dict(state["network"])
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip()[:200]
            raise MCNError(f"--init_from {training.config.init_from} is another network: {first}") from error
    return 0


def _plan(config: PretrainConfig, num_videos: int, per_epoch: int, done: int) -> Iterator[Step]:
    """The steps still to do: whole epochs, the first from where the run stopped."""
    for epoch in range(done // per_epoch, config.epochs):
        steps = epoch_plan(
            num_videos, config.batch_size, epoch, config.seed, config.order != "none", config.redraw
        )
        yield from steps[done % per_epoch if epoch == done // per_epoch else 0 :]


def _after_step(
    training: Pretraining,
    run: RunFolder,
    videos: Videos,
    bad: BadVideos,
    done: int,
    per_epoch: int,
    total: int,
) -> None:
    config = training.config
    if config.eval_every and done % (config.eval_every * per_epoch) == 0:
        run.log(done, knn_top1=nearest_neighbour_accuracy(training.network, config, run.device))
    if done % config.checkpoint_every == 0 or done == total:
        save_checkpoint(run.checkpoints, done, training.state(done, bad), config.keep)


def _show(bar: "tqdm[Any]", numbers: dict[str, float], rate: float) -> None:
    shown = {"loss": numbers["loss"], "contrast": numbers["contrast"], "binary": numbers["classification"]}
    bar.set_postfix(
        {name: f"{value:.2f}" for name, value in shown.items()} | {"clips/s": f"{rate:.0f}"}, refresh=False
    )
    bar.update()


def not_finite(what: str, step: int, lr: float, run: RunFolder) -> str:
    """One line for a run that has diverged: what, where, what to do, what is left."""
    kept = latest_checkpoint(run.checkpoints)
    return f"step {step}: {what} at learning rate {lr:g}. Lower --lr (or --inner_lr), or add --warmup. " + (
        f"The last good checkpoint is {kept}" if kept else "No checkpoint had been written yet"
    )
