"""Clips -> one frozen feature a video: the common ground of probe, retrieval and nearest neighbours.

Evenly spaced clips, centre crop or ten crops, backbone in eval mode, mean of the pooled features or of
conv5's (rows 41, 46); one view, or two joined (row 45). What is made is kept on disk, so that probe,
retrieval and pictures of one network share it, and a killed extraction goes on.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcn.clip_features import VIEWS, evaluation_clips, video_feature
from mcn.composes import check_together
from mcn.config import EvalConfig
from mcn.data.datasets import Videos
from mcn.data.loader import readable_videos
from mcn.data.supervise import TIMEOUT
from mcn.distributed import Ranks, join_ranks
from mcn.errors import MCNError
from mcn.feature_cache import FeatureCache, cache_key, video_keys, weights_hash
from mcn.files import write_atomically
from mcn.holdout import labelled_lists, list_of
from mcn.loading import load_networks, single_views
from mcn.network import MetaContrastiveNetwork
from mcn.precision import Precision, resolved
from mcn.run import choose_device

#: Name of the folder of kept features in a run folder.
CACHE = "features"
#: What a feature depends on beside weights and video.
FEATURE_SETTINGS = ("frames", "stride", "size", "clips", "view", "crops", "feature", "reader")
_IN_MEMORY = 1 << 30  # bytes of features that are held in memory


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
        self.videos.check_labels()
        return torch.tensor(self.videos.labels)

    @property
    def readable(self) -> Tensor:
        """Which videos have a feature, ``(V,)`` bool."""
        return torch.cat([some.isfinite().all(dim=1) for some in self.x.split(4096)])


def extract_features(
    network: MetaContrastiveNetwork,
    videos: Videos,
    *,
    frames: int,
    stride: int = 1,
    size: int = 128,
    clips: int = 10,
    view: str = "rgb",
    crops: str = "centre",
    feature: str = "pooled",
    batch_size: int = 32,
    reader: str = "auto",
    timeout: float = TIMEOUT,
    workers: int = 0,
    max_bad: float = 0.05,
    device: torch.device | str = "cpu",
    progress: str = "",
    cache: Path | None = None,
    share: tuple[int, int] = (0, 1),
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    precision: Precision | None = None,
) -> Features:
    """One feature a video: backbone features of ``clips`` clips, averaged (:eq:`eq-video-feature`).

    The network is put into eval mode for this and back afterwards. Unreadable videos are named,
    counted against ``max_bad`` and leave a row of NaN. ``progress`` names a bar; empty shows none.

    ``cache`` is a folder where features are kept as they are made (see :mod:`mcn.feature_cache`): what is
    in it is not made again. ``share`` ``(rank, world)`` makes only every ``world``-th video's, from
    ``rank`` on; the rest are NaN unless another process has put them there already. Of the ``ranks`` of one
    run each makes its part of what is not kept yet, and the first gets all (the others what they made).
    Features of more than a gibibyte lie in a temporary file, memory-mapped. Raises
    :class:`~mcn.errors.MCNError` where none of the videos can be read, and for a share that cannot be.
    """
    rank, world = share
    if not 0 <= rank < world <= len(videos):
        raise MCNError(
            f"--rank {rank} --world {world}: a rank is from 0 to world - 1, of at most {len(videos)} videos"
        )
    sizes = {"frames": frames, "stride": stride, "clips": clips, "reader": reader}
    settings = {**sizes, "size": size, "view": view, "crops": crops, "feature": feature}
    settings |= (precision or Precision()).setting()
    if world > 1 and ranks.size > 1:
        raise MCNError(f"--rank {rank} --world {world}: torchrun has said it already, leave both out")
    if world > 1 and cache is None:
        raise MCNError(f"--world {world}: shares meet in a folder of kept features, give --cache one")
    store: FeatureCache | None = None
    keys: list[bytes | None] = [None] * len(videos)
    if cache is not None:
        store = FeatureCache(cache, cache_key(weights_hash(network.backbone(VIEWS[view])), settings))
        keys = video_keys(videos, view)
    rows = _Rows(len(videos), cache)
    wanted = [index for index in rows.take(store, keys) if index % world == rank]
    made = ranks.part(ranks.on_first(lambda: wanted))  # the first has seen most: nobody wrote before it

    if not made:  # nothing to start workers and a bar for
        workers, progress = 0, ""
    dataset = evaluation_clips(videos, view, **sizes, timeout=timeout)
    was_training = network.training
    network.eval()
    try:
        for index, raw in readable_videos(dataset, workers, max_bad, progress, made, ranks):
            row = video_feature(
                network, raw, size=size, view=view, crops=crops, feature=feature,
                batch_size=batch_size, device=device, precision=precision,
            ).cpu().numpy()  # fmt: skip
            rows.put(index, row)
            if store is not None and (key := keys[index]) is not None:
                store.add(key, row)
    finally:
        network.train(was_training)
        if store is not None:
            store.close()
    rows.gather(made, ranks)
    if not ranks.on_first(rows.filled.any):
        raise MCNError(f"none of the {len(videos)} videos of {videos.folder} can be read")
    return Features(rows.finish(), videos)


def features_of(
    config: EvalConfig,
    subset: str,
    networks: Sequence[MetaContrastiveNetwork] = (),
    share: tuple[int, int] = (0, 1),
    videos: Videos | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> Features:
    """Features of one subset as a config describes them; joined views as :func:`join` joins them.

    ``networks``, one a view, and ``videos`` are used where they are at hand already (see
    :func:`load_networks`), :func:`extract_features` says what ``share`` and ``ranks`` are.
    """
    check_together("features", config)
    device = choose_device(config.device)
    videos = videos or list_of(config, subset)
    networks = networks or load_networks(config)
    print(f"{subset}: {videos.announced(config.size)}")
    return join([
        extract_features(
            network, videos,
            **clip_settings(one), workers=one.workers, max_bad=one.max_bad, device=device,
            progress=_bar(subset, one, config) if ranks.first else "",
            cache=cache_folder(one), share=share, ranks=ranks,
            precision=resolved(one, device, training=False),
        )
        for network, one in zip(networks, single_views(config), strict=True)
    ])  # fmt: skip


def _bar(subset: str, one: EvalConfig, config: EvalConfig) -> str:
    return f"features {subset}" if one.view == config.view else f"features {subset}, {one.view}"


def features_of_lists(
    config: EvalConfig,
    lists: tuple[Videos, Videos] | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> tuple[Features, Features]:
    """Features of the training and of the test list, by networks that are loaded once.

    ``lists`` are :func:`mcn.holdout.labelled_lists`, where they are at hand already. Raises
    :class:`~mcn.errors.MCNError` where one is missing or has no labels, before a feature is computed.
    """
    train, test = lists or labelled_lists(config)
    networks = load_networks(config)
    return (
        features_of(config, "train", networks, videos=train, ranks=ranks),
        features_of(config, "test", networks, videos=test, ranks=ranks),
    )


def clip_settings(config: EvalConfig) -> dict[str, Any]:
    """What :func:`extract_features` is told of a config of one view: which clips, and how they are read."""
    names = (*FEATURE_SETTINGS, "batch_size")
    return {name: getattr(config, name) for name in names} | {"timeout": config.read_timeout}


def cache_folder(config: EvalConfig) -> Path | None:
    """Where a config's features are kept: ``cache``, or the run folder of the checkpoint, or nowhere."""
    if config.cache:
        return None if config.cache == "none" else Path(config.cache)
    path = Path(config.checkpoint)
    if not config.checkpoint or not path.exists():
        return None
    run = path.parent if path.is_file() else path
    folder = (run.parent if run.name == "checkpoints" else run) / CACHE
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        print(f"features are not kept: {folder} cannot be written to (--cache takes another folder)")
        return None
    return folder


