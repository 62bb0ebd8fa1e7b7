"""The meta loss of a stage, support or query, as a pure function of the network's parameters (Sec. 3.4).

A :class:`Batch` is all that the loss sees, :class:`StageLoss` the loss, :class:`Traces` what evaluating it
leaves behind: features for the bank, running statistics, answers.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcn.config import PretrainConfig
from mcn.lean import Block, Params, checkpointed, run_lightly
from mcn.losses import classification_loss, meta_loss, multiview_loss
from mcn.network import MetaContrastiveNetwork, Outputs, blocks_with, call_with, running_statistics
from mcn.precision import resolved, widened


@dataclass(frozen=True)
class Batch:
    """A share of a stage's videos, as a loss sees them: nothing in it changes while it is differentiated."""

    view1: Tensor  #: (B, 3, T, H, W)
    view2: Tensor
    index: Tensor  #: (B,) rows in the bank
    rows: Tensor  #: (2, N, D) the bank's snapshot
    negatives: Tensor | None  #: (B, k) rows, or None for the whole bank
    seed: int  #: of dropout, so that a recomputation drops the same units
    weight: float = 1.0  #: its part of the stage's videos, of all processes


class Traces(NamedTuple):
    """What a stage leaves behind for the loop to commit."""

    out: Outputs  #: features for the bank, and the meta head's answers
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
            kept = Outputs(*(tensor.detach() for tensor in out))
            self.traces = Traces(kept, buffers, contrast.detach(), binary.detach())
        return meta_loss(binary, contrast, cls_weight=config.cls_weight)
