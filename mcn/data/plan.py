"""Which videos each step of a run takes: a seeded permutation an epoch, cut into steps and shares.

Everything follows from (seed, epoch, position), so a resumed run goes on exactly where it was by
starting the plan at a later step, and neither workers nor ranks change what is drawn.
"""

from typing import NamedTuple

import torch

from mcn.errors import MCNError
from mcn.run import generator_for


class Request(NamedTuple):
    """One clip to be drawn: which video, and what seeds the draw."""

    video: int
    epoch: int
    position: int


class Step(NamedTuple):
    """The videos of one outer step; ``support`` is empty without meta stages."""

    support: list[Request]
    query: list[Request]


def steps_per_epoch(num_videos: int, batch_size: int, stages: bool) -> int:
    """Outer steps of one pass: ``D / 2B`` with meta stages, else ``D / B`` (protocol row 21).

    >>> steps_per_epoch(100, 10, stages=True), steps_per_epoch(100, 10, stages=False)
    (5, 10)
    """
    return num_videos // (2 * batch_size if stages else batch_size)


def epoch_plan(
    num_videos: int, batch_size: int, epoch: int, seed: int, stages: bool, redraw: bool = True
) -> list[Step]:
    """The steps of an epoch: a seeded permutation, cut into support and query halves (row 20).

    ``redraw=False`` keeps the halves of the first epoch and only changes the order within them.

    >>> [len(step.support) for step in epoch_plan(10, 2, 0, 0, stages=True)]
    [2, 2]
    """
    order = _permuted(list(range(num_videos)), seed, epoch if redraw else 0)
    half = num_videos // 2 if stages else 0
    support, query = order[:half], order[half:]
    if not redraw:
        support, query = _permuted(support, seed, epoch), _permuted(query, seed, epoch)
    requests = [Request(video, epoch, position) for position, video in enumerate(support + query)]
    return [
        Step(
            requests[i * batch_size : (i + 1) * batch_size] if stages else [],
            requests[half + i * batch_size : half + (i + 1) * batch_size],
        )
        for i in range(steps_per_epoch(num_videos, batch_size, stages))
    ]


def _permuted(videos: list[int], seed: int, epoch: int) -> list[int]:
    order = torch.randperm(len(videos), generator=generator_for(seed, "order", epoch))
    return [videos[i] for i in order.tolist()]


def share_of(step: Step, rank: int, ranks: int) -> Step:
    """What one of several processes does of a step: its run of consecutive videos of either stage.

    Shares are disjoint, together they are the step, and their sizes differ by one video at most.
    Raises :class:`~mcn.errors.MCNError` where a stage has fewer videos than there are processes.

    >>> requests = [Request(video, 0, video) for video in range(5)]
    >>> [[request.video for request in share_of(Step([], requests), rank, 2).query] for rank in (0, 1)]
    [[0, 1], [2, 3, 4]]
    """
    if not 0 <= rank < ranks:
        raise MCNError(f"rank {rank} of {ranks}: ranks count from 0")
    if any(0 < len(stage) < ranks for stage in step):
        raise MCNError(f"--batch_size {len(step.query)} is less than a video for each of {ranks} processes")
    return Step(*(stage[rank * len(stage) // ranks : (rank + 1) * len(stage) // ranks] for stage in step))


def steps_since(
    num_videos: int,
    batch_size: int,
    done: int,
    seed: int,
    stages: bool,
    *,
    redraw: bool = True,
    query_only: bool = False,
) -> list[int | None]:
    """For each video, the steps since the plan last took it, after ``done`` steps: 0 is the last step.

    That is the age of its row in the bank. ``query_only`` leaves support halves out, which then write no
    rows; None is a video that was never taken.

    >>> ages = steps_since(4, 2, done=2, seed=0, stages=False)
    >>> sorted(ages), steps_since(2, 2, done=0, seed=0, stages=False)
    ([0, 0, 1, 1], [None, None])
    """
    per_epoch = steps_per_epoch(num_videos, batch_size, stages)
    ages: list[int | None] = [None] * num_videos
    for epoch in reversed(range(-(-done // per_epoch))):
        steps = epoch_plan(num_videos, batch_size, epoch, seed, stages, redraw)
        for number in reversed(range(min(per_epoch, done - epoch * per_epoch))):
            age = done - 1 - (epoch * per_epoch + number)
            for request in steps[number].query + ([] if query_only else steps[number].support):
                if ages[request.video] is None:
                    ages[request.video] = age
        if None not in ages:
            break
    return ages
