"""Many processes (*ranks*) that train one network: who they are, and what they tell each other.

``torchrun`` starts the same command once a GPU, or N times on CPUs, and tells each its number::

    torchrun --nproc_per_node 4 -m mcn pretrain --preset paper-r3d_18 --data UCF101 --out runs/mcn

    # two machines: on each, with the same --rdzv_endpoint (Slurm: one task a node)
    srun --ntasks-per-node 1 torchrun --nnodes $SLURM_NNODES --nproc_per_node 4 \
      --rdzv_backend c10d --rdzv_id $SLURM_JOB_ID --rdzv_endpoint $FIRST_NODE:29500 \
      -m mcn pretrain --data UCF101 --out runs/mcn

Each rank takes its part of every batch (:mod:`mcn.shares`). There is no wrapper around the network
(PyTorch's ``DistributedDataParallel`` has no second derivative): gradients, Hessian products and what a
step leaves behind are summed here, in one order, so that network, bank and optimiser are the same on all
ranks, and the same as those of one process with ``--shares N``. Rank 0 alone writes files. BatchNorm over
all ranks (``SyncBatchNorm``) is not offered: it has no second derivative either, and a batch would no
longer be what one process computes share by share (protocol row 37).

With ``--max-restarts`` a run whose rank has died is started again by ``torchrun`` and goes on from its last
checkpoint; that takes an ``--out``. Gradients travel by NCCL between GPUs, by gloo between CPUs.

Tested: two and three processes on the CPUs of one machine, that talk by gloo over its loopback, with one or
several shares each. Not tested: several machines over a network (the Slurm lines above were not run), NCCL,
and ranks on GPUs.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from mcn._cores import processes
from mcn.errors import MCNError
from mcn.files import first_line
from mcn.shares import cut

#: Longest that a rank waits for the others, in seconds: for a slow disk, not for a dead process.
TIMEOUT = 600.0
_BUCKET = 1 << 26  # numbers that travel at a time

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them; by itself a run of one process.

    >>> Ranks().reduce({"w": torch.ones(1)}), Ranks().objects("a"), Ranks().on_first(lambda: 3)
    ({'w': tensor([1.])}, ['a'], 3)
    """

    rank: int = 0  #: of this process, from 0
    size: int = 1  #: number of processes
    on_machine: int = 1  #: of these on this machine

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, and speaks for all."""
        return self.rank == 0

    def reduce(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum of each tensor over all ranks, the same bits on each; of whole numbers, rank 0's.

        All ranks give the same names and shapes. Tensors travel together, in few large pieces.
        """
        if self.size == 1:
            return tensors
        summed: dict[str, Tensor] = {}
        for names in _buckets(tensors):
            flat = torch.cat([tensors[name].detach().reshape(-1) for name in names])
            with _together():
                if flat.is_floating_point():
                    dist.all_reduce(flat)
                else:
                    dist.broadcast(flat, src=0)
            parts = flat.split([tensors[name].numel() for name in names])
            summed |= {name: part.view(tensors[name].shape) for name, part in zip(names, parts, strict=True)}
        return {name: summed[name] for name in tensors}

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """The rows of all ranks in rank order; each has its part of ``total`` (:func:`mcn.shares.cut`)."""
        if self.size == 1:
            return rows
        counts = [part.stop - part.start for part in cut(total, self.size)]
        if len(rows) != counts[self.rank]:
            raise ValueError(
                f"rank {self.rank} has {len(rows)} rows, its part of {total} is {counts[self.rank]}"
            )
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        found = [torch.empty_like(padded) for _ in counts]
        with _together():
            dist.all_gather(found, padded)
        return torch.cat([each[:count] for each, count in zip(found, counts, strict=True)])

    def objects(self, own: T) -> list[T]:
        """What each rank gives, in rank order: small things of Python."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(found, own)
        return found

    def to_first(self, own: T) -> list[T]:
        """On rank 0 what the other ranks give, in their order; on the others nothing."""
        if self.size == 1:
            return []
        found: list[Any] | None = [None] * self.size if self.first else None
        with _together():
            dist.gather_object(own, found, dst=0)
        return found[1:] if found else []

    def part(self, wanted: Sequence[int]) -> list[int]:
        """Every ``size``-th of a list, from ``rank`` on: what one rank does of work without order.

        >>> Ranks(1, 2).part([3, 4, 7, 9, 12])
        [4, 9]
        """
        return list(wanted[self.rank :: self.size])

    def on_first(self, function: Callable[[], T]) -> T:
        """What ``function`` gives on rank 0, which alone calls it; what it raises is raised on all."""
        if self.size == 1:
            return function()
        told: list[Any] = [None, None]
        raised: BaseException | None = None
        if self.first:
            try:
                told[0] = function()
            except MCNError as error:
                raised, told[1] = error, str(error)
        with _together():
            dist.broadcast_object_list(told, src=0)
        if raised is not None:
            raise raised
        if told[1] is not None:
            raise MCNError(told[1])
        return told[0]

    def agree(self, what: str, own: T) -> None:
        """Raise :class:`~mcn.errors.MCNError` unless all ranks have the same ``own``."""
        found = self.objects(own)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise MCNError(f"{what}: rank 0 has {found[0]}, rank {rank} has {other}")


def _buckets(tensors: dict[str, Tensor]) -> Iterator[list[str]]:
    """Names of tensors that travel together: one type and device, up to a size, in order."""
    kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, tensor in tensors.items():
        kinds.setdefault((tensor.dtype, tensor.device), []).append(name)
    for names in kinds.values():
        bucket: list[str] = []
        held = 0
        for name in names:
            if bucket and held + tensors[name].numel() > _BUCKET:
                yield bucket
                bucket, held = [], 0
            bucket.append(name)
            held += tensors[name].numel()
        yield bucket


@contextmanager
def _together() -> Iterator[None]:
    """What fails in here fails because another process is gone, or hangs."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise MCNError(
            f"another process of this run is gone or silent ({first_line(error)}): "
            "the same command, with the run's folder as --out, goes on from the last checkpoint"
        ) from error


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def asked_for() -> Ranks:
    """What ``torchrun`` says of this process, whether or not it has met the others yet."""
    size = processes()
    return Ranks(_number("RANK", 0), size, _number("LOCAL_WORLD_SIZE", size))


