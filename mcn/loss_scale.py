r"""A factor on losses, so that small gradients are not lost in fp16.

Everything that a step consists of is linear in its losses: with :math:`s L` for :math:`L` and
:math:`\alpha_1 / s` for :math:`\alpha_1`, the adapted parameters are the same and the meta-gradient is
:math:`s` times as large. So losses are multiplied, gradients divided, and nothing else need know.
"""

from collections.abc import Callable
from typing import Any, TypeVar

START, GROWTH = 2.0**16, 2000  #: the factor at first, and after how many good steps it doubles
T = TypeVar("T")


class LossScale:
    """The factor: a power of two with ``on``, else 1 for good.

    >>> import torch
    >>> from mcn.optim import check_finite
    >>> scale = LossScale(on=True)
    >>> def step():
    ...     check_finite(torch.tensor(1.0), [torch.tensor(1e34) * scale.value])  # overflows at first
    ...     return scale.value
    >>> scale.carried(step)
    32768.0
    """

    def __init__(self, *, on: bool) -> None:
        self.on, self.value, self.good = on, START if on else 1.0, 0

    def carried(self, step: Callable[[], T]) -> T:
        """What ``step`` gives; it is done again with half the factor as long as it is not finite.

        A step that raises ``FloatingPointError`` has changed nothing. At a factor of 1 that is raised on.
        """
        while True:
            try:
                done = step()
            except FloatingPointError:
                if self.value <= 1:
                    raise
                self.value, self.good = self.value / 2, 0
                continue
            if self.on:
                self.good += 1
                self.value *= 2 if self.good % GROWTH == 0 else 1
            return done

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it; nothing where it is off."""
        return {"value": self.value, "good": self.good} if self.on else {}

    def load(self, state: dict[str, Any]) -> None:
        """Take up a saved state; an empty one starts anew."""
        if self.on:
            self.value, self.good = state.get("value", START), state.get("good", 0)
