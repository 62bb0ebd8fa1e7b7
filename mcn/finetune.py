"""Supervised fine-tuning of a backbone with a new classifier, and prediction (paper, Tables 1, 7, 8).

RGB, random clips in training, the mean of the softmax over evenly spread clips in testing (protocol
rows 39 to 42). From scratch is the same run on a backbone that was never pre-trained.
"""

from pathlib import Path
from typing import NamedTuple

from mcn._weights import require
from mcn.checkpoint import load_checkpoint
from mcn.classify import (
    Config,
    answered_by,
    clip_probabilities,
    evaluate,
    fit,
    how_tested,
    load_classifier,
    report,
)
from mcn.config import FinetuneConfig, ProbeConfig, build
from mcn.data.loader import clips_of_file
from mcn.distributed import join_ranks
from mcn.errors import MCNError
from mcn.holdout import videos_of
from mcn.metrics import Evaluation
from mcn.run import choose_device


def protocol(config: FinetuneConfig) -> str:
    """What a number of this config was measured by, shown beside it."""
    start = "trained from scratch" if config.from_scratch else "fine-tuned, all parameters"
    return f"{start}, {config.epochs} epochs; {how_tested(config)}"


def finetune(config: FinetuneConfig) -> tuple[Path, Evaluation | None]:
    """Train a classifier, continuing where a run in the same folder stopped, then test it.

    Gives the run folder and what was found on the test list (``None`` without one). Under ``torchrun`` all
    processes train it together (:mod:`mcn.distributed`). A run is continued
    from its own checkpoint alone. Raises :class:`~mcn.errors.MCNError` as :func:`mcn.pretrain.pretrain`
    does, and for a config that names neither a checkpoint nor ``from_scratch``, or both.
    """
    if config.from_scratch and config.checkpoint:
        raise MCNError(f"--from_scratch and --checkpoint {config.checkpoint}: a run starts from one of them")
    if not config.from_scratch and not config.checkpoint:
        raise MCNError(
            "no --checkpoint: give the run folder of mcn pretrain, or --from_scratch to train without one"
        )
    ranks = join_ranks(config.device, config.out)
    videos, test = (videos_of(config, subset) for subset in ("train", "test"))
    if not len(test):
        print(f"{config.data} has no test list: a network is trained, and not tested")
    run, training = fit(config, videos, {"dropout": config.dropout}, ranks)
    if not len(test):
        return run.path, None
    (found,) = evaluate(training.model, test, config, run.device, "test", ranks)
    report(run, found, start=training.start.origin, protocol=protocol(config))
    return run.path, found


class Prediction(NamedTuple):
    """Classes of a video with their probabilities, most probable first, and what these were made of."""

    classes: list[tuple[str, float]]
    protocol: str


def predict(video: str | Path, checkpoint: str | Path, device: str = "auto") -> Prediction:
    """Classes of one video file by a fine-tuned network or a probe.

    ``checkpoint`` is one of ``mcn finetune`` or ``mcn probe --recipe headline``. Raises
    :class:`~mcn.errors.MCNError` for another, or a video that cannot be read.
    """
    place = choose_device(device)
    state = load_checkpoint(checkpoint, place)
    if "classes" not in state:
        raise MCNError(
            f"{checkpoint} is not fine-tuned: `mcn finetune` writes checkpoints that know their classes"
        )
    require(state, ("backbone", "head"), checkpoint)
    probe = "recipe" in state["config"]
    config: Config = build(ProbeConfig, state["config"]) if probe else build(FinetuneConfig, state["config"])
    model = load_classifier(state, place)
    raw, _ = clips_of_file(
        video, frames=config.frames, stride=config.stride, clips=config.clips,
        reader=config.reader, timeout=config.read_timeout,
    )  # fmt: skip
    mean = clip_probabilities(model, raw, config, place)[0].mean(0)
    order = mean.argsort(descending=True).tolist()
    return Prediction([(state["classes"][i], mean[i].item()) for i in order], answered_by(config))
