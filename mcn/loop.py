"""The loop that pre-training and fine-tuning share: steps in order, records kept, resumed exactly.

It knows nothing of losses; a :class:`Trainer` does one step.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

import torch
from tqdm import tqdm

from mcn.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from mcn.data.augment import AugmentConfig
from mcn.data.bad import BadVideos
from mcn.data.datasets import Videos
from mcn.data.loader import Clip, TrainClips, train_steps
from mcn.data.plan import Step, epoch_plan, share_of, steps_per_epoch
from mcn.distributed import Ranks
from mcn.errors import MCNError
from mcn.optim import learning_rate
from mcn.run import RunFolder, progress_bar, seed_for
from mcn.settings import LoopConfig

C = TypeVar("C", bound=LoopConfig)


class Trainer(Protocol):
    """What is trained, one step at a time."""

    def step(self, support: list[Clip], query: list[Clip], number: int, lr: float) -> dict[str, float]:
        """Do step ``number`` at rate ``lr`` on this process's clips; gives what to log, the loss first.

        On several processes each gives the same and ends in the same state. Raises ``FloatingPointError``
        for a loss or gradient that is not finite, on all of them, with nothing changed.
        """

    def watch(self, epoch: int) -> dict[str, float]:
        """More to log after a whole epoch, say an evaluation; may be empty."""

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs but the number of steps."""

    def load(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""


def train(
    trainer: Trainer,
    run: RunFolder,
    videos: Videos,
    config: LoopConfig,
    *,
    stages: bool = False,
    redraw: bool = True,
    flow: str | None = None,
) -> None:
    """Train to the end of ``config.epochs``, from the run's newest checkpoint if it has one.

    ``stages`` gives each step a support batch beside the query batch (protocol row 20), ``redraw``
    draws the halves anew each epoch, ``flow`` names the stored flow to read. On several processes (the
    run's) each reads and computes its part of every batch, and the first alone keeps records. Raises
    :class:`~mcn.errors.MCNError` for too many unreadable videos, a loss that is not finite (the last good
    checkpoint is kept), a full disk.
    """
    print(videos.announced(config.size))
    ranks = run.ranks
    ranks.agree(f"training videos in {config.data}", (len(videos), seed_for(*videos.names)))
    per_epoch = checked_steps(len(videos), config.batch_size, stages)
    total = per_epoch * config.epochs
    bad = BadVideos(len(videos), config.max_bad)
    done = _resume(trainer, run, bad)
    run.rewind_metrics(done)

    dataset = training_clips(videos, config, flow)
    steps = _plan(config, len(videos), per_epoch, done, stages, redraw)
    plan = (share_of(step, ranks.rank, ranks.size) for step in steps)
    clips = train_steps(dataset, plan, config.workers, pin=run.device.type == "cuda")
    with progress_bar(total, done, run.path.name, shown=ranks.first) as bar:
        last = time.perf_counter()
        for number, (support, query) in enumerate(clips, start=done):
            for line in _told(ranks, bad, videos, support + query):
                bar.write(line)
            lr = learning_rate(config, number, total)
            try:
                numbers = trainer.step(support, query, number, lr)
            except FloatingPointError as error:
                raise MCNError(_diverged(str(error), number, lr, run)) from error
            done, now = number + 1, time.perf_counter()
            rate, last = config.batch_size * (2 if stages else 1) / (now - last), now
            if done % per_epoch == 0:
                numbers |= trainer.watch(done // per_epoch)
            run.log(done, epoch=number // per_epoch, lr=lr, **numbers, clips_per_second=round(rate, 2))
            _show(bar, numbers, rate)
            if ranks.first and (done % config.checkpoint_every == 0 or done == total):
                state = {"step": done, "bad_videos": bad.seen, **trainer.state()}
                save_checkpoint(run.checkpoints, done, state, config.keep)
    for line in bad.summary():
        tqdm.write(line)
    run.close()


def training_clips(videos: Videos, config: LoopConfig, flow: str | None = None) -> TrainClips:
    """The clips that a run with these settings draws; ``flow`` names the stored flow to read."""
    return TrainClips(
        videos,
        frames=config.frames,
        stride=config.stride,
        reader=config.reader,
        augment=AugmentConfig(size=config.size) if config.augment else None,
        flow=flow,
        seed=config.seed,
        timeout=config.read_timeout,
    )


def shares_for(config: C, ranks: Ranks, why: str = "") -> C:
    """The config with its number of shares said: as many as there are processes, if it is not.

    Raises :class:`~mcn.errors.MCNError` where processes would have unequal numbers of them, and for a
    share without a video; with a reason ``why``, for one with fewer than two.
    """
    shares, least = config.shares or ranks.size, 2 if why else 1
    if shares % ranks.size:
        raise MCNError(
            f"--shares {shares} on {ranks.size} processes: each takes as many shares, "
            f"so give a multiple of {ranks.size}"
        )
    if config.batch_size // shares < least:
        each = f"each of {shares} shares" if shares > 1 else "a batch"
        raise MCNError(
            f"--batch_size {config.batch_size}: {f'{why}, so ' if why else ''}{each} needs at least {least}"
        )
    return dataclasses.replace(config, shares=shares)


def checked_steps(num_videos: int, batch_size: int, stages: bool) -> int:
    """Steps an epoch. Raises :class:`~mcn.errors.MCNError` where the videos do not fill a single one."""
    per_epoch = steps_per_epoch(num_videos, batch_size, stages)
    if per_epoch == 0:
        halves = 2 if stages else 1
        mend = f"lower --batch_size {batch_size} to {num_videos // halves}"
        if num_videos < halves:
            mend = f"a step takes {halves} at least"
        raise MCNError(
            f"{num_videos} training videos are fewer than a step needs ({batch_size * halves}): {mend}"
        )
    return per_epoch


def _resume(trainer: Trainer, run: RunFolder, bad: BadVideos) -> int:
    """Take up the run's newest checkpoint, if any; gives the number of steps done.

    Several processes begin with the state of the first, whatever they would have begun with.
    """
    ranks, place = run.ranks, run.device if run.ranks.size == 1 else "cpu"

    def state() -> dict[str, Any]:
        if run.resumed is not None:
            return load_checkpoint(run.resumed, place)
        return {"step": 0, "bad_videos": {}, **_on_cpu(trainer.state())}

    if run.resumed is None and ranks.size == 1:
        return 0
    begun = ranks.on_first(state)
    bad.seen.update(begun["bad_videos"])
    trainer.load(begun)
    return int(begun["step"])


def _on_cpu(state: Any) -> Any:
    """A nested state whose tensors can travel between processes."""
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    return state.cpu() if isinstance(state, torch.Tensor) else state


def _told(ranks: Ranks, bad: BadVideos, videos: Videos, clips: list[Clip]) -> list[str]:
    """Lines for what the clips of all processes say of videos that are not sound."""
    own = [(clip.bad, videos.names[clip.video], clip.damage) for clip in clips if clip.bad or clip.damage]
    lines = []
    for news in ranks.objects(own):
        for failed, name, damage in news:
            lines += bad.report(failed) + bad.note(name, damage)
    return lines


def _plan(
    config: LoopConfig, num_videos: int, per_epoch: int, done: int, stages: bool, redraw: bool
) -> Iterator[Step]:
    """The steps still to do: whole epochs, the first from where the run stopped."""
    for epoch in range(done // per_epoch, config.epochs):
        steps = epoch_plan(num_videos, config.batch_size, epoch, config.seed, stages, redraw)
        yield from steps[done % per_epoch if epoch == done // per_epoch else 0 :]


def _show(bar: "tqdm[Any]", numbers: dict[str, float], rate: float) -> None:
    shown = {name: f"{value:.2f}" for name, value in numbers.items()}
    bar.set_postfix({**shown, "clips/s": f"{rate:.0f}"}, refresh=False)
    bar.update()


def _diverged(what: str, step: int, lr: float, run: RunFolder) -> str:
    """One line for a run that has diverged: what, where, what to do, what is left."""
    kept = latest_checkpoint(run.checkpoints)
    return f"step {step}: {what} at learning rate {lr:g}. Lower --lr (or --inner_lr), or add --warmup. " + (
        f"The last good checkpoint is {kept}" if kept else "No checkpoint had been written yet"
    )
