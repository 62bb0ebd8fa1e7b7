"""A child that crashes, hangs, floods or is killed costs one call, not the process that asked."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcn.data import supervise
from mcn.data.supervise import supervised
from mcn.data.videoinfo import VideoError
from mcn.errors import MCNError

# What a child can be asked for; the tests cannot name functions of their own modules to it.
FUNCTIONS = """
import ctypes, os, signal, sys, time
import numpy as np
from mcn.data.videoinfo import VideoError
from mcn.errors import MCNError

def pid(name, *, tick): return os.getpid()
def modules(name, *, tick): return sorted(sys.modules)
def double(name, array, *, tick): return 2 * array
def ramp(name, size, *, tick): return np.arange(size, dtype=np.int32)
def nothing(name, *, tick): return np.empty((0, 3), np.uint8)
def refuse(name, video, *, tick): raise (VideoError if video else MCNError)(f"{name}: no")
def bug(name, *, tick): return 1 / 0
def crash(name, *, tick): ctypes.string_at(0)
def leave(name, *, tick): os._exit(3)
def flood(name, *, tick): return len(bytearray(1 << 46))
def hang(name, *, tick): time.sleep(60)
def deaf(name, *, tick): signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); time.sleep(60)
def slow(name, steps, *, tick):
    for _ in range(steps):
        time.sleep(0.15)
        tick()
    return steps
def chatter(name, *, tick):
    print("a library that talks", flush=True)
    os.write(2, b"and complains")
    return "fine"
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A module of functions that both sides can import."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "mcn_test_functions.py").write_text(FUNCTIONS)
    sys.path.insert(0, str(folder))
    supervise._local.__dict__.clear()  # a child started before does not know the folder
    import mcn_test_functions  # type: ignore[import-not-found]

    yield mcn_test_functions
    sys.path.remove(str(folder))
    del sys.modules["mcn_test_functions"]
    supervise._local.__dict__.clear()


def test_one_child_serves_many_calls_and_has_no_torch(work: Any) -> None:
    first = supervised(work.pid, "a")
    assert first != os.getpid()
    assert supervised(work.pid, "b") == first
    assert "torch" not in supervised(work.modules, "c")


def test_arrays_of_any_size_come_back_as_copies(work: Any) -> None:
    arrays = [supervised(work.ramp, "a", size) for size in (10, 3_000_000, 7)]
    for array in arrays:
        assert np.array_equal(array, np.arange(len(array), dtype=np.int32))
        assert array.flags.writeable
    assert supervised(work.nothing, "a").shape == (0, 3)
    given = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(supervised(work.double, "a", given), 2 * given)


def test_errors_come_back_as_themselves(work: Any) -> None:
    with pytest.raises(VideoError, match=r"^clip: no$"):
        supervised(work.refuse, "clip", True)
    with pytest.raises(MCNError, match=r"^clip: no$") as caught:
        supervised(work.refuse, "clip", False)
    assert not isinstance(caught.value, VideoError)
    with pytest.raises(RuntimeError, match=r"bug of clip failed: ZeroDivisionError[\s\S]*return 1 / 0"):
        supervised(work.bug, "clip")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("crash", r"crashed the decoder \(SIGSEGV: Fatal Python error: Segmentation fault\)"),
        ("leave", r"crashed the decoder \(status 3\)"),
        ("flood", "takes more memory than there is"),
    ],
)
def test_a_crash_is_one_line_and_the_next_call_works(work: Any, name: str, said: str) -> None:
    with pytest.raises(VideoError, match=f"^clip: .*{said}") as caught:
        supervised(getattr(work, name), "clip")
    assert "\n" not in str(caught.value)
    assert supervised(work.slow, "next", 0) == 0


@pytest.mark.parametrize("name", ["hang", "deaf"])
def test_a_hang_ends_at_the_time_limit(work: Any, name: str) -> None:
    child = supervised(work.pid, "a")
    start = time.monotonic()
    with pytest.raises(VideoError, match=r"^clip: nothing came of reading it for 0\.3 s"):
        supervised(getattr(work, name), "clip", timeout=0.3)
    assert time.monotonic() - start < 5
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert supervised(work.pid, "next") != child


def test_who_gets_on_is_given_time(work: Any) -> None:
    assert supervised(work.slow, "clip", 6, timeout=0.5) == 6  # .9 s in all


def test_a_stopped_child_is_a_hang(work: Any) -> None:
    child = supervised(work.pid, "a")
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(VideoError, match="nothing came of reading it"):
        supervised(work.pid, "clip", timeout=0.3)


def test_a_child_killed_between_calls_is_replaced_without_a_word(work: Any) -> None:
    child = supervised(work.pid, "a")
    os.kill(child, signal.SIGKILL)
    time.sleep(0.1)
    assert supervised(work.pid, "b") != child


def test_a_child_killed_at_work_costs_that_call(work: Any) -> None:
    child = supervised(work.pid, "a")
    threading.Timer(0.2, os.kill, (child, signal.SIGKILL)).start()
    with pytest.raises(VideoError, match=r"crashed the decoder \(SIGKILL\)"):
        supervised(work.hang, "clip", timeout=20)


def test_what_libraries_print_stays_away(work: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert supervised(work.chatter, "a") == "fine"
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_call_does_not_answer_the_next(work: Any) -> None:
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        supervised(work.slow, "a", 20)
    assert supervised(work.ramp, "b", 3).tolist() == [0, 1, 2]


def test_each_thread_and_each_fork_has_a_child_of_its_own(work: Any) -> None:
    mine = supervised(work.pid, "a")
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(supervised(work.pid, "b")))
    thread.start()
    thread.join()
    assert found[0] != mine

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put(supervised(work.pid, "c")), daemon=True)
    process.start()
    assert queue.get(timeout=20) not in (mine, found[0])
    process.join(20)
    assert supervised(work.pid, "d") == mine  # the fork has not taken ours with it


_ASKS = """
import sys, time
import mcn_test_functions as work
from mcn.data.supervise import supervised
print(supervised(work.pid, "a"), flush=True)
{}
"""


@pytest.mark.parametrize("how", ["end", "kill", "kill at work"])
def test_no_child_outlives_its_parent(work: Any, how: str) -> None:
    more = {"end": "", "kill": "time.sleep(60)", "kill at work": 'supervised(work.deaf, "b")'}[how]
    env = {**os.environ, "PYTHONPATH": str(Path(work.__file__).parent)}
    asking = subprocess.Popen(
        [sys.executable, "-c", _ASKS.format(more)], stdout=subprocess.PIPE, text=True, env=env
    )
    assert asking.stdout is not None
    child = int(asking.stdout.readline())
    if how != "end":
        time.sleep(0.2)
        asking.kill()
    assert asking.wait(20) in (0, -signal.SIGKILL)
    asking.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(child):
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    """Whether a process runs (a dead one that nobody has waited for does not)."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
