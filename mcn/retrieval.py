"""Video retrieval (paper, Sec. 4.4): is one of a test video's k nearest training videos of its class?

Cosine similarity of L2-normalised, clip-averaged features (protocol row 46). Every query counts: a
test video that cannot be read is a wrong answer, not a missing one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mcn.config import PretrainConfig, RetrieveConfig
from mcn.data.datasets import load_videos
from mcn.features import Features, extract_features, features_of, unit
from mcn.network import MetaContrastiveNetwork

#: Shown beside every number.
PROTOCOL = "clip-averaged pooled features, L2, cosine; test list asks, training list answers"


@dataclass(frozen=True)
class Retrieval:
    """Result of a retrieval: accuracies in per cent by k, and the neighbours themselves."""

    accuracy: dict[int, float]
    neighbours: Tensor  #: (queries, max k) int64 rows of the gallery, nearest first
    queries: int


def retrieve(queries: Features, gallery: Features, top: tuple[int, ...] = (1, 5, 10, 20, 50)) -> Retrieval:
    """Rank the gallery for each query.

    A ``k`` larger than the gallery takes all of it. Ties go to the video that comes first.

    >>> from mcn.data.datasets import Videos
    >>> from pathlib import Path
    >>> two = Videos(Path(), ("a", "b"), (0, 1), ("x", "y"))
    >>> retrieve(Features(torch.eye(2), two), Features(torch.eye(2), two), top=(1,)).accuracy
    {1: 100.0}
    """
    similarity = unit(queries.x.double()) @ unit(gallery.x.double()).T  # (queries, gallery)
    similarity = similarity.masked_fill(~gallery.readable, -2.0).nan_to_num(-2.0)
    order = similarity.argsort(dim=1, descending=True, stable=True)[:, : max(top)]
    hit = (gallery.labels[order] == queries.labels[:, None]) & queries.readable[:, None]
    accuracy = {k: 100.0 * hit[:, :k].any(dim=1).double().mean().item() for k in top}
    return Retrieval(accuracy, order, len(queries.x))


def run_retrieval(config: RetrieveConfig) -> Retrieval:
    """Extract both lists' features and rank them."""
    gallery = features_of(config, "train")
    return retrieve(features_of(config, "test"), gallery, config.top)


def nearest_neighbour_accuracy(
    network: MetaContrastiveNetwork, config: PretrainConfig, device: torch.device
) -> float | None:
    """Top-1 in per cent of the nearest training video's class, or ``None`` without labels.

    For watching a run: ``config.eval_clips`` clips a video.
    """
    found = []
    for subset in ("train", "test"):
        videos = load_videos(config.data, subset, config.split)
        if not len(videos) or not videos.labels:
            return None
        found.append(
            extract_features(
                network, videos,
                frames=config.frames, stride=config.stride, size=config.size, clips=config.eval_clips,
                reader=config.reader, timeout=config.read_timeout,
                workers=config.workers, max_bad=config.max_bad, device=device,
            )
        )  # fmt: skip
    return retrieve(found[1], found[0], top=(1,)).accuracy[1]
