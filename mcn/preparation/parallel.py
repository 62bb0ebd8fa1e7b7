"""The same work for many items, on the cores of this machine or on a cluster, results as they come."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from importlib import import_module
from itertools import islice
from typing import Any, TypeVar

from tqdm import tqdm

from mcn._cores import usable_cores
from mcn.errors import MCNError

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 4  # tasks that a cluster is given a thread, so that none waits for us
_PATIENCE = 20.0  # seconds in which a scheduler must answer


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    dask: str = "",
    desc: str = "",
    unit: str = "video",
) -> Iterator[tuple[int, Result]]:
    """Yield ``(index, function(items[index]))`` in the order in which they are done.

    ``workers`` threads (default: the usable cores) share the items; work that may crash or keeps the
    interpreter busy belongs in a child process, which :func:`mcn.data.supervise.supervised` gives to
    each thread. ``dask`` is the address of a ``dask.distributed`` scheduler whose workers do it
    instead: they import ``function`` by name and must see the same files under the same paths.
    ``desc`` names a bar that shows the time left; empty shows none, and so do no items.

    An exception of ``function`` ends it all: what may fail for one item should return that. After an
    exception or Ctrl-C nothing new is begun. Raises :class:`~mcn.errors.MCNError` for a cluster that
    cannot be used.

    >>> sorted(parallel_map(len, ["a", "bcd"], workers=2))
    [(0, 1), (1, 3)]
    """
    if dask and workers is not None:
        raise MCNError(f"workers={workers}: a cluster has its own number (leave workers out with dask)")
    if workers is not None and workers < 1:
        raise MCNError(f"workers={workers}: give at least 1")
    done = _on_cluster(function, items, dask) if dask else _in_threads(function, items, workers)
    bar = tqdm(total=len(items), desc=desc, unit=unit, disable=not (desc and items), dynamic_ncols=True)
    with closing(done), bar:
        for index, result in done:
            bar.update()
            yield index, result


def _in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None
) -> Generator[tuple[int, Result], None, None]:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    for index in range(len(items)):
        waiting.put(index)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, function(items[index]), None))
            except BaseException as error:  # raised again where the results are asked for
                done.put((index, None, error))

    # Daemons: Ctrl-C does not wait for a film to be finished.
    count = min(workers or usable_cores(), len(items))
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            index, result, error = done.get()
            if error is not None:
                raise error
            yield index, result
        for thread in threads:
            thread.join()
    finally:
        stop.set()


def _on_cluster(
    function: Callable[[Item], Result], items: Sequence[Item], address: str
) -> Generator[tuple[int, Result], None, None]:
    where = f"dask={address!r}"
    try:
        distributed: Any = import_module("distributed")
    except ImportError:
        raise MCNError(f"{where} needs dask.distributed: pip install 'mcn[cluster]'") from None
    try:
        client = distributed.Client(address, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise MCNError(f"{where}: no scheduler there ({reason}; start one: dask scheduler)") from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise MCNError(f"{where}: it has no workers (start some: dask worker {address})")
        waiting = iter(enumerate(items))
        running = distributed.as_completed()
        index_of: dict[str, int] = {}

        def submit(number: int) -> None:
            for index, item in islice(waiting, number):
                future = client.submit(function, item, pure=False)
                index_of[future.key] = index
                running.add(future)

        submit(_AHEAD * threads)
        for future in running:
            index = index_of.pop(future.key)
            try:
                result = future.result()
            except distributed.KilledWorker as error:
                raise MCNError(f"{where}: item {index} ends each worker that takes it ({error})") from None
            yield index, result
            submit(1)
