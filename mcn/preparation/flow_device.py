"""One device computes the flow for many threads: pairs that wait at the same time share a batch.

A thread for each video decodes and writes; the arithmetic of a pair is small for a GPU, and a video
has few pairs to offer at a time. So the threads hand in what they have, and one thread that owns
the device takes all that waits of one size. A CPU has such a thread for each core: many small batches
at once are faster than all cores at one. A pair's flow does not depend on the company it is in.
"""

import os
import queue
import threading
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import torch

from mcn.errors import MCNError
from mcn.preparation.tvl1 import tvl1_flow

# Pixels in a batch, and into how many parts it is cut, one a thread. What a CPU works on should stay in its
# cache; on a GPU a batch should outlast the start of a kernel, and takes about 400 bytes a pixel.
_CPU = (2**16, 1)
_GPU = (2**22, 8)

_made: dict[str, "DeviceFlow"] = {}
_making = threading.Lock()


class _Job(NamedTuple):
    before: torch.Tensor  # (n, H, W)
    after: torch.Tensor
    flow: "Future[np.ndarray]"


class DeviceFlow:
    """Flow on one device; call it with two stacks of grey frames (n, H, W) for flow (n, 2, H, W)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pixels, self.parts = _CPU if device.type == "cpu" else _GPU
        self._waiting: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        number = os.cpu_count() or 1 if device.type == "cpu" else 1
        started = threading.Barrier(number + 1)
        for _ in range(number):
            threading.Thread(target=self._serve, args=(started,), daemon=True).start()
        threads = torch.get_num_threads()
        started.wait()
        torch.set_num_threads(threads)  # the setting of a thread is also that of threads to come

    def pairs_of(self, height: int, width: int) -> int:
        """How many pairs of this size a thread should hand in at a time."""
        return max(1, self.pixels // (self.parts * height * width))

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Hand in pairs and wait for their flow, float32 (n, 2, H, W) in pixels."""
        job = _Job(torch.from_numpy(before), torch.from_numpy(after), Future())
        self._waiting.put(job)
        return job.flow.result()

    def _serve(self, started: threading.Barrier) -> None:
        torch.set_num_threads(1)
        started.wait()
        jobs: list[_Job] = []
        while True:
            jobs = jobs or [self._waiting.get()]
            while sum(job.before.numel() for job in jobs) + jobs[0].before.numel() <= self.pixels:
                try:
                    jobs.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            batch, jobs = self._next_batch(jobs)
            self._compute(batch)

    def _next_batch(self, jobs: list[_Job]) -> tuple[list[_Job], list[_Job]]:
        """The first job with others of its size, and those that are left."""
        batch: list[_Job] = []
        left: list[_Job] = []
        room = self.pixels
        for job in jobs:
            size = job.before.numel()
            if not batch or (job.before.shape[1:] == batch[0].before.shape[1:] and size <= room):
                batch.append(job)
                room -= size
            else:
                left.append(job)
        return batch, left

    def _compute(self, batch: list[_Job]) -> None:
        try:
            before = torch.cat([job.before for job in batch]).to(self.device)
            after = torch.cat([job.after for job in batch]).to(self.device)
            flows = tvl1_flow(before, after).cpu().split([len(job.before) for job in batch])
        except torch.OutOfMemoryError:
            self._refuse(batch, MCNError(f"{self.device}: out of memory for flow (free it from other work)"))
        except Exception as error:  # it belongs to the threads that wait
            self._refuse(batch, error)
        else:
            for job, flow in zip(batch, flows, strict=True):
                job.flow.set_result(flow.numpy())

    @staticmethod
    def _refuse(batch: list[_Job], error: Exception) -> None:
        for job in batch:
            job.flow.set_exception(error)


def device_flow(device: str) -> DeviceFlow:
    """The one :class:`DeviceFlow` of this process for a device, such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises :class:`~mcn.errors.MCNError` for a device that does not exist here.
    """
    with _making:
        if device not in _made:
            try:
                where = torch.device(device)
                torch.zeros(1, device=where)
            except (RuntimeError, AssertionError) as error:
                reason = str(error).splitlines()[0]
                raise MCNError(f"device={device!r} cannot be used ({reason}; try cpu or cuda)") from None
            _made[device] = DeviceFlow(where)
        return _made[device]
