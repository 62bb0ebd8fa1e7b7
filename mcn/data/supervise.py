"""Calls that may crash, hang or eat memory, made in a child process that may be killed.

A video decoder meets files that nobody has tested it with. A crash in it ends the process it runs
in, a PyTorch loader worker that dies ends its loader, and decord can hang where no signal reaches.
So whatever decodes a file does it in a child: a small Python that imports no torch, one for each
thread that asks, started on first use and used again. The child says now and then that it is
getting on; when it is silent for too long it is killed, when it dies that is noticed, and either
way the caller gets a :class:`~mcn.data.videoinfo.VideoError` and the next call a new child.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from mcn.data._child import TICK, Memory
from mcn.data.videoinfo import VideoError

#: Seconds of silence after which a child is taken to hang.
TIMEOUT = 60.0
_START = 120.0  # seconds a child may take to start, on a machine that does much else
_COMMAND = (sys.executable, "-X", "faulthandler", "-m", "mcn.data._child")
_KEEP = 256 << 20  # bytes of shared memory that may stay with a child between calls
_LOST = (EOFError, OSError)  # what a cut line looks like
_local = threading.local()


def supervised(function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> Any:
    """``function(*args, tick=tick)`` in the calling thread's child process.

    ``function`` is one that can be imported by its name from a module that imports no torch; it
    calls ``tick()`` as it gets on, and may be silent for ``timeout`` seconds at most. Its first
    argument is the path (or what else names the work) that messages start with. A numpy array comes
    back through shared memory. Raises what the function raises of :class:`~mcn.errors.MCNError`,
    :class:`~mcn.data.videoinfo.VideoError` for a child that hangs, crashes or runs out of memory, and
    ``RuntimeError`` with the child's traceback for any other exception.

    >>> from mcn.data.videoinfo import probe
    >>> supervised(probe, "/no/such/clip.mp4")
    Traceback (most recent call last):
    ...
    mcn.data.videoinfo.VideoError: /no/such/clip.mp4: No such file or directory
    """
    child: _Child | None = getattr(_local, "child", None)
    if child is None or not child.usable():
        child = _local.child = _Child()
    try:
        return child.call(function, args, timeout)
    except BaseException:
        if child.busy:  # an answer to this call must not be taken for one to the next
            child.end()
        raise


class _Child:
    """A child process and the line to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        # Memory without a name: nothing is left behind, whoever is killed when.
        memory = os.memfd_create("mcn") if hasattr(os, "memfd_create") else _unnamed_file()
        self.memory, self.errors = Memory(memory), _unnamed_file()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        with theirs:
            self.process = subprocess.Popen(
                [*_COMMAND, str(theirs.fileno()), str(memory)],
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                stdout=self.errors,
                stderr=self.errors,
                env=environment,
            )
        self.line: Connection[Any, Any] = Connection(ours.detach())
        self.owner, self.busy = os.getpid(), True
        self._finalizer = weakref.finalize(
            self, _end, self.process, self.line, (memory, self.errors), self.owner
        )
        self._wait("mcn.data._child", _START)  # says that it is there
        self.busy = False

    def usable(self) -> bool:
        """Whether it is ours (not one of the process that we were forked from) and alive."""
        return self.owner == os.getpid() and self._finalizer.alive and self.process.poll() is None

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> Any:
        """Send one call, wait for its answer."""
        what = str(args[0]) if args else function.__name__
        self.busy = True
        with suppress(*_LOST):  # a line that is cut here is noticed when we wait
            self.line.send_bytes(pickle.dumps((function.__module__, function.__qualname__, args)))
        kind, first, second = pickle.loads(self._wait(what, timeout, first=False))
        self.busy = False
        if kind == "array":
            result = self.memory.array(first, second).copy()
            if result.nbytes > _KEEP:  # or both of us would hold on to it
                self.end()
            return result
        if kind == "value":
            return first
        if kind == "error":
            raise first(second)
        if kind == "memory":
            raise VideoError(f"{what}: reading it takes more memory than there is (is the file damaged?)")
        raise RuntimeError(f"{function.__name__} of {what} failed: {first}\n{second}")

    def _wait(self, what: str, timeout: float, first: bool = True) -> bytes:
        """The next message; ``first`` takes a tick for one, otherwise ticks only give more time."""
        end = time.monotonic() + timeout
        while True:
            try:
                if not self.line.poll(max(0.0, end - time.monotonic())):
                    self.end()
                    raise VideoError(f"{what}: nothing came of reading it for {timeout:g} s (skipped)")
                message = self.line.recv_bytes()
            except _LOST:
                raise VideoError(f"{what}: {self._last_words()}") from None
            if first or message != TICK:
                return message
            end = time.monotonic() + timeout

    def _last_words(self) -> str:
        """What a dead child died of."""
        lines = os.pread(self.errors, 4096, 0).decode(errors="replace").split("\n")
        said = next((f": {line.strip()[:200]}" for line in lines if line.strip()), "")
        self.end()
        status = self.process.returncode
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"reading it crashed the decoder ({how}{said})"

    def end(self) -> None:
        """Kill it, if it still runs."""
        self._finalizer()


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end(
    process: "subprocess.Popen[bytes]", line: "Connection[Any, Any]", files: tuple[int, ...], owner: int
) -> None:
    line.close()
    for file in files:
        os.close(file)
    # In a process forked from the one that started it, it is not ours to kill.
    if os.getpid() == owner:
        process.kill()
        process.wait()
