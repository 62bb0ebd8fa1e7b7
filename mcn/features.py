"""Clips -> one frozen feature a video: the common ground of probe, retrieval and nearest neighbours.

Evenly spaced clips, centre crop, backbone in eval mode, mean of the pooled features (rows 41, 46).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcn.checkpoint import load_checkpoint
from mcn.config import EvalConfig, FinetuneConfig, PretrainConfig, build
from mcn.data.augment import center_crop_batch
from mcn.data.datasets import Videos, load_videos
from mcn.data.loader import TestClips, readable_videos
from mcn.data.supervise import TIMEOUT
from mcn.errors import MCNError
from mcn.files import write_atomically
from mcn.network import MetaContrastiveNetwork
from mcn.run import choose_device, seed_everything, seed_for
from mcn.views import make_views

#: Which of the two backbones (shared weights, own statistics) a view goes through.
VIEWS = {"rgb": 0, "residual": 1, "signed_residual": 1}


@dataclass(frozen=True)
class Features:
    """Features ``x`` ``(V, F)`` float32 of ``V`` videos; a row of NaN is a video that cannot be read."""

    x: Tensor
    videos: Videos

    @property
    def labels(self) -> Tensor:
        """Class of each video, ``(V,)`` int64.

        Raises :class:`~mcn.errors.MCNError` for an unlabelled folder.
        """
        if not self.videos.labels:
            raise MCNError(f"{self.videos.folder} has no labels: put the videos into one folder a class")
        return torch.tensor(self.videos.labels)

    @property
    def readable(self) -> Tensor:
        """Which videos have a feature, ``(V,)`` bool."""
        return self.x.isfinite().all(dim=1)


def network_from_config(config: PretrainConfig) -> MetaContrastiveNetwork:
    """The network that a pre-training config describes, randomly initialised from its seed.

    Raises :class:`~mcn.errors.MCNError` for a width that the backbone cannot have.
    """
    seed_everything(seed_for(config.seed, "weights"))
    try:
        return MetaContrastiveNetwork(
            config.backbone,
            width=config.width,
            dim=config.dim,
            projection=config.projection,
            head=config.head,
            fcm_input=config.fcm_input,
            fcm_group=config.fcm_group,
            fcm_pairing=config.fcm_pairing,
            sharing=config.sharing,
            statistics=config.statistics,
        )
    except ValueError as error:
        raise MCNError(f"--backbone {config.backbone} --width {config.width}: {error}") from error


def load_network(
    config: EvalConfig | FinetuneConfig, device: torch.device
) -> tuple[MetaContrastiveNetwork, PretrainConfig]:
    """The network of a checkpoint, or an untrained one of the config's backbone, on ``device``.

    Also gives the pre-training config that describes it. Raises :class:`~mcn.errors.MCNError` for a
    checkpoint that is missing, unreadable or not of pre-training, or that has never seen the view asked for.
    """
    if not config.checkpoint:
        untrained = PretrainConfig(backbone=config.backbone, width=config.width, seed=config.seed)
        return network_from_config(untrained).to(device), untrained
    state = load_checkpoint(config.checkpoint, device)
    if "bank" not in state:
        raise MCNError(
            f"{config.checkpoint} is not a pre-training checkpoint: give one that `mcn pretrain` wrote"
        )
    trained = build(PretrainConfig, state["config"])
    if config.view != "rgb" and config.view != trained.view2:
        raise MCNError(f"{config.checkpoint} was trained on rgb and {trained.view2}: use --view rgb")
    network = network_from_config(trained)
    network.load_state_dict(state["network"])
    return network.to(device), trained


@torch.no_grad()
def extract_features(
    network: MetaContrastiveNetwork,
    videos: Videos,
    *,
    frames: int,
    stride: int = 1,
    size: int = 128,
    clips: int = 10,
    view: str = "rgb",
    batch_size: int = 32,
    reader: str = "auto",
    timeout: float = TIMEOUT,
    workers: int = 0,
    max_bad: float = 0.05,
    device: torch.device | str = "cpu",
    progress: str = "",
) -> Features:
    """One feature a video: pooled backbone features of ``clips`` clips, averaged.

    The network is put into eval mode for this and back afterwards. Unreadable videos are named,
    counted against ``max_bad`` and leave a row of NaN. ``progress`` names a bar; empty shows none.
    """
    was_training = network.training
    network.eval()
    dataset = TestClips(videos, frames=frames, stride=stride, clips=clips, reader=reader, timeout=timeout)
    rows: list[Tensor | None] = [None] * len(videos)
    for index, raw in readable_videos(dataset, workers, max_bad, progress):
        rows[index] = torch.cat(list(_pooled(network, raw, size, view, batch_size, device))).mean(0).cpu()
    network.train(was_training)
    if all(row is None for row in rows):
        raise MCNError(f"none of the {len(videos)} videos of {videos.folder} can be read")
    width = next(len(row) for row in rows if row is not None)
    x = torch.stack([torch.full((width,), float("nan")) if row is None else row for row in rows])
    return Features(x, videos)


def _pooled(
    network: nn.Module, raw: Tensor, size: int, view: str, batch_size: int, device: torch.device | str
) -> Iterator[Tensor]:
    """Pooled features of one video's clips ``(clips, T + 1, H, W, 3)``, ``batch_size`` at a time."""
    for some in raw.split(batch_size):
        clip = center_crop_batch(some, size, device=device)
        x = one_view(clip, view)
        yield network.features(x, VIEWS[view])  # type: ignore[operator]


def one_view(clip: Tensor, view: str) -> Tensor:
    """The view that an evaluation shows the network: ``(B, 3, T + 1, H, W)`` -> ``(B, 3, T, H, W)``."""
    return make_views(clip, "residual" if view == "rgb" else view)[VIEWS[view]]


def features_of(config: EvalConfig, subset: str, network: MetaContrastiveNetwork | None = None) -> Features:
    """Features of one subset as a config describes them."""
    device = choose_device(config.device)
    network = load_network(config, device)[0] if network is None else network
    videos = load_videos(config.data, subset, config.split)
    if not len(videos):
        raise MCNError(
            f"{config.data} has no {subset} list: an evaluation needs the split lists of its data set "
            f"(recognised: {videos.layout})"
        )
    print(f"{subset}: {len(videos)} videos: {videos.layout}")
    return extract_features(
        network, videos,
        frames=config.frames, stride=config.stride, size=config.size, clips=config.clips, view=config.view,
        batch_size=config.batch_size, reader=config.reader, timeout=config.read_timeout,
        workers=config.workers, max_bad=config.max_bad,
        device=device, progress=f"features {subset}",
    )  # fmt: skip


def save_features(features: Features, path: Path) -> None:
    """Write ``names``, ``features`` and, where known, ``labels`` and ``classes`` as ``.npz``."""
    content: dict[str, Any] = {"names": np.array(features.videos.names), "features": features.x.numpy()}
    if features.videos.labels:
        content |= {"labels": np.array(features.videos.labels), "classes": np.array(features.videos.classes)}
    write_atomically(path, lambda file: np.savez(file, **content))


def unit(x: Tensor) -> Tensor:
    """Rows divided by their length, so that dot products are cosines."""
    return F.normalize(x, dim=1)
