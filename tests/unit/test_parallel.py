"""Results come as they are done, on cores or on a cluster; a failure or Ctrl-C ends it at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mcn.errors import MCNError
from mcn.preparation import parallel
from mcn.preparation.parallel import parallel_map


def double(number: int) -> int:
    return 2 * number


def failing(number: int) -> int:
    if number == 3:
        raise MCNError("item 3: the disk is full")
    time.sleep(0.01)
    return number


def test_nothing_to_do_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(parallel_map(double, [], desc="table 5")) == []
    assert capsys.readouterr().err == ""
    assert list(parallel_map(double, [1], desc="table 5")) == [(0, 2)]
    assert "table 5" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 3, None])
def test_every_item_once_with_its_index(workers: int | None) -> None:
    assert sorted(parallel_map(double, range(50), workers=workers)) == [(i, 2 * i) for i in range(50)]
    assert list(parallel_map(double, [], workers=workers)) == []


def test_results_do_not_wait_for_slower_items() -> None:
    slow = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert slow.wait(10)
        return number

    results = parallel_map(work, range(4), workers=2)
    assert sorted(next(results)[0] for _ in range(3)) == [1, 2, 3]
    slow.set()
    assert next(results) == (0, 0)


def test_an_exception_ends_it_and_nothing_new_is_begun() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return failing(number)

    with pytest.raises(MCNError, match="item 3: the disk is full"):
        list(parallel_map(work, range(1000), workers=2))
    time.sleep(0.05)
    assert len(begun) < 20


def test_ctrl_c_is_answered_while_items_are_at_work() -> None:
    release = threading.Event()
    interrupt = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    interrupt.start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(parallel_map(lambda _: release.wait(20), range(8), workers=2))
        assert time.monotonic() - start < 5
    finally:
        release.set()


def test_bar_shows_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    list(parallel_map(double, range(5), workers=1, desc="prepare"))
    assert "5/5" in capsys.readouterr().err
    list(parallel_map(double, range(5), workers=1))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers=0: give at least 1"),
        ({"workers": 2, "dask": "tcp://a:1"}, "leave workers out"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MCNError, match=message):
        list(parallel_map(double, [1], **settings))


def test_a_missing_cluster_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MCNError, match=r"pip install 'mcn\[cluster\]'"):
        list(parallel_map(double, [1], dask="tcp://127.0.0.1:1"))


def local_cluster(**settings: Any) -> Any:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    return distributed.LocalCluster(
        threads_per_worker=1, dashboard_address=None, host="127.0.0.1", protocol="tcp", **settings
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_cluster(n_workers=2, processes=False) as made:
        yield made.scheduler_address


def test_a_cluster_does_the_same(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_AHEAD", 2)  # fewer than there are items: the rest follows
    assert sorted(parallel_map(double, range(20), dask=cluster)) == [(i, 2 * i) for i in range(20)]


def test_an_exception_on_a_cluster_comes_back_as_itself(cluster: str) -> None:
    with pytest.raises(MCNError, match="item 3: the disk is full"):
        list(parallel_map(failing, range(100), dask=cluster))


@pytest.mark.filterwarnings("ignore:Port 8787")
def test_an_item_that_kills_workers_is_named() -> None:
    dask = pytest.importorskip("dask")
    fast = dask.config.set({"distributed.scheduler.allowed-failures": 0})
    named = pytest.raises(MCNError, match="item 0 ends each worker that takes it")
    with fast, local_cluster(n_workers=1) as made, named:
        list(parallel_map(os._exit, [1], dask=made.scheduler_address))


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    monkeypatch.setattr(parallel, "_PATIENCE", 0.5)
    with pytest.raises(MCNError, match=r"dask='tcp://127.0.0.1:1': no scheduler there"):
        list(parallel_map(double, [1], dask="tcp://127.0.0.1:1"))


@pytest.mark.filterwarnings("ignore:Port 8787")
def test_no_workers() -> None:
    none = pytest.raises(MCNError, match="it has no workers")
    with local_cluster(n_workers=0, processes=False) as empty, none:
        list(parallel_map(double, [1], dask=empty.scheduler_address))
