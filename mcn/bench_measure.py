"""What a piece of work costs on a device: seconds, bytes, operations.

A busy machine slows one measurement and not the next. So pieces of work that are to be compared take turns,
and what is compared is the median of their ratios inside one round. On a CPU that others use too, the time
that the process itself was given (CPU time) is steadier than the clock.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Work = Callable[[], object]
_MATRIX = {"cuda": 8192, "cpu": 512}  # rows of the matrices whose product is timed


def finish(device: torch.device) -> None:
    """Wait for what a device has been told to do; a CPU does it at once."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Times(NamedTuple):
    """What a piece of work took, round by round."""

    seconds: list[float]  #: by the clock
    cpu_seconds: list[float]  #: of this process on all its threads, in which a GPU's work does not count


def seconds_of(work: Work, device: torch.device) -> float:
    """Seconds that one call takes, to its end on the device.

    >>> seconds_of(lambda: None, torch.device("cpu")) < 1
    True
    """
    finish(device)
    start = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - start


def fits(work: Work, device: torch.device) -> bool:
    """Do the work once, as a warm-up; whether the device's memory was enough."""
    try:
        work()
        finish(device)
    except torch.OutOfMemoryError:
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def take_turns(
    work: Mapping[str, Work], device: torch.device, rounds: int, until: float = float("inf")
) -> dict[str, Times]:
    """Times of each piece of work in each round; odd rounds go through them backwards.

    No round begins after ``until``, a time of ``time.monotonic()``, but the first always runs. What the
    work needs at its first call (plans of convolutions, memory) should be had before: see :func:`fits`.
    """
    spent = {name: Times([], []) for name in work}
    for number in range(rounds):
        if number and time.monotonic() > until:
            break
        for name in list(work)[:: -1 if number % 2 else 1]:
            start = time.process_time()
            spent[name].seconds.append(seconds_of(work[name], device))
            spent[name].cpu_seconds.append(time.process_time() - start)
    return spent


def ratio(seconds: list[float], unit: list[float]) -> float:
    """Median over rounds of the ratio inside a round.

    >>> ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(seconds, unit, strict=True))


def spread(seconds: list[float]) -> float:
    """Half the distance between the quartiles as a share of the median; 0 of a single round.

    >>> spread([1.0]), spread([1.0, 2.0, 3.0, 4.0, 5.0])
    (0.0, 0.5)
    """
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / 2 / middle


def peak_bytes(work: Work, device: torch.device) -> int:
    """Most bytes that were allocated at a time during ``work``, above what there was before.

    On a GPU it is the caching allocator's own count. On a CPU it is what PyTorch's allocator handed out, as
    its profiler records every allocation and release. Tensors of a moment inside an operation count in both.

    >>> peak_bytes(lambda: torch.ones(1000) + 1, torch.device("cpu")) >= 8000
    True
    """
    if device.type == "cuda":
        finish(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        finish(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _silent(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    if not events:
        return 0
    events.sort(key=lambda event: event["ts"])
    total, first = [event["args"]["Total Allocated"] for event in events], events[0]["args"]
    return max(total) - (first["Total Allocated"] - first["Bytes"])


@contextmanager
def _silent() -> Iterator[None]:
    """Without the lines that some builds of the profiler write to standard error past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def operations(work: Work) -> int:
    """Floating-point operations of matrix products and convolutions; a multiply-add counts as two.

    >>> operations(lambda: torch.ones(4, 5) @ torch.ones(5, 6))
    240
    """
    with _Operations() as counter:
        work()
    return counter.total


class _Operations(TorchDispatchMode):
    """PyTorch's formulas of operations, summed up; its own counter's module hooks refuse ``torch.func``."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def peak_rate(device: torch.device, seconds: float = 0.5) -> float:
    """Operations a second of the device at its best: the fastest of the matrix products of ``seconds``.

    In float32, and with TF32 where convolutions use it: a convolution is to be measured against what the
    same arithmetic can do.
    """
    n = _MATRIX.get(device.type, 512)
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    with _arithmetic_of_convolutions():
        fits(lambda: a @ b, device)
        best, start = float("inf"), time.perf_counter()
        while time.perf_counter() - start < seconds or best == float("inf"):
            best = min(best, seconds_of(lambda: a @ b, device))
    return 2 * n**3 / best


@contextmanager
def _arithmetic_of_convolutions() -> Iterator[None]:
    """Matrix products with TF32 if convolutions have it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
