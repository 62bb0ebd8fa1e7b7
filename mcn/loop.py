"""The loop that pre-training and fine-tuning share: steps in order, records kept, resumed exactly.

It knows nothing of losses; a :class:`Trainer` does one step.
"""

import time
from collections.abc import Iterator
from typing import Any, Protocol

from tqdm import tqdm

from mcn.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from mcn.data.augment import AugmentConfig
from mcn.data.bad import BadVideos
from mcn.data.datasets import Videos
from mcn.data.loader import Clip, TrainClips, train_steps
from mcn.data.plan import Step, epoch_plan, steps_per_epoch
from mcn.errors import MCNError
from mcn.optim import learning_rate
from mcn.run import RunFolder, progress_bar
from mcn.settings import LoopConfig


class Trainer(Protocol):
    """What is trained, one step at a time."""

    def step(self, support: list[Clip], query: list[Clip], number: int, lr: float) -> dict[str, float]:
        """Do step ``number`` at rate ``lr``; gives what to log, the loss first.

        Raises ``FloatingPointError`` for a loss or gradient that is not finite, with nothing changed.
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
    draws the halves anew each epoch, ``flow`` names the stored flow to read. Raises
    :class:`~mcn.errors.MCNError` for too many unreadable videos, a loss that is not finite (the last good
    checkpoint is kept), a full disk.
    """
    print(videos.announced(config.size))
    per_epoch = checked_steps(len(videos), config.batch_size, stages)
    total = per_epoch * config.epochs
    bad = BadVideos(len(videos), config.max_bad)
    done = _resume(trainer, run, bad)
    run.rewind_metrics(done)

    dataset = training_clips(videos, config, flow)
    plan = _plan(config, len(videos), per_epoch, done, stages, redraw)
    clips = train_steps(dataset, plan, config.workers, pin=run.device.type == "cuda")
    with progress_bar(total, done, run.path.name) as bar:
        last = time.perf_counter()
        for number, (support, query) in enumerate(clips, start=done):
            for clip in support + query:
                for line in bad.report(clip.bad) + bad.note(videos.names[clip.video], clip.damage):
                    bar.write(line)
            lr = learning_rate(config, number, total)
            try:
                numbers = trainer.step(support, query, number, lr)
            except FloatingPointError as error:
                raise MCNError(_diverged(str(error), number, lr, run)) from error
            done, now = number + 1, time.perf_counter()
            rate, last = len(support + query) / (now - last), now
            if done % per_epoch == 0:
                numbers |= trainer.watch(done // per_epoch)
            run.log(done, epoch=number // per_epoch, lr=lr, **numbers, clips_per_second=round(rate, 2))
            _show(bar, numbers, rate)
            if done % config.checkpoint_every == 0 or done == total:
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


def checked_steps(num_videos: int, batch_size: int, stages: bool) -> int:
    """Steps an epoch. Raises :class:`~mcn.errors.MCNError` where the videos do not fill a single one."""
    per_epoch = steps_per_epoch(num_videos, batch_size, stages)
    if per_epoch == 0:
        need = batch_size * (2 if stages else 1)
        raise MCNError(
            f"{num_videos} training videos are fewer than a step needs ({need}): "
            f"lower --batch_size {batch_size}"
        )
    return per_epoch


def _resume(trainer: Trainer, run: RunFolder, bad: BadVideos) -> int:
    """Take up the run's newest checkpoint, if any; gives the number of steps done."""
    if run.resumed is None:
        return 0
    state = load_checkpoint(run.resumed, run.device)
    bad.seen.update(state["bad_videos"])
    trainer.load(state)
    return int(state["step"])


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
