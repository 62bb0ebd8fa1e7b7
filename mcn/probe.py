"""Linear probe (paper, Tables 2 and 6): how well a linear classifier reads classes off frozen features.

Two recipes (protocol row 43). *headline* is CoCLR's, to be set beside the paper's numbers: the backbone
is frozen in eval mode; random augmented clips, L2-normalised features, BatchNorm, one layer without
dropout, SGD at .1 with momentum .9 and decay .001 for 100 epochs, times .1 at 60 and 80, batches of 64.
Three things differ from CoCLR's code: clips are augmented as in all of the paper's stages (CoCLR's probe
has no blur, and colour jitter for 30 % of clips); the last epoch counts (CoCLR keeps the best on test
data); the test is that of row 41 (CoCLR's has ten crops, 30 % of them with colour jitter).

*quick* is multinomial logistic regression (scikit-learn) on cached, clip-averaged features, standardised on
the training list; it is **not comparable** with the paper's numbers.

Either can choose its penalty among several on a held-out part of the training list, never on the test list.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mcn.classify import evaluate, fit, how_tested, report, starting_point
from mcn.clip_features import VIEWS
from mcn.config import ProbeConfig
from mcn.data.datasets import Videos
from mcn.errors import MCNError
from mcn.features import Features, features_of
from mcn.files import write_text
from mcn.holdout import hold_out, part_of
from mcn.metrics import Evaluation
from mcn.retrieval import labelled_lists
from mcn.run import RunFolder, choose_device

#: Shown beside every number of the quick probe.
PROTOCOL = "quick probe: logistic regression on clip-averaged frozen features"
_HEAD = {"normalise": True}


@dataclass(frozen=True)
class Probe:
    """Accuracies of the quick probe in per cent, over all test videos."""

    top1: float
    train_top1: float
    videos: int
    chance: float
    c: float


@dataclass(frozen=True)
class Sweep:
    """Per cent right on held-out training videos for each value of a penalty, and the best value.

    Of equals the one that was named first.
    """

    values: tuple[float, ...]
    top1: tuple[float, ...]
    trained_on: int
    held_out: int

    @property
    def chosen(self) -> float:
        """The value with the best ``top1``."""
        return self.values[self.top1.index(max(self.top1))]

    def line(self, name: str) -> str:
        """What to print of it."""
        tried = ", ".join(f"{v:g}: {top1:.1f} %" for v, top1 in zip(self.values, self.top1, strict=True))
        return f"{name} {self.chosen:g} of {tried} (on {self.held_out} held-out training videos)"


def linear_probe(train: Features, test: Features, c: float = 1.0) -> Probe:
    """The quick probe (:eq:`eq-probe`): fit on ``train``, score on ``test``; an unreadable video is wrong.

    ``c`` is scikit-learn's inverse penalty. Raises :class:`~mcn.errors.MCNError` for fewer than two classes.
    """
    rows = np.flatnonzero(train.readable.numpy())
    probe = _regression(train, rows, c)
    return Probe(
        top1=_right(probe, test, range(len(test.x))),
        train_top1=_right(probe, train, rows),
        videos=len(test.x),
        chance=100.0 / len(test.videos.classes),
        c=c,
    )


def _regression(train: Features, rows: Sequence[int] | np.ndarray, c: float) -> Pipeline:
    """Logistic regression fitted to some rows' features."""
    x, y = train.x.numpy()[rows], train.labels.numpy()[rows]
    if len(set(y)) < 2:
        raise MCNError(f"{train.videos.folder} has fewer than two classes: a probe has nothing to tell apart")
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(x, y)


def _right(probe: Pipeline, features: Features, rows: Sequence[int] | np.ndarray) -> float:
    """Per cent of ``rows`` that the probe gets right, unreadable ones wrong."""
    known = [row for row in rows if features.readable[row]]
    if not known:
        return 0.0
    right = probe.predict(features.x.numpy()[known]) == features.labels.numpy()[known]
    return 100.0 * float(right.sum()) / len(rows)


