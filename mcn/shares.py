r"""A batch in shares: consecutive parts that are computed apart, and whose losses add up to the batch's.

Each of the :math:`N` shares has BatchNorm statistics, FCM groups, negatives and dropout of its own, so
that it makes no difference to the numbers whether :math:`N` processes take one share each or one process
takes them one after the other (which is gradient accumulation: memory of one share). With :math:`b_i` of
the batch's :math:`B` videos in share :math:`i`, the loss is the mean over videos,

.. math:: L = \sum_i \frac{b_i}{B} L_i,

and gradients, Hessian products and running statistics are sums with the same weights.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from mcn.lean import Params

Loss = Callable[[Params], Tensor]


class Share(NamedTuple):
    """One share's loss, and its weight in the batch's: its part of the videos."""

    loss: Loss
    weight: float


def as_shares(loss: Loss | Sequence[Share] | None) -> list[Share]:
    """A loss in one piece as its only share; shares as they are; nothing as no share.

    >>> as_shares(abs)
    [Share(loss=<built-in function abs>, weight=1.0)]
    """
    if loss is None:
        return []
    return [Share(loss, 1.0)] if callable(loss) else list(loss)


def cut(number: int, shares: int) -> list[slice]:
    """Where each of ``shares`` consecutive parts of a list of ``number`` begins and ends.

    Their sizes differ by one at most. What one of ``R`` processes has of ``N`` shares, ``N / R`` in a row,
    is what it has when the list is cut into ``R``.

    >>> [(part.start, part.stop) for part in cut(7, 3)]
    [(0, 2), (2, 4), (4, 7)]
    """
    return [slice(i * number // shares, (i + 1) * number // shares) for i in range(shares)]


def in_cut(number: int, shares: int, first: int, count: int) -> list[tuple[slice, float]]:
    """``count`` shares of a batch of ``number``, from share ``first`` on, as a process that holds only these.

    Gives each one's place among the videos of these shares, and its weight in the whole batch.

    >>> in_cut(7, 3, first=1, count=2)
    [(slice(0, 2, None), 0.2857142857142857), (slice(2, 5, None), 0.42857142857142855)]
    """
    own = cut(number, shares)[first : first + count]
    start = own[0].start
    return [(slice(s.start - start, s.stop - start), (s.stop - s.start) / number) for s in own]


class WeightedSum:
    """The sum of shares' tensors by name, each times its share's weight.

    Tensors of whole numbers (BatchNorm's counters) are the same in each share and are taken as they are.

    >>> import torch
    >>> both = WeightedSum()
    >>> both.add({"w": torch.tensor(1.0)}, 0.25)
    >>> both.add({"w": torch.tensor(5.0)}, 0.75)
    >>> both.total
    {'w': tensor(4.)}
    """

    def __init__(self) -> None:
        self.total: Params = {}

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """One more share's tensors."""
        for name, tensor in tensors.items():
            part = tensor if weight == 1 or not tensor.is_floating_point() else weight * tensor
            if name in self.total and tensor.is_floating_point():
                part = self.total[name] + part
            self.total[name] = part
