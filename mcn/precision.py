r"""In what precision, memory order and with what compiler the network is computed.

Parameters, losses, optimiser and feature bank are float32 whatever the precision: what changes is the
network's forward pass, and with it the backward pass.

* ``fp32``: everything in float32, on a GPU too.
* ``tf32``: NVIDIA GPUs round the factors of convolutions and products to 10 bits after the point.
* ``bf16``, ``fp16``: autocast; activations take half the memory. bf16 has float32's range and 7 bits after
  the point, fp16 10 bits, and numbers below 6e-8 are lost.

What goes together is in :mod:`mcn.composes`; here nothing is refused.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from mcn.settings import PrecisionConfig

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Precision:
    """A precision by name (``fp32``, ``tf32``, ``bf16`` or ``fp16``), and the kind of device it is for."""

    name: str = "fp32"
    device: str = "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """Inside, the network is computed in this precision.

        A weight is converted each time it is used: PyTorch's cache of converted weights is keyed by a
        parameter's identity, which says nothing about the parameters that a meta step swaps in.

        >>> with Precision("bf16").autocast():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
        """
        dtype = _HALF.get(self.name)
        return torch.autocast(self.device, dtype, enabled=dtype is not None, cache_enabled=False)

    def setting(self) -> dict[str, str]:
        """What the key of a kept feature has of it: nothing for float32, whose keys knew no precision."""
        return {} if self.name == "fp32" else {"precision": self.name}

    def around(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A function that is computed inside :meth:`autocast`, wherever it is called, a second time too."""
        if self.name not in _HALF:
            return function

        def inside(*args: object) -> Tensor:
            with self.autocast():
                return function(*args)

        return inside

    def full(self) -> AbstractContextManager[object]:
        """Inside an :meth:`autocast`, full precision again: for losses; see :func:`widened`."""
        return torch.autocast(self.device, enabled=False)


def resolved(config: PrecisionConfig, device: torch.device | str, *, training: bool = True) -> Precision:
    """The precision that a config means on a device; ``auto`` is the device's own.

    ``auto`` is ``fp32`` on a CPU, which is no faster in any other, and wherever features are made, which
    are kept and compared across devices. Training on a GPU takes ``tf32``: PyTorch's own choice for
    convolutions, of the same range as float32, and of no consequence for anything but their rounding.
    bf16 and fp16 have to be asked for.

    >>> resolved(PrecisionConfig(), "cpu").name, resolved(PrecisionConfig(), "cuda:1").name
    ('fp32', 'tf32')
    """
    kind = torch.device(device).type
    name: str = config.precision
    if name == "auto":
        name = "tf32" if kind == "cuda" and training else "fp32"
    return Precision(name, kind)


def widened(x: Tensor) -> Tensor:
    """A tensor in float32 if it came out of an autocast in less; others are left as they are.

    >>> widened(torch.ones(1, dtype=torch.bfloat16)).dtype, widened(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return x.float() if x.dtype in _HALF.values() else x


def prepare(
    module: M, config: PrecisionConfig, precision: Precision | None = None, backend: str = "inductor"
) -> M:
    """Give a network the memory order and the compiled backbones that a config asks for; gives it back.

    Parameters stay the same objects with the same names, so that optimisers and checkpoints do not notice.
    ``precision`` also sets, for this process, what GPUs do to float32. ``backend`` is ``torch.compile``'s.

    >>> conv = prepare(nn.Conv3d(2, 4, 3), PrecisionConfig(channels_last=True))
    >>> conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    True
    """
    if precision is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision.name == "tf32"
    if config.channels_last:
        module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if config.compile:
        for backbone in _backbones(module):
            backbone.compile(backend=backend)
    return module


def _backbones(module: nn.Module) -> list[nn.Module]:
    """Every backbone in a module, by the method that only backbones have."""
    return [part for part in module.modules() if hasattr(part, "maps")]
