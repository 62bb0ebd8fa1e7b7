"""The network of the paper's Fig. 2: backbone f, fully connected layer, FCM and meta head.

One module, three methods in the order data passes them: :meth:`~MetaContrastiveNetwork.features`
(backbone), :meth:`~MetaContrastiveNetwork.embed` (its fc), :meth:`~MetaContrastiveNetwork.match`
(FCM and the meta branch's own layers); ``forward`` runs all three on both views.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcn.backbones import build_backbone
from mcn.lean import Block, checkpointed, run_lightly
from mcn.pairing import Pairs, combine_features

PROJECTIONS = ("linear", "mlp", "none")
HEADS = ("mlp", "linear")
FCM_INPUTS = ("embedding", "normalised", "pooled")
SHARING = ("shared", "separate")
STATISTICS = ("per_view", "mixed")


class Outputs(NamedTuple):
    """What the network says of ``B`` videos: features for Eq. 2, answers and labels for Eq. 4."""

    z1: Tensor  #: ``(B, dim)`` embedding of view 1
    z2: Tensor  #: ``(B, dim)`` embedding of view 2
    logits: Tensor  #: ``(N,)`` the meta head's answers to FCM's pairs
    labels: Tensor  #: ``(N,)`` 1 where a pair is two views of one video
    group: Tensor  #: ``(N,)`` int64 group of each pair


class MetaContrastiveNetwork(nn.Module):
    """Backbone, projection fc and meta head over two views of a clip.

    ``backbone`` and ``width`` go to :func:`mcn.backbones.build_backbone`. ``dim`` is the width of
    the embedding. ``sharing="shared"`` (protocol row 1): one set of weights for both views, each
    view with a forward pass of its own; ``statistics="per_view"`` keeps BatchNorm's running
    statistics apart for the two views, so that an evaluation on RGB sees RGB's. ``head="mlp"``:
    one hidden layer; ``"linear"`` is the paper's literal single fc, which on concatenated features
    cannot tell whether they match (row 33). ``fcm_input``: what FCM pairs up: the fc's output
    (``"embedding"``), the same at unit length, or the ``"pooled"`` backbone feature (row 32).
    Raises ``ValueError`` for a setting that does not exist.

    >>> network = MetaContrastiveNetwork("r3d_small", width=4, dim=16)
    >>> out = network(torch.rand(4, 3, 8, 32, 32), torch.rand(4, 3, 8, 32, 32))
    >>> out.z1.shape, out.logits.shape
    (torch.Size([4, 16]), torch.Size([16]))
    """

    def __init__(
        self,
        backbone: str = "r3d_18",
        *,
        width: int | None = None,
        dim: int = 128,
        projection: str = "linear",
        head: str = "mlp",
        fcm_input: str = "embedding",
        fcm_group: int = 4,
        fcm_pairing: str = "cross",
        sharing: str = "shared",
        statistics: str = "per_view",
    ) -> None:
        super().__init__()
        _one_of("projection", projection, PROJECTIONS)
        _one_of("head", head, HEADS)
        _one_of("fcm_input", fcm_input, FCM_INPUTS)
        _one_of("sharing", sharing, SHARING)
        _one_of("statistics", statistics, STATISTICS)
        first = build_backbone(backbone, width)
        self.backbones = nn.ModuleList([first])
        if sharing == "separate":
            self.backbones.append(build_backbone(backbone, width))
        elif statistics == "per_view":
            self.backbones.append(_same_weights_own_statistics(first))
        pooled = int(first.out_features)  # type: ignore[arg-type]
        self.fc, out = _projection(projection, pooled, dim)
        paired = pooled if fcm_input == "pooled" else out
        self.meta_head = _head(head, paired)
        self.dim = out
        self.fcm_input, self.fcm_group, self.fcm_pairing = fcm_input, fcm_group, fcm_pairing

    def features(self, clip: Tensor, view: int = 0) -> Tensor:
        """Pooled backbone feature: ``(B, 3, T, H, W)`` -> ``(B, F)``; view 0 is RGB."""
        return self.backbone(view)(clip)

    def backbone(self, view: int = 0) -> nn.Module:
        """The backbone a view goes through.

        Both views go through one module where everything is shared (mixed statistics). It is
        listed once: ``functional_call`` cannot restore a module that is listed twice.
        """
        return self.backbones[view if len(self.backbones) > 1 else 0]

    def embed(self, features: Tensor) -> Tensor:
        """Projection fc, the feature that the contrast compares: ``(B, F)`` -> ``(B, dim)``."""
        return self.fc(features)

    def match(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Pairs]:
        """FCM and the meta head: features of both views -> a logit a pair, and the pairs."""
        if self.fcm_input == "normalised":
            x1, x2 = F.normalize(x1, dim=-1), F.normalize(x2, dim=-1)
        pairs = combine_features(x1, x2, group_size=self.fcm_group, pairing=self.fcm_pairing)
        return self.meta_head(pairs.features).squeeze(-1), pairs

    def forward(self, clip1: Tensor, clip2: Tensor) -> Outputs:
        """Both views of ``B`` clips, each ``(B, 3, T, H, W)`` and normalised, through Fig. 2."""
        return self.compare(self.features(clip1, 0), self.features(clip2, 1))  # one forward per view

    def compare(self, h1: Tensor, h2: Tensor) -> Outputs:
        """What follows the backbone: pooled features of both views, each ``(B, F)``, to the outputs."""
        z1, z2 = self.embed(h1), self.embed(h2)
        logits, pairs = self.match(h1, h2) if self.fcm_input == "pooled" else self.match(z1, z2)
        return Outputs(z1, z2, logits, pairs.labels, pairs.group)

    def backbone_state(self, view: int = 0) -> dict[str, Tensor]:
        """One view's backbone with torchvision's own key names, ready to export.

        >>> network = MetaContrastiveNetwork("r3d_small", width=4)
        >>> sorted(network.backbone_state())[0]
        'layer1.0.conv1.0.weight'
        """
        return {name: tensor.detach().clone() for name, tensor in self.backbone(view).state_dict().items()}


def _same_weights_own_statistics(backbone: nn.Module) -> nn.Module:
    """A twin whose parameters *are* the original's, with buffers of its own."""
    memo = {id(parameter): parameter for parameter in backbone.parameters()}
    return copy.deepcopy(backbone, memo)


