"""The feature combination module, FCM (paper, Sec. 3.3 and Fig. 3): features -> labelled pairs.

Four videos make sixteen questions: is this RGB feature from the same video as that residual
feature? Four answers are yes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PAIRINGS = ("cross", "all")


class Pairs(NamedTuple):
    """What :func:`combine_features` gives: ``N`` pairs over all groups of the batch."""

    features: Tensor  #: ``(N, 2 * D)``, the two features side by side
    labels: Tensor  #: ``(N,)`` float, 1 where both come from one video
    group: Tensor  #: ``(N,)`` int64, the group of videos a pair was made in


def group_sizes(num_videos: int, group_size: int = 4) -> list[int]:
    """Split a batch into consecutive groups of ``group_size`` videos, none smaller than 2.

    Two or three left over make a group of their own; a single one joins the last full group, which
    is then split in two (protocol row 31).

    >>> group_sizes(8), group_sizes(7), group_sizes(5), group_sizes(9), group_sizes(3)
    ([4, 4], [4, 3], [3, 2], [4, 3, 2], [3])
    """
    if num_videos < 2 or group_size < 2:
        raise ValueError(f"FCM compares at least 2 videos: got {num_videos} in groups of {group_size}")
    full, rest = divmod(num_videos, group_size)
    sizes = [group_size] * full
    if rest > 1 or (rest == 1 and not sizes):
        sizes.append(rest)
    elif rest == 1 and group_size > 2:
        last = sizes.pop() + 1
        sizes += [last - last // 2, last // 2]
    elif rest == 1:
        sizes[-1] += 1
    return sizes


def _pair_indices(num_videos: int, pairing: str) -> tuple[Tensor, Tensor]:
    """Rows of ``[rgb_0.., res_0..]`` that make one group's pairs."""
    if pairing == "cross":  # [rgb_i ; res_j], i over rows, j over columns
        left, right = torch.cartesian_prod(torch.arange(num_videos), torch.arange(num_videos)).T
        return left, right + num_videos
    left, right = torch.combinations(torch.arange(2 * num_videos), 2).T
    return left, right


def combine_features(z1: Tensor, z2: Tensor, *, group_size: int = 4, pairing: str = "cross") -> Pairs:
    """Concatenate features into pairs and label them, group by group.

    ``z1, z2`` ``(B, D)``: features of the two views of the same ``B`` videos. In each group of four
    consecutive videos ``pairing="cross"`` makes the 16 ordered pairs ``[z1_i ; z2_j]``, row by row
    (4 true, 12 false); ``"all"`` makes the 28 unordered pairs of the 8 features (4 true). Gradients
    flow to both sides. Raises ``ValueError`` for unequal shapes or fewer than two videos.

    >>> pairs = combine_features(torch.zeros(4, 8), torch.ones(4, 8))
    >>> pairs.features.shape, int(pairs.labels.sum())
    (torch.Size([16, 16]), 4)
    """
    if z1.shape != z2.shape or z1.dim() != 2:
        raise ValueError(
            f"both views are (B, D) with the same shape: got {tuple(z1.shape)}, {tuple(z2.shape)}"
        )
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing is one of {PAIRINGS}, got {pairing!r}")
    features, labels, groups = [], [], []
    start = 0
    for number, size in enumerate(group_sizes(len(z1), group_size)):
        both = torch.cat([z1[start : start + size], z2[start : start + size]])  # (2 * size, D)
        left, right = (index.to(z1.device) for index in _pair_indices(size, pairing))
        features.append(torch.cat([both[left], both[right]], dim=1))
        labels.append((left % size == right % size).to(z1.dtype))
        groups.append(torch.full_like(left, number))
        start += size
    return Pairs(torch.cat(features), torch.cat(labels), torch.cat(groups))
