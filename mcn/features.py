"""Clips -> one frozen feature a video: the common ground of probe, retrieval and nearest neighbours.

Evenly spaced clips, centre crop or ten crops, backbone in eval mode, mean of the pooled features or of
conv5's (rows 41, 46); one view, or two joined (row 45). What is made is kept on disk, so that probe,
retrieval and pictures of one network share it, and a killed extraction goes on.
"""

import dataclasses
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
from mcn.config import EvalConfig, FinetuneConfig, PretrainConfig, build
from mcn.data.datasets import Videos, load_videos
from mcn.data.loader import readable_videos
from mcn.data.supervise import TIMEOUT
from mcn.errors import MCNError
from mcn.feature_cache import FeatureCache, cache_key, video_keys, weights_hash
from mcn.files import write_atomically
from mcn.network import MetaContrastiveNetwork
from mcn.run import choose_device, seed_everything, seed_for
from mcn.starting_points import read_starting_point

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
        if not self.videos.labels:
            raise MCNError(f"{self.videos.folder} has no labels: put the videos into one folder a class")
        return torch.tensor(self.videos.labels)

    @property
    def readable(self) -> Tensor:
        """Which videos have a feature, ``(V,)`` bool."""
        return torch.cat([some.isfinite().all(dim=1) for some in self.x.split(4096)])


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
    """The network of a checkpoint, or one of the config's backbone, on ``device``.

    The latter is untrained, or has the weights of another program's file
    (:mod:`mcn.starting_points`). Also gives the pre-training config that describes the network. Raises
    :class:`~mcn.errors.MCNError` for a checkpoint that is missing, unreadable or fine-tuned, for one of
    ours that has never seen the view asked for, and for a file of another backbone.
    """
    plain = PretrainConfig(backbone=config.backbone, width=config.width, seed=config.seed)
    if not config.checkpoint:
        return network_from_config(plain).to(device), plain
    start = read_starting_point(config.checkpoint, config.backbone)
    if not start.ours:
        network = network_from_config(plain)
        print(start.load_into(network, plain))
        return network.to(device), dataclasses.replace(plain, init_from=config.checkpoint)
    state = start.ours
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
) -> Features:
    """One feature a video: backbone features of ``clips`` clips, averaged (:eq:`eq-video-feature`).

    The network is put into eval mode for this and back afterwards. Unreadable videos are named,
    counted against ``max_bad`` and leave a row of NaN. ``progress`` names a bar; empty shows none.

    ``cache`` is a folder where features are kept as they are made (see :mod:`mcn.feature_cache`): what is
    in it is not made again. ``share`` ``(rank, world)`` makes only every ``world``-th video's, from
    ``rank`` on; the rest are NaN unless another process has put them there already. Features of more than
    a gibibyte lie in a temporary file, memory-mapped. Raises :class:`~mcn.errors.MCNError` where none of
    the videos can be read, and for a share that cannot be.
    """
    rank, world = share
    if not 0 <= rank < world <= len(videos):
        raise MCNError(
            f"--rank {rank} --world {world}: a rank is from 0 to world - 1, of at most {len(videos)} videos"
        )
    sizes = {"frames": frames, "stride": stride, "clips": clips, "reader": reader}
    settings = {**sizes, "size": size, "view": view, "crops": crops, "feature": feature}
    if world > 1 and cache is None:
        raise MCNError(f"--world {world}: shares meet in a folder of kept features, give --cache one")
    store: FeatureCache | None = None
    keys: list[bytes | None] = [None] * len(videos)
    if cache is not None:
        store = FeatureCache(cache, cache_key(weights_hash(network.backbone(VIEWS[view])), settings))
        keys = video_keys(videos, view)
    rows = _Rows(len(videos), cache)
    wanted = rows.take(store, keys)
    made = [index for index in wanted if index % world == rank]

    dataset = evaluation_clips(videos, view, **sizes, timeout=timeout)
    was_training = network.training
    network.eval()
    try:
        for index, raw in readable_videos(dataset, workers, max_bad, progress, made) if made else ():
            row = video_feature(
                network, raw, size=size, view=view, crops=crops, feature=feature,
                batch_size=batch_size, device=device,
            ).cpu().numpy()  # fmt: skip
            rows.put(index, row)
            if store is not None and (key := keys[index]) is not None:
                store.add(key, row)
    finally:
        network.train(was_training)
        if store is not None:
            store.close()
    if not rows.filled.any():
        raise MCNError(f"none of the {len(videos)} videos of {videos.folder} can be read")
    return Features(rows.finish(), videos)


def features_of(
    config: EvalConfig,
    subset: str,
    network: MetaContrastiveNetwork | None = None,
    share: tuple[int, int] = (0, 1),
) -> Features:
    """Features of one subset as a config describes them; joined views as :func:`join` joins them.

    ``network`` is used instead of the config's checkpoints. See :func:`extract_features` for ``share``.
    """
    device = choose_device(config.device)
    videos = load_videos(config.data, subset, config.split)
    if not len(videos):
        raise MCNError(
            f"{config.data} has no {subset} list: an evaluation needs the split lists of its data set "
            f"(recognised: {videos.layout})"
        )
    print(f"{subset}: {videos.announced(config.size)}")
    return join([
        extract_features(
            network or load_network(one, device)[0], videos,
            **clip_settings(one), workers=one.workers, max_bad=one.max_bad, device=device,
            progress=f"features {subset}" if one.view == config.view else f"features {subset}, {one.view}",
            cache=cache_folder(one), share=share,
        )
        for one in single_views(config)
    ])  # fmt: skip


def clip_settings(config: EvalConfig) -> dict[str, Any]:
    """What :func:`extract_features` is told of a config of one view: which clips, and how they are read."""
    names = (*FEATURE_SETTINGS, "batch_size")
    return {name: getattr(config, name) for name in names} | {"timeout": config.read_timeout}


def single_views(config: EvalConfig) -> list[EvalConfig]:
    """A config of joined views as one config a view, the second with its own checkpoint if it has one.

    >>> [one.view for one in single_views(EvalConfig(view="rgb+flow_v"))]
    ['rgb', 'flow_v']
    """
    views = config.view.split("+")
    if len(views) == 1 and config.second_checkpoint:
        raise MCNError(
            f"--second_checkpoint is for two joined views, such as rgb+flow_v: --view is {config.view}"
        )
    checkpoints = (config.checkpoint, config.second_checkpoint or config.checkpoint)
    changes = (
        {"view": view, "checkpoint": checkpoint, "second_checkpoint": ""}
        for view, checkpoint in zip(views, checkpoints, strict=False)
    )
    return [dataclasses.replace(config, **change) for change in changes]  # type: ignore[arg-type]


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


def save_features(features: Features, path: Path) -> None:
    """Write ``names``, ``features`` and, where known, ``labels`` and ``classes`` as ``.npz``."""
    content: dict[str, Any] = {"names": np.array(features.videos.names), "features": features.x.numpy()}
    if features.videos.labels:
        content |= {"labels": np.array(features.videos.labels), "classes": np.array(features.videos.classes)}
    write_atomically(path, lambda file: np.savez(file, **content))


def unit(x: Tensor) -> Tensor:
    """Rows divided by their length, so that dot products are cosines."""
    return F.normalize(x, dim=1)