def choose_c(train: Features, values: Sequence[float], share: float, seed: int = 0) -> Sweep:
    """Fit the quick probe to a part of the training list with each ``c``, score it on the rest.

    The best of them is :eq:`eq-transfer-sweep`. See :func:`mcn.holdout.hold_out` for ``share`` and ``seed``.
    """
    kept, held = hold_out(train.videos, share, seed)
    fitted = [row for row in kept if train.readable[row]]
    top1 = tuple(_right(_regression(train, fitted, c), train, held) for c in values)
    return Sweep(tuple(values), top1, len(kept), len(held))


def run_probe(config: ProbeConfig) -> Probe:
    """The quick probe as a config describes it: extract both lists' features, choose ``c``, fit, score.

    Raises :class:`~mcn.errors.MCNError` without a test list or labels, before a feature is computed.
    """
    labelled_lists(config)
    train, c = features_of(config, "train"), config.c
    if config.sweep:
        sweep = choose_c(train, config.sweep, config.holdout, config.seed)
        print(f"chosen: {sweep.line('c')}")
        c = sweep.chosen
    return linear_probe(train, features_of(config, "test"), c)


def headline_probe(config: ProbeConfig) -> tuple[Path, Evaluation]:
    """The headline probe: train the layer, continuing where a run in the same folder stopped, then test it.

    Gives the run folder and what was found. Raises :class:`~mcn.errors.MCNError` without a test list, and
    for joined views or conv5 features, which it has not.
    """
    if config.view not in VIEWS or config.feature != "pooled":
        asked = f"--view {config.view} --feature {config.feature}"
        raise MCNError(f"{asked}: --recipe headline reads the pooled feature of one view")
    if config.batch_size < 2:
        raise MCNError(f"--batch_size {config.batch_size}: BatchNorm takes at least 2 videos a batch")
    train, test = labelled_lists(config)
    penalty, after = config.weight_decay, None
    if config.sweep:
        config = dataclasses.replace(config, out=str(_opened(config)))
        penalty, after = choose_weight_decay(config, train).chosen, Path(config.out) / "sweep"
    run, training = fit(config, train, _HEAD, frozen=True, penalties=(penalty,), after=after)
    (found,) = evaluate(training.model, test, config, run.device)
    about = {"start": training.start.origin, "protocol": protocol(config), "weight_decay": penalty}
    report(run, found, **about)
    return run.path, found


def _opened(config: ProbeConfig) -> Path:
    """The run's folder, made before its sweep, which lies in it; not where it could not start."""
    if not (config.out and Path(config.out).is_dir()):
        starting_point(config, choose_device(config.device))
    return RunFolder(config, "probe").path


def choose_weight_decay(config: ProbeConfig, train: Videos) -> Sweep:
    """Train a head with each weight decay on a part of the training list, score them on the rest.

    All at once, on the same features: the backbone is frozen. The run is ``sweep/`` in the config's
    folder, the result ``sweep.json`` there, which is used again where it is.
    """
    path = Path(config.out) / "sweep.json"
    if path.exists():
        known = json.loads(path.read_text())
        sweep = Sweep(tuple(known["values"]), tuple(known["top1"]), known["trained_on"], known["held_out"])
    else:
        kept, held = hold_out(train, config.holdout, config.seed)
        own = dataclasses.replace(config, out=str(Path(config.out) / "sweep"))
        run, training = fit(own, part_of(train, kept), _HEAD, frozen=True, penalties=config.sweep)
        found = evaluate(training.model, part_of(train, held), own, run.device, "held-out")
        sweep = Sweep(config.sweep, tuple(each.top1 for each in found), len(kept), len(held))
        text = json.dumps({**dataclasses.asdict(sweep), "chosen": sweep.chosen}, indent=2) + "\n"
        write_text(path, text)
    print(f"chosen: {sweep.line('weight_decay')}")
    return sweep


def protocol(config: ProbeConfig) -> str:
    """What a number of this config was measured by, shown beside it."""
    if config.recipe == "quick":
        return f"{PROTOCOL}; {config.clips} clips, {config.view}, split {config.split}"
    return (
        "headline probe: frozen backbone in eval mode, L2, BatchNorm and fc trained on random clips, "
        f"{config.epochs} epochs; {how_tested(config)}"
    )
