"""How much memory a loss keeps for its gradient, and which way to the exact order that leaves open."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

SHARE = 0.6  #: of a device's memory that activations may take; the rest is for all else
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Kept:
    """Bytes that graphs keep for going back, each storage counted once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()

    def see(self, tensor: Tensor) -> Tensor:
        """Count a tensor that a graph is about to keep."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor.detach()  # the tensor itself would refer to the graph that refers to it


@contextmanager
def counted() -> Iterator[Kept]:
    """Count what the graphs made inside keep.

    >>> x = torch.ones(10, requires_grad=True)
    >>> with counted() as kept:
    ...     y = x.exp()  # float32, and exp keeps its result
    >>> kept.bytes
    40
    """
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.see, lambda tensor: tensor):
        yield kept


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has: the GPU's, or the machine's and no more than a container may use.

    The whole of it, not what is free at the moment: what follows from it is the same each time, and a
    run that is continued goes on as it began.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def choose_way(kept: int, memory: int, *, graphs: int = 1, chained: bool = True) -> str:
    """The fastest way to the exact order that fits: the rule of ``method="auto"``.

    ``kept`` is what one support loss keeps for its gradient, ``memory`` what the device has, both in
    bytes. ``fast`` holds about twice that for each of its ``graphs`` (inner steps times support shares),
    and as much again for the query. Where that is more than :data:`SHARE` of the memory, the choice is
    ``lean``, or ``balanced`` for a loss that is not a chain of blocks.

    >>> choose_way(100, 1000), choose_way(300, 1000), choose_way(300, 1000, chained=False)
    ('fast', 'lean', 'balanced')
    """
    if kept * (2 * graphs + 1) <= SHARE * memory:
        return "fast"
    return "lean" if chained else "balanced"
