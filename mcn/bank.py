"""The feature bank (paper, Sec. 3.2): one unit-length row a video, for each of the two views.

It stands for the features of all videos when a batch holds only a few of them. A row is what the network
said when the video was last drawn. Each epoch draws the videos in a new order, first to last or last to first
as it may be, so a row is up to just under two epochs old; older only where its video was among the few that
fill no step at the end of an epoch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureBank(nn.Module):
    """Rows ``(2, N, D)``: for each view, the running feature of each of ``N`` training videos.

    Starts as random unit vectors. A video's row moves by ``row <- momentum * row +
    (1 - momentum) * feature`` and is normalised again (momentum .5, protocol row 10). Rows are a
    buffer, never a parameter: no gradient reaches them.

    >>> bank = FeatureBank(5, 8, generator=torch.Generator().manual_seed(0))
    >>> bank.rows.shape
    torch.Size([2, 5, 8])
    """

    rows: Tensor

    def __init__(
        self, num_videos: int, dim: int, *, momentum: float = 0.5, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if num_videos < 2:
            raise ValueError(f"a bank needs at least 2 videos (one positive, one negative), got {num_videos}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.register_buffer(
            "rows", F.normalize(torch.randn(2, num_videos, dim, generator=generator), dim=-1)
        )

    def __len__(self) -> int:
        return self.rows.shape[1]

    def snapshot(self) -> Tensor:
        """A copy of the rows that later updates do not change: ``(2, N, D)``.

        A loss takes a snapshot, so that the Hessian product of the meta step sees the same
        negatives as the gradient it belongs to.
        """
        return self.rows.clone()

    @torch.no_grad()
    def update(self, index: Tensor, z1: Tensor, z2: Tensor) -> None:
        """Move the rows of the batch's videos towards their new features.

        ``index`` is ``(B,)`` int64, ``z1`` and ``z2`` are ``(B, D)`` features of the two views, of
        any length. A video that occurs twice is given the mean of its (unit) features, whatever
        the order. Raises ``IndexError`` for a row that does not exist.
        """
        if not index.numel():  # an empty batch (all its files unreadable) has nothing to say
            return
        if not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"bank has rows 0..{len(self) - 1}, got {int(index.min())}..{int(index.max())}")
        videos, position = index.unique(return_inverse=True)
        for view, z in enumerate((z1, z2)):
            z = F.normalize(z.detach().to(self.rows.dtype), dim=-1)
            # A matrix product sums duplicates in a fixed order; scatter-add on a GPU does not.
            member = F.one_hot(position, len(videos)).to(z.dtype)
            mean = F.normalize(member.T @ z, dim=-1)
            moved = self.momentum * self.rows[view, videos] + (1 - self.momentum) * mean
            self.rows[view, videos] = F.normalize(moved, dim=-1)


def draw_negatives(
    index: Tensor, num_videos: int, k: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw ``k`` negatives a video, uniformly from the ``num_videos - 1`` others: ``(B, k)`` int64.

    ``index`` ``(B,)`` is each video's own row; it is never drawn (protocol row 12): the draw runs
    over one row fewer and rows from the video's own on are shifted by one.

    >>> draw_negatives(torch.tensor([1]), 2, 3)
    tensor([[0, 0, 0]])
    """
    drawn = torch.randint(num_videos - 1, (len(index), k), generator=generator).to(index.device)
    return drawn + (drawn >= index[:, None])
