"""The videos of a folder that are nearest to a file: a saved index, and one query.

The index is one ``.npz`` file: names and paths of the videos, their features, and what these were made
of (weights, settings, states of the files). Another network's index, or one of files that have changed
since, is never used; it is made again where the folder is given.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mcn.clip_features import is_flow, made_of, video_feature
from mcn.composes import check_together
from mcn.config import EvalConfig
from mcn.data.datasets import Videos, load_videos
from mcn.data.loader import clips_of_file
from mcn.errors import MCNError
from mcn.feature_cache import cache_key, video_keys, weights_hash
from mcn.features import FEATURE_SETTINGS, Features, features_of, join
from mcn.files import first_line, write_atomically
from mcn.loading import load_networks, single_views
from mcn.nearest import cosines, nearest
from mcn.network import MetaContrastiveNetwork
from mcn.precision import resolved
from mcn.run import choose_device


@dataclass(frozen=True)
class Index:
    """Features of the videos of a folder, and what they were made of."""

    features: Features
    made_of: str  #: changes with weights and settings
    files: str  #: changes with the files


class Neighbour(NamedTuple):
    """A video of the index, and how similar it is to the query."""

    row: int  #: in the index
    cosine: float
    name: str


def open_index(
    config: EvalConfig, path: Path | None = None, networks: Sequence[MetaContrastiveNetwork] = ()
) -> Index:
    """The index of all videos in ``config.data``, from the file ``path`` if what it holds is still true.

    Else it is made (what :mod:`mcn.feature_cache` has is not made again) and, where there is a ``path``,
    saved. Without ``config.data`` the file's is taken as it is, if it was made by the config's network and
    settings. ``networks`` are :func:`mcn.loading.load_networks`'s, where they are at hand already. Raises
    :class:`~mcn.errors.MCNError` where there is neither.
    """
    networks = networks or load_networks(config)
    made_of = _made_of(config, networks)
    saved = load_index(path) if path is not None and path.exists() else None
    if not config.data:
        if saved is None:
            raise MCNError(
                "--data is missing: the folder to search, or --index with the file of an earlier search"
            )
        if saved.made_of != made_of:
            raise MCNError(f"{path} was made by another network or settings: give --data to make it again")
        return saved
    videos = load_videos(config.data, "all", config.split)
    files = _files(videos, config)
    if saved is not None and (saved.made_of, saved.files) == (made_of, files):
        return saved
    index = Index(features_of(config, "all", networks, videos=videos), made_of, files)
    if path is not None:
        save_index(index, path)
    return index


def query_feature(
    config: EvalConfig, query: Path, networks: Sequence[MetaContrastiveNetwork] = ()
) -> NDArray[np.float32]:
    """The feature ``(F,)`` of one video file; ``networks`` as in :func:`open_index`.

    Raises :class:`~mcn.errors.MCNError` for a file that cannot be read, and for views of flow, of which a
    file has none.
    """
    if any(is_flow(one.view) for one in single_views(config)):
        raise MCNError(f"--view {config.view}: a single file has no stored flow, ask with rgb or residual")
    check_together("features", config)
    device = choose_device(config.device)
    raw, _ = clips_of_file(
        query, frames=config.frames, stride=config.stride, clips=config.clips,
        reader=config.reader, timeout=config.read_timeout,
    )  # fmt: skip
    parts = []
    for network, one in zip(networks or load_networks(config), single_views(config), strict=True):
        row = video_feature(
            network.eval(), raw, size=one.size, view=one.view, crops=one.crops, feature=one.feature,
            batch_size=one.batch_size, device=device, precision=resolved(one, device, training=False),
        )  # fmt: skip
        parts.append(Features(row.cpu()[None], Videos(query.parent, (query.name,))))
    return join(parts).x[0].numpy()


def find(
    asked: NDArray[np.float32], index: Index, k: int, *, leave_out: Path | None = None
) -> list[Neighbour]:
    """The ``k`` videos of an index nearest to the feature ``asked`` ``(F,)``, nearest first.

    The file ``leave_out``, the query itself perhaps, is not among them; see :func:`search`.
    """
    return search(asked, index, k, leave_out=leave_out)[0]


def search(
    asked: NDArray[np.float32], index: Index, k: int, *, leave_out: Path | None = None
) -> tuple[list[Neighbour], list[Neighbour]]:
    """What :func:`find` gives, and what it has left out of it: entries of the index that are the query."""
    x, videos = index.features.x.numpy(), index.features.videos
    own = leave_out.resolve() if leave_out else None
    order = nearest(asked[None], x, k + 1)[0]
    near = [
        Neighbour(int(row), float(cosine), videos.names[row])
        for row, cosine in zip(order, cosines(asked, x, order), strict=True)
    ]
    itself = [each for each in near if videos.path(each.row).resolve() == own]
    return [each for each in near if each not in itself][:k], itself


def protocol(config: EvalConfig) -> str:
    """What a cosine of this config means, for the line beside it."""
    return f"{made_of(config)}, cosine"


def _made_of(config: EvalConfig, networks: Sequence[MetaContrastiveNetwork]) -> str:
    """Changes with the networks of a config and with the settings that its features depend on."""
    settings = {name: getattr(config, name) for name in FEATURE_SETTINGS}
    settings |= resolved(config, torch.device("cpu"), training=False).setting()
    return cache_key(" ".join(map(weights_hash, networks)), settings)


def _files(videos: Videos, config: EvalConfig) -> str:
    """Changes with the list of videos and with each of their files."""
    states = [video_keys(videos, one.view) for one in single_views(config)]
    plain = [[key.hex() if key else "" for key in keys] for keys in states]
    return cache_key("", {"names": videos.names, "states": plain})


def save_index(index: Index, path: Path) -> None:
    """Write an index, whole or not at all."""
    videos = index.features.videos
    content: dict[str, Any] = {
        "features": index.features.x.numpy(),
        "names": np.array(videos.names),
        "files": np.array(videos.files or videos.names),
        "folder": np.array(os.path.abspath(videos.folder)),
        "made_of": np.array(index.made_of),
        "state": np.array(index.files),
    }
    write_atomically(path, lambda file: np.savez(file, **content))


def load_index(path: Path) -> Index:
    """Read an index. Raises :class:`~mcn.errors.MCNError` for a file that is none."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            names, files = ([str(name) for name in stored[key]] for key in ("names", "files"))
            videos = Videos(Path(str(stored["folder"])), tuple(names), files=tuple(files))
            features = Features(torch.from_numpy(stored["features"]), videos)
            return Index(features, str(stored["made_of"]), str(stored["state"]))
    except Exception as error:  # numpy raises several types for a damaged file
        raise MCNError(
            f"{path} is no index of videos: {first_line(error)} (remove it, or name another)"
        ) from error
