"""Video retrieval (paper, Sec. 4.4): is one of a test video's k nearest training videos of its class?

Cosine similarity of L2-normalised, clip-averaged features (protocol rows 45 to 47). Every query counts: a
test video that cannot be read is a wrong answer, not a missing one, and no last batch is dropped.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mcn.clip_features import made_of
from mcn.config import EvalConfig, PretrainConfig, RetrieveConfig
from mcn.data.datasets import Videos
from mcn.distributed import Ranks, join_ranks
from mcn.features import Features, extract_features, features_of_lists
from mcn.holdout import videos_of
from mcn.nearest import nearest
from mcn.network import MetaContrastiveNetwork


@dataclass(frozen=True)
class Retrieval:
    """Result of a retrieval: accuracies in per cent by k, and the neighbours themselves.

    ``neighbours`` ``(queries, max k)`` int64 are rows of the gallery, nearest first; fewer columns where
    the gallery has fewer readable videos, -1 in the row of a query that cannot be read. ``right``
    ``(queries,)`` bool: whether the nearest has the query's class. ``chance``: what :func:`random_picks`
    would have of these queries, by k; ``gallery``: the videos to pick from.
    """

    accuracy: dict[int, float]
    neighbours: Tensor
    queries: int
    right: Tensor
    chance: dict[int, float] = field(default_factory=dict)
    gallery: int = 0


def retrieve(queries: Features, gallery: Features, top: tuple[int, ...] = (1, 5, 10, 20, 50)) -> Retrieval:
    """Rank the gallery for each query.

    A ``k`` larger than the gallery takes all of it. Ties go to the video that comes first. Classes are
    compared by name; a query whose class is not in the gallery is wrong. Raises
    :class:`~mcn.errors.MCNError` where nothing in the gallery can be read.

    >>> from mcn.data.datasets import Videos
    >>> from pathlib import Path
    >>> two = Videos(Path(), ("a", "b"), (0, 1), ("x", "y"))
    >>> retrieve(Features(torch.eye(2), two), Features(torch.eye(2), two), top=(1,)).accuracy
    {1: 100.0}
    """
    order = torch.from_numpy(nearest(queries.x.numpy(), gallery.x.numpy(), max(top)))
    names = {name: number for number, name in enumerate(gallery.videos.classes)}
    asked = torch.tensor([names.get(name, -1) for name in queries.videos.classes])[queries.labels]
    hit = (gallery.labels[order] == asked[:, None]) & queries.readable[:, None]
    accuracy = {k: 100.0 * hit[:, :k].any(dim=1).double().mean().item() for k in top}
    known = gallery.labels[gallery.readable]
    size, of_class = len(known), Counter(known.tolist())
    alike = Counter(of_class[label] for label in asked.tolist())  # videos of its class -> queries
    chance = {k: sum(n * random_picks(k, size, m) for m, n in alike.items()) / len(asked) for k in top}
    return Retrieval(accuracy, order, len(queries.x), hit[:, 0], chance, size)


def random_picks(k: int, gallery: int, of_class: int) -> float:
    r"""How often, in per cent, a video of the query's class is among ``k`` random ones of a gallery.

    .. math:: 100 \Bigl(1 - \binom{M - m}{k} \Bigm/ \binom{M}{k}\Bigr)

    for ``M`` videos of which ``m`` are of the class (:eq:`eq-chance`). All are picked where ``k`` is
    larger than ``M``.

    >>> random_picks(1, 8, 2), round(random_picks(2, 4, 2), 1), random_picks(9, 8, 2)
    (25.0, 83.3, 100.0)
    """
    k = min(k, gallery)
    return 100 * (1 - math.comb(gallery - of_class, k) / math.comb(gallery, k))


def protocol(config: EvalConfig) -> str:
    """What a number of retrieval means, for the line beside it.

    >>> print(protocol(RetrieveConfig()).replace("; ", ";\\n"))
    pooled features, mean of 10 clips of 32 frames, stride 1, 128 pixels, centre crop, rgb, cosine;
    split 1: the training list answers the test list
    """
    return f"{made_of(config)}, cosine; split {config.split}: the training list answers the test list"


def run_retrieval(config: RetrieveConfig, lists: tuple[Videos, Videos] | None = None) -> Retrieval:
    """Extract both lists' features and rank them; see :func:`mcn.features.features_of_lists`."""
    ranks = join_ranks(config.device)
    train, test = features_of_lists(config, lists, ranks)
    return ranks.on_first(lambda: retrieve(test, train, config.ks))


def nearest_neighbour_accuracy(
    network: MetaContrastiveNetwork,
    config: PretrainConfig,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> float | None:
    """Top-1 in per cent of the nearest training video's class, or ``None`` without labels.

    For watching a run: ``config.eval_clips`` clips a video. Of several ``ranks`` each makes its part of the
    features, and all give the same.
    """
    found = []
    for subset in ("train", "test"):
        videos = videos_of(config, subset)
        if not len(videos) or not videos.labels:
            return None
        found.append(
            extract_features(
                network, videos,
                frames=config.frames, stride=config.stride, size=config.size, clips=config.eval_clips,
                reader=config.reader, timeout=config.read_timeout,
                workers=config.workers, max_bad=config.max_bad, device=device, ranks=ranks,
            )
        )  # fmt: skip
    return ranks.on_first(lambda: retrieve(found[1], found[0], top=(1,)).accuracy[1])