def own_device(name: str) -> str:
    """The device of this rank for what a user asks for: each has a GPU of its own.

    Raises :class:`~mcn.errors.MCNError` where there are fewer GPUs than ranks, and for a GPU by number.

    >>> own_device("cuda")  # of one process
    'cuda'
    """
    ranks = asked_for()
    if ranks.size == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    if name.startswith("cuda:") and ranks.on_machine > 1:
        raise MCNError(
            f"--device {name}: {ranks.on_machine} processes cannot share it; leave it auto or cuda"
        )
    if name not in ("auto", "cuda"):
        return name
    if (there := torch.cuda.device_count()) < ranks.on_machine:
        raise MCNError(
            f"{ranks.on_machine} processes on a machine with {there} GPUs: start {there} "
            "(torchrun --nproc_per_node), or say --device cpu"
        )
    return f"cuda:{_number('LOCAL_RANK', 0)}"


_met: Any = None  # the store through which the ranks have met


def join_ranks(device: str = "auto", out: str = "x") -> Ranks:
    """Meet the other processes that ``torchrun`` has started; a run of one process meets nobody.

    ``device`` and ``out`` are the run's settings. Raises :class:`~mcn.errors.MCNError` where the others do
    not come, and for a run that is to be started again but names no folder to go on in.
    """
    global _met
    ranks = asked_for()
    if ranks.size == 1 or dist.is_initialized():
        return ranks
    if not out and _number("TORCHELASTIC_MAX_RESTARTS", 0):
        raise MCNError("torchrun --max-restarts starts a run again in the same folder: give --out one")
    place = own_device(device)
    gpu = place.startswith("cuda") or (place == "auto" and torch.cuda.is_available())
    if gpu:
        torch.cuda.set_device(place)
    wait = timedelta(seconds=TIMEOUT)
    try:
        store, rank, size = next(rendezvous("env://", timeout=wait))
        store.set_timeout(wait)
        met = _meeting(store, rank, size)
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        dist.init_process_group(backend, store=met, rank=rank, world_size=size, timeout=wait)
        _met = met
    except (RuntimeError, ValueError) as error:
        raise MCNError(
            f"rank {ranks.rank} cannot meet the other {ranks.size - 1} processes: {first_line(error)} "
            "(start mcn by torchrun, which tells each process where the others are)"
        ) from error
    return ranks


def _meeting(store: Any, rank: int, size: int) -> Any:
    """A part of the store that these processes alone know.

    ``torchrun`` may keep one store for all starts of a run, and a process that finds the address of its
    neighbour's predecessor there waits for ever. So each says a name that nobody has had before, and the
    first answers to these names until all have come.
    """
    own, until = uuid.uuid4().hex, time.monotonic() + TIMEOUT
    if rank:
        store.set(f"mcn/rank/{rank}", own)
        own = store.get(f"mcn/answer/{own}").decode()
        store.add(f"mcn/came/{own}", 1)
        return dist.PrefixStore(own, store)
    while store.add(f"mcn/came/{own}", 0) < size - 1:
        for other in range(1, size):
            if store.check([f"mcn/rank/{other}"]):
                store.set(f"mcn/answer/{store.get(f'mcn/rank/{other}').decode()}", own)
        if time.monotonic() > until:
            raise RuntimeError(f"not all have come within {TIMEOUT:g} s")
        time.sleep(0.02)
    return dist.PrefixStore(own, store)


def leave_ranks() -> None:
    """Part from the other processes, at the end of a run."""
    global _met
    if dist.is_initialized():
        dist.destroy_process_group()
    _met = None


def speaks() -> bool:
    """Whether this process is the one to say what went wrong: the first that failed, or rank 0."""
    if _met is None:
        return asked_for().first
    try:
        return _met.add("mcn/failed", 1) == 1
    except RuntimeError:  # where they met is gone as well
        return True
