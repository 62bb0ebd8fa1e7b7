"""Self-supervised pre-training: one step of the paper's process (Sec. 3.5), and a run of them.

One path for all rows of the paper's Table 5: the contrastive baseline is ``cls_weight=0`` and
``order="none"``, contrast + binary loss is ``order="none"``, and MCN is all of it.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcn.bank import FeatureBank, draw_negatives
from mcn.composes import check_together
from mcn.config import PretrainConfig
from mcn.data.datasets import load_videos
from mcn.data.loader import Clip, clip_views
from mcn.errors import MCNError
from mcn.features import network_from_config
from mcn.lean import Block, checkpointed, run_lightly
from mcn.loop import checked_steps, train
from mcn.loss_scale import LossScale
from mcn.losses import classification_loss, meta_loss, multiview_loss
from mcn.meta import MetaGradient, Params, meta_gradient
from mcn.network import (
    MetaContrastiveNetwork,
    Outputs,
    blocks_with,
    call_with,
    running_statistics,
    shared_parameters,
)
from mcn.optim import check_finite, laid_out_as, parameter_groups, sgd
from mcn.precision import prepare, resolved, widened
from mcn.retrieval import nearest_neighbour_accuracy
from mcn.run import RunFolder, generator_for, seed_for
from mcn.starting_points import read_starting_point


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
    from where ``previous``, the stage before, left them. The loss is multiplied by ``scale``.
    """

    def __init__(
        self,
        network: MetaContrastiveNetwork,
        batch: Batch,
        config: PretrainConfig,
        previous: "StageLoss | None" = None,
        scale: float = 1.0,
    ) -> None:
        self.network, self.batch, self.config, self.previous = network, batch, config, previous
        self.precision, self.scale = resolved(config, batch.view1.device), scale
        self.traces: Traces | None = None

    def __call__(self, params: Params) -> Tensor:
        """The meta loss at ``params``, a scalar."""
        if self.config.checkpointing:
            return run_lightly(self.blocks(), params)
        buffers = self._statistics()
        torch.manual_seed(self.batch.seed)
        with self.precision.autocast():
            out = call_with(self.network, params, buffers, self.batch.view1, self.batch.view2)
            return self._loss(out, buffers)

    def blocks(self) -> list[Block]:
        """The same as a chain of blocks, evaluated when they are."""
        batch, buffers = self.batch, self._statistics()
        first, *rest = blocks_with(
            self.network, buffers, batch.view1, batch.view2, lambda out: self._loss(out, buffers)
        )

        def seeded(*args: Any) -> Tensor:
            torch.manual_seed(batch.seed)
            return first.function(*args)

        chain = [dataclasses.replace(first, function=seeded), *rest]
        if self.config.checkpointing:
            chain = checkpointed(chain)
        return [dataclasses.replace(each, function=self.precision.around(each.function)) for each in chain]

    def _statistics(self) -> dict[str, Tensor]:
        """BatchNorm's running statistics before this stage, to be written to."""
        before = self.previous.traces if self.previous else None
        if before is None:
            return running_statistics(self.network)
        return {name: buffer.clone() for name, buffer in before.buffers.items()}

    def _loss(self, out: Outputs, buffers: dict[str, Tensor]) -> Tensor:
        """Eq. 5 of the network's outputs; the first time, what they leave behind is kept."""
        with self.precision.full():
            return self.scale * self._loss_in_full(Outputs(*map(widened, out)), buffers)

    def _loss_in_full(self, out: Outputs, buffers: dict[str, Tensor]) -> Tensor:
        config, batch = self.config, self.batch
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

    def update(self, support: Batch | None, query: Batch, lr: float) -> dict[str, float]:
        """One outer step: inner update on ``support``, meta update on ``query`` (Sec. 3.5).

        Raises ``FloatingPointError`` for a loss or gradient that is not finite; nothing has changed then.
        """
        params, scale = shared_parameters(self.network), self.scale.value
        support_loss = None if support is None else StageLoss(self.network, support, self.config, None, scale)
        previous = support_loss if self.config.norm_update == "both" else None
        query_loss = StageLoss(self.network, query, self.config, previous, scale)

        meta = self._gradient(support_loss, query_loss, params, lr).divided(scale)
        check_finite(meta.query_loss, meta.gradients.values())

        for name, parameter in params.items():
            parameter.grad = laid_out_as(parameter, meta.gradients[name])
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
        inner_lr = (lr if config.inner_lr is None else config.inner_lr) / support.scale
        meta = meta_gradient(
            support, query, params, inner_lr,
            order=config.order, method=config.method, inner_steps=config.inner_steps,
        )  # fmt: skip
        if config.outer_support_weight:
            plain = meta_gradient(
                None, support, params, 0.0, order=config.order, method=config.method, inner_steps=0
            ).gradients
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

    def step(self, support: list[Clip], query: list[Clip], number: int, lr: float) -> dict[str, float]:
        """Step ``number`` on decoded clips; see :meth:`update`."""
        first = self.batch(support, number, "support") if support else None
        second = self.batch(query, number, "query")
        return self.scale.carried(lambda: self.update(first, second, lr))

    def watch(self, epoch: int) -> dict[str, float]:
        """Nearest-neighbour accuracy on the test list, every ``eval_every`` epochs."""
        if not self.config.eval_every or epoch % self.config.eval_every:
            return {}
        accuracy = nearest_neighbour_accuracy(self.network, self.config, self.device)
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
    if config.batch_size < 2:
        raise MCNError(f"--batch_size {config.batch_size}: FCM compares videos, so a batch needs at least 2")
    videos = load_videos(config.data, "train", config.split)
    stages = config.order != "none"
    checked_steps(len(videos), config.batch_size, stages)  # before a folder is made
    run = RunFolder(config, "pretrain")
    training = Pretraining(config, len(videos), run.device)
    if config.init_from and run.resumed is None:
        training.start_from(config.init_from)
        run.write_json("started_from.json", training.started_from)
    flow = config.view2 if config.view2.startswith("flow") else None
    train(training, run, videos, config, stages=stages, redraw=config.redraw, flow=flow)
    return run.path