def join(parts: list[Features]) -> Features:
    """Features of several views of the same videos as one: each at unit length, one after the other.

    So cosines are averaged (:eq:`eq-retrieval-joined`). A single one is left as it is. A row is NaN where a
    part's is.
    """
    if len(parts) == 1:
        return parts[0]
    return Features(torch.cat([unit(part.x) for part in parts], dim=1), parts[0].videos)


class _Rows:
    """Features ``(V, F)`` of which ``F`` is known with the first; large ones in a temporary file."""

    def __init__(self, videos: int, folder: Path | None) -> None:
        self._folder, self._x = folder, np.empty((videos, 0), np.float32)
        self.filled = np.zeros(videos, dtype=bool)

    def put(self, index: int, row: NDArray[np.float32]) -> None:
        if not self._x.shape[1]:
            self._x = self._room((len(self.filled), len(row)))
        self._x[index], self.filled[index] = row, True

    def take(self, store: FeatureCache | None, keys: Sequence[bytes | None]) -> list[int]:
        """Put in what is in the cache; gives the others."""
        for index, key in enumerate(keys):
            if store is not None and key is not None and (row := store.get(key)) is not None:
                self.put(index, row)
        return np.flatnonzero(~self.filled).tolist()

    def gather(self, made: list[int], ranks: Ranks) -> None:
        """On the first of several processes, put in what the others have made."""
        own = [index for index in made if self.filled[index]]
        for indices, x in ranks.to_first((own, self._x[own])):
            for index, row in zip(indices, x, strict=True):
                self.put(index, row)

    def _room(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        if 4 * shape[0] * shape[1] <= _IN_MEMORY:
            return np.empty(shape, np.float32)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:  # gone when the map is
                return np.memmap(file, np.float32, "w+", shape=shape)
        except OSError as error:
            raise MCNError(f"no room for {shape[0]} features of {shape[1]} numbers: {error}") from error

    def finish(self) -> Tensor:
        self._x[~self.filled] = np.nan
        return torch.from_numpy(self._x)


def write_features(config: EvalConfig, subset: str, path: Path, share: tuple[int, int] = (0, 1)) -> str:
    """Make a subset's features and write them to ``path``; a share of them is only kept. Gives what to say.

    Under ``torchrun`` all processes make them, and the first writes.
    """
    ranks = join_ranks(config.device)
    features = features_of(config, subset, share=share, ranks=ranks)
    if share[1] > 1:
        made = int(features.readable.sum())
        return f"{made} of {len(features.x)} videos have features; without --rank this writes {path}"
    if ranks.first:
        save_features(features, path)
    return f"{path}: features {tuple(features.x.shape)} of {len(features.x)} videos ({subset})"


def save_features(features: Features, path: Path) -> None:
    """Write ``names``, ``features`` and, where known, ``labels`` and ``classes`` as ``.npz``."""
    content: dict[str, Any] = {"names": np.array(features.videos.names), "features": features.x.numpy()}
    if features.videos.labels:
        content |= {"labels": np.array(features.videos.labels), "classes": np.array(features.videos.classes)}
    write_atomically(path, lambda file: np.savez(file, **content))


def unit(x: Tensor) -> Tensor:
    """Rows divided by their length, so that dot products are cosines."""
    return F.normalize(x, dim=1)