def _projection(kind: str, pooled: int, dim: int) -> tuple[nn.Module, int]:
    if kind == "none":
        return nn.Identity(), pooled
    if kind == "linear":
        return nn.Linear(pooled, dim), dim
    return nn.Sequential(nn.Linear(pooled, pooled), nn.ReLU(), nn.Linear(pooled, dim)), dim


def _head(kind: str, width: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(2 * width, 1)
    return nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}: got {value!r}")


def shared_parameters(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter once, by name (the twin backbones share theirs), as a meta step takes them."""
    return dict(network.named_parameters())


def running_statistics(network: nn.Module) -> dict[str, Tensor]:
    """A copy of every buffer by name: what a loss may write to without touching the network."""
    return {name: buffer.detach().clone() for name, buffer in network.named_buffers()}


def call_with(
    network: nn.Module, params: dict[str, Tensor], buffers: dict[str, Tensor], *args: Tensor
) -> Outputs:
    """Run the network at other parameters; running statistics are written into ``buffers``.

    ``functional_call`` with parameters alone would let BatchNorm write to the network's own
    statistics (protocol row 36).
    """
    return torch.func.functional_call(network, {**params, **buffers}, args)


def blocks_with(
    network: MetaContrastiveNetwork,
    buffers: dict[str, Tensor],
    clip1: Tensor,
    clip2: Tensor,
    loss: Callable[[Outputs], Tensor],
) -> list[Block]:
    """``loss`` of :func:`call_with`'s outputs as a chain of blocks, for :mod:`mcn.lean`.

    Both views' backbones, block by block, then one block with all that looks across views or videos:
    fc, FCM, meta head and the loss. Running statistics are written into ``buffers`` the first time a
    block is computed, and never again.
    """
    blocks: list[Block] = []
    ends = []
    for view, clip in enumerate((clip1, clip2)):
        blocks += _backbone_blocks(network, network.backbone(view), buffers, clip, len(blocks))
        ends.append(len(blocks) - 1)

    rest = _Rest(network, loss)
    names = tuple(name for name in shared_parameters(network) if not name.startswith("backbones."))

    def last(p: dict[str, Tensor], *maps: Tensor) -> Tensor:
        return torch.func.functional_call(rest, {f"network.{name}": p[name] for name in p}, maps)

    return [*blocks, Block(last, names, tuple(ends))]


def checkpointed_features(backbone: nn.Module, clip: Tensor) -> Tensor:
    """``backbone(clip)``, whose blocks are computed again on the way back: less is kept in between.

    Running statistics count the first computation only.

    >>> backbone, clip = build_backbone("r3d_small", 4), torch.rand(2, 3, 4, 16, 16)
    >>> torch.equal(checkpointed_features(backbone, clip), backbone(clip))
    True
    """
    buffers = dict(backbone.named_buffers())
    blocks = _backbone_blocks(backbone, backbone, buffers, clip)
    pool = Block(lambda p, maps: backbone.pool(maps), inputs=(len(blocks) - 1,))  # type: ignore[operator]
    return run_lightly(checkpointed([*blocks, pool]), shared_parameters(backbone))


def _backbone_blocks(
    network: nn.Module, backbone: nn.Module, buffers: dict[str, Tensor], clip: Tensor, first: int = 0
) -> list[Block]:
    """A backbone of the network as blocks, by the network's names, numbered from ``first``."""
    blocks = []
    modules = backbone.blocks()  # type: ignore[operator]
    for number, module in enumerate(modules):
        function, names = _function_of(network, module, buffers)
        light = number in backbone.light_blocks  # type: ignore[operator]
        small = number >= len(modules) - int(backbone.small_blocks)  # type: ignore[arg-type]
        before = {"inputs": (first + number - 1,)} if number else {"constants": (clip,)}
        blocks.append(Block(function, names, by_duals=True, light=light, small=small, **before))
    return blocks


class _Rest(nn.Module):
    """All that follows the last maps of both views, as a module, which ``functional_call`` asks for."""

    def __init__(self, network: MetaContrastiveNetwork, loss: Callable[[Outputs], Tensor]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, maps1: Tensor, maps2: Tensor) -> Tensor:
        h1, h2 = (self.network.backbone(view).pool(m) for view, m in enumerate((maps1, maps2)))  # type: ignore[operator]
        return self.loss(self.network.compare(h1, h2))


def _function_of(
    network: nn.Module, module: nn.Module, buffers: dict[str, Tensor]
) -> tuple[Callable[..., Tensor], tuple[str, ...]]:
    """A part of the network as a function of its parameters, by the names the network knows them by."""
    known = {id(t): name for name, t in (*network.named_parameters(), *network.named_buffers())}
    params = {name: known[id(p)] for name, p in module.named_parameters()}
    statistics = {name: known[id(b)] for name, b in module.named_buffers()}
    again = False

    def function(p: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        nonlocal again
        written = {name: buffers[key].clone() if again else buffers[key] for name, key in statistics.items()}
        again = True
        own = {name: p[key] for name, key in params.items()}
        return torch.func.functional_call(module, {**own, **written}, inputs)

    return function, tuple(params.values())
