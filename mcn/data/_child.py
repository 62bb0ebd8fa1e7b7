"""The other side of :mod:`mcn.data.supervise`: a process that does what it is told until its line is cut.

Started as ``python -m mcn.data._child LINE MEMORY`` with two inherited file descriptors.
"""

import ctypes
import importlib
import mmap
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from mcn.errors import MCNError

TICK = b""
_TICKS = 0.1  # seconds between two ticks that are sent
_NONE = (ValueError, OSError)  # where a limit does not exist on this system, it is not set


class Memory:
    """Memory that parent and child share; it grows as needed and is mapped once for many calls."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._map: mmap.mmap | None = None

    def array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """The memory as an array, good until the next call."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._map is None or len(self._map) < size:
            if os.fstat(self.file).st_size < size:
                os.ftruncate(self.file, size)
            self._map = mmap.mmap(self.file, max(size, 1))
        return np.frombuffer(self._map, dtype, int(np.prod(shape))).reshape(shape)


def serve(line: "Connection[Any, Any]", memory: Memory) -> None:
    """Answer calls until the other side hangs up."""
    told = time.monotonic()

    def tick() -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > _TICKS:
            told = now
            line.send_bytes(TICK)

    while True:
        try:
            call = line.recv_bytes()
        except EOFError:
            return
        told = time.monotonic()
        line.send_bytes(pickle.dumps(_answer(call, memory, tick)))


def _answer(call: bytes, memory: Memory, tick: Callable[[], None]) -> tuple[str, Any, Any]:
    """What to send back for one call: kind, and two things that belong to it."""
    try:
        module, name, args = pickle.loads(call)
        function = getattr(importlib.import_module(module), name)
        result = function(*args, tick=tick)
        if isinstance(result, np.ndarray):
            with suppress(OSError):  # no more memory, or a limit on files: it goes through the line
                memory.array(result.shape, result.dtype.str)[...] = result
                return "array", result.shape, result.dtype.str
        return "value", result, None
    except MCNError as error:
        return "error", type(error), str(error)
    except MemoryError:
        return "memory", None, None
    except Exception as error:
        return "bug", repr(error), traceback.format_exc()


def _settle() -> None:
    """Leave Ctrl-C to the parent, go when it goes, and take no more than half of the memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError, AttributeError):  # Linux only; elsewhere the cut line ends us
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    with suppress(ImportError, *_NONE):
        import resource

        # A damaged header may ask for any amount; half of the machine is for those who share it.
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        resource.setrlimit(resource.RLIMIT_AS, (half, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    _settle()
    with Connection(int(sys.argv[1])) as _line, suppress(BrokenPipeError, ConnectionResetError):
        _line.send_bytes(TICK)
        serve(_line, Memory(int(sys.argv[2])))
