"""Self-supervised pre-training: one step of the paper's process (Sec. 3.5), and a run of them.

One path for all rows of the paper's Table 5: the contrastive baseline is ``cls_weight=0`` and
``order="none"``, contrast + binary loss is ``order="none"``, and MCN is all of it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcn.bank import FeatureBank, draw_negatives
from mcn.checkpoint import own_checkpoint
from mcn.composes import check_together
from mcn.config import PretrainConfig
from mcn.data.loader import Clip, clip_views
from mcn.data.plan import steps_per_epoch
from mcn.distributed import Ranks, join_ranks
from mcn.errors import MCNError
from mcn.holdout import videos_of
from mcn.loading import network_from_config
from mcn.loop import checked_steps, shares_for, train
from mcn.loss_scale import LossScale
from mcn.meta import MetaGradient, Params, choose_method, meta_gradient
from mcn.network import shared_parameters
from mcn.optim import check_finite, laid_out_as, order_at, parameter_groups, sgd
from mcn.precision import prepare, resolved
from mcn.retrieval import nearest_neighbour_accuracy
from mcn.run import RunFolder, choose_device, generator_for, seed_for
from mcn.shares import Share, WeightedSum, in_cut
from mcn.stage import Batch, StageLoss
from mcn.starting_points import read_starting_point

_NUMBERS = ("loss", "contrast", "classification", "support_loss")  # what a step logs


def _listed(batch: Batch | Sequence[Batch] | None) -> list[Batch]:
    return [] if batch is None else [batch] if isinstance(batch, Batch) else list(batch)


class Pretraining:
    """Network, bank and optimiser of a run, and the step that moves them.

    With several ``ranks`` each holds all of it and computes some of a batch's shares.
    """

    def __init__(
        self,
        config: PretrainConfig,
        num_videos: int,
        device: torch.device | str = "cpu",
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> None:
        self.config, self.device, self.ranks = config, torch.device(device), ranks
        self.shares = config.shares or ranks.size  #: of a batch, over all processes
        self.method: str = config.method  #: auto until the first step has been measured
        self.total = config.epochs * steps_per_epoch(num_videos, config.batch_size, config.order != "none")
        self.network = network_from_config(config).to(self.device).train()
        prepare(self.network, config, resolved(config, self.device))
        self.bank = FeatureBank(
            num_videos,
            self.network.dim,
            momentum=config.bank_momentum,
            generator=generator_for(config.seed, "bank"),
        ).to(self.device)
        self.started_from: dict[str, str] = {}  #: kind, file and SHA-256 of what ``init_from`` named
        groups = parameter_groups(self.network, config)
        self.optimizer = sgd(groups, config, self.device)
        self.scale = LossScale(on=resolved(config, self.device).name == "fp16")

    def batches(self, clips: list[Clip], step: int, stage: str) -> list[Batch]:
        """One stage's clips of this process as the shares that are computed here."""
        own = self.shares // self.ranks.size
        first = self.ranks.rank * own
        parts = in_cut(self.config.batch_size, self.shares, first, own)
        return [
            dataclasses.replace(self.batch(clips[part], step, stage, share), weight=weight)
            for share, (part, weight) in enumerate(parts, first)
        ]

    def batch(self, clips: list[Clip], step: int, stage: str, share: int = 0) -> Batch:
        """Augment the clips of one share and draw what its loss needs."""
        config = self.config
        drawn_for = (stage, step, share) if share else (stage, step)
        view1, view2, index = clip_views(clips, config.size, config.view2, self.device)
        if config.shuffle_views:
            mixed = torch.randperm(len(clips), generator=generator_for(config.seed, "shuffle", *drawn_for))
            view2 = view2[mixed.to(self.device)]
        negatives = None
        if 0 < config.negatives < len(self.bank) - 1:
            draw = generator_for(config.seed, "negatives", *drawn_for)
            negatives = draw_negatives(index, len(self.bank), config.negatives, draw)
        seed = seed_for(config.seed, "dropout", *drawn_for)
        return Batch(view1, view2, index, self.bank.snapshot(), negatives, seed)

    def update(
        self,
        support: Batch | Sequence[Batch] | None,
        query: Batch | Sequence[Batch],
        lr: float,
        order: str = "",
    ) -> dict[str, float]:
        """One outer step: inner update on ``support``, meta update on ``query`` (Sec. 3.5).

        ``order`` is that of the meta-gradient, by default the config's.

        Raises ``FloatingPointError`` for a loss or gradient that is not finite; nothing has changed then.
        """
        params, scale = shared_parameters(self.network), self.scale.value
        first = [StageLoss(self.network, batch, self.config, None, scale) for batch in _listed(support)]
        before = first if first and self.config.norm_update == "both" else [None] * len(_listed(query))
        second = [
            StageLoss(self.network, batch, self.config, previous, scale)
            for batch, previous in zip(_listed(query), before, strict=True)
        ]
        meta = self._gradient(first, second, params, lr, order or self.config.order).divided(scale)
        left = self._left_behind(meta, second)
        check_finite(left["loss"], meta.gradients.values())

        for name, parameter in params.items():
            parameter.grad = laid_out_as(parameter, meta.gradients[name])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()  # \theta <- \theta - \alpha_2 (meta-gradient), with momentum and decay
        self.optimizer.zero_grad()
        self._commit(first, second, left)
        return {name: left[name].item() for name in _NUMBERS if name in left}

    def _gradient(
        self, support: list[StageLoss], query: list[StageLoss], params: Params, lr: float, order: str
    ) -> MetaGradient:
        config, reduce = self.config, self.ranks.reduce
        first, second = ([Share(loss, loss.batch.weight) for loss in stage] for stage in (support, query))
        if not first:
            return meta_gradient(None, second, params, 0.0, inner_steps=0, reduce=reduce)
        if self.method == "auto" and order == "exact":
            together = first if config.task == "batch" else first[:1]
            many = self.ranks.on_machine if self.device.type == "cpu" else 1
            self.method = choose_method(
                together, second, params, inner_steps=config.inner_steps, processes=many
            )
        scale, clip = self.scale.value, config.inner_clip
        meta = meta_gradient(
            first, second, params, (lr if config.inner_lr is None else config.inner_lr) / scale, order=order,
            method=self.method, reduce=reduce, task=config.task,
            inner_steps=config.inner_steps, inner_clip=None if clip is None else clip * scale,
        )  # fmt: skip
        if config.outer_support_weight:
            plain = meta_gradient(
                None, first, params, 0.0,
                order=config.order, method=self.method, inner_steps=0, reduce=reduce,
            ).gradients  # fmt: skip
            for name, gradient in meta.gradients.items():
                gradient.add_(plain[name], alpha=config.outer_support_weight)
        return meta

    def _left_behind(self, meta: MetaGradient, query: list[StageLoss]) -> dict[str, Tensor]:
        """The mean over all shares of what a step logs, and of BatchNorm's running statistics after it."""
        left = WeightedSum()
        for stage in query:
            assert stage.traces is not None
            parts = {"contrast": stage.traces.contrast, "classification": stage.traces.classification}
            left.add({**parts, **stage.traces.buffers}, stage.batch.weight)
        losses = {"loss": meta.query_loss}
        if meta.support_loss is not None:
            losses["support_loss"] = meta.support_loss
        return self.ranks.reduce({**losses, **left.total})

    @torch.no_grad()
    def _commit(self, support: list[StageLoss], query: list[StageLoss], left: dict[str, Tensor]) -> None:
        """Write what the stages left behind: running statistics, and bank rows in the order of stages.

        A stage's rows are those of all processes, in the order of its shares.
        """
        for name, buffer in self.network.named_buffers():
            buffer.copy_(left[name])
        for stage in (support if self.config.bank_update == "both" else [], query):
            traces = [loss.traces for loss in stage if loss.traces is not None]
            if traces:
                z = torch.cat([torch.cat([each.out.z1, each.out.z2], dim=1) for each in traces])
                index = torch.cat([loss.batch.index for loss in stage])
                total = self.config.batch_size
                index, z = self.ranks.gather(index, total), self.ranks.gather(z, total)
                self.bank.update(index, *z.chunk(2, dim=1))

    def step(self, support: list[Clip], query: list[Clip], number: int, lr: float) -> dict[str, float]:
        """Step ``number`` on this process's decoded clips; see :meth:`update`."""
        first = self.batches(support, number, "support") if support else None
        second = self.batches(query, number, "query")
        order = order_at(self.config, number, self.total)
        return self.scale.carried(lambda: self.update(first, second, lr, order))

    def watch(self, epoch: int) -> dict[str, float]:
        """Nearest-neighbour accuracy on the test list, every ``eval_every`` epochs."""
        if not self.config.eval_every or epoch % self.config.eval_every:
            return {}
        accuracy = nearest_neighbour_accuracy(self.network, self.config, self.device, self.ranks)
        return {} if accuracy is None else {"knn_top1": accuracy}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds; every random draw follows from config and step alone."""
        return {
            "config": dataclasses.asdict(self.config),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bank": self.bank.state_dict(),
            "scale": self.scale.state(),
            "started_from": self.started_from,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.bank.load_state_dict(state["bank"])
        self.scale.load(state.get("scale", {}))
        self.started_from = state.get("started_from", {})

    def start_from(self, where: str) -> None:
        """Take another run's network or a file's backbone (row 29); bank and optimiser stay new."""
        start = read_starting_point(where, self.config.backbone, "--init_from")
        print(start.load_into(self.network, self.config))
        self.started_from = start.record()


def pretrain(config: PretrainConfig) -> Path:
    """Train as ``config`` says, continuing where a run in the same folder stopped; gives the run folder.

    Raises :class:`~mcn.errors.MCNError` for what the user can mend: a wrong folder, too many
    unreadable videos, a loss that is not finite (the last good checkpoint is kept), a full disk.
    """
    check_together("pretrain", config)
    ranks = join_ranks(config.device, config.out)
    config = shares_for(config, ranks, "FCM compares videos")
    if config.task == "share" and config.order == "none":
        raise MCNError("--task share: with --order none there is no inner update, so there are no tasks")
    if config.first_order_until and config.order != "exact":
        raise MCNError(f"--first_order_until is for --order exact, which it begins late, not {config.order}")
    videos = videos_of(config, "train")
    stages = config.order != "none"
    checked_steps(len(videos), config.batch_size, stages)
    training = Pretraining(config, len(videos), choose_device(config.device), ranks)
    if config.init_from and not ranks.on_first(lambda: own_checkpoint(config.out)):
        training.start_from(config.init_from)
    run = RunFolder(config, "pretrain", ranks)  # when nothing is left to be refused
    if training.started_from:
        run.write_json("started_from.json", training.started_from)
    flow = config.view2 if config.view2.startswith("flow") else None
    train(training, run, videos, config, stages=stages, redraw=config.redraw, flow=flow)
    return run.path
