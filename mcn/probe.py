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
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mcn.checkpoint import own_checkpoint
from mcn.classify import Start, checked, continued, evaluate, fit, how_tested, report, starting_point
from mcn.clip_features import VIEWS, made_of
from mcn.config import ProbeConfig
from mcn.data.datasets import Videos
from mcn.distributed import Ranks, join_ranks
from mcn.errors import MCNError
from mcn.features import Features, features_of_lists
from mcn.files import write_text
from mcn.holdout import hold_out, labelled_lists, part_of
from mcn.metrics import Evaluation
from mcn.run import RunFolder, choose_device
from mcn.targets import MEANING, Question, questions

_HEAD = {"normalise": True}


@dataclass(frozen=True)
class Probe:
    """Accuracies of the quick probe in per cent, over all test videos."""

    top1: float
    train_top1: float
    videos: int
    chance: float
    c: float
    right: tuple[bool, ...]  #: which test videos, in the order of the list

    def summary(self) -> dict[str, float]:
        """The numbers without the list."""
        return {name: value for name, value in vars(self).items() if name != "right"}


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
    right = _right(probe, test, range(len(test.x)))
    return Probe(
        top1=_per_cent(right),
        train_top1=_per_cent(_right(probe, train, rows)),
        videos=len(test.x),
        chance=100.0 / len(test.videos.classes),
        c=c,
        right=tuple(right.tolist()),
    )


def _regression(train: Features, rows: Sequence[int] | np.ndarray, c: float) -> Pipeline:
    """Logistic regression fitted to some rows' features."""
    x, y = train.x.numpy()[rows], train.labels.numpy()[rows]
    if len(set(y)) < 2:
        raise MCNError(f"{train.videos.folder} has fewer than two classes: a probe has nothing to tell apart")
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(x, y)


def _right(probe: Pipeline, features: Features, rows: Sequence[int] | np.ndarray) -> NDArray[np.bool_]:
    """Which of ``rows`` the probe gets right, unreadable ones wrong."""
    rows = np.asarray(rows)
    right = features.readable.numpy()[rows]
    known = rows[right]
    if len(known):
        right[right] = probe.predict(features.x.numpy()[known]) == features.labels.numpy()[known]
    return right


def _per_cent(right: NDArray[np.bool_]) -> float:
    return 100.0 * float(right.sum()) / len(right)


def choose_c(train: Features, values: Sequence[float], share: float, seed: int = 0) -> Sweep:
    """Fit the quick probe to a part of the training list with each ``c``, score it on the rest.

    The best of them is :eq:`eq-transfer-sweep`. See :func:`mcn.holdout.hold_out` for ``share`` and ``seed``.
    """
    kept, held = hold_out(train.videos, share, seed)
    fitted = [row for row in kept if train.readable[row]]
    top1 = tuple(_per_cent(_right(_regression(train, fitted, c), train, held)) for c in values)
    return Sweep(tuple(values), top1, len(kept), len(held))


def run_probe(config: ProbeConfig, target: str = "class") -> Probe:
    """The quick probe as a config describes it: extract both lists' features, choose ``c``, fit, score.

    ``target`` is what is asked for (:func:`mcn.targets.questions`). Raises :class:`~mcn.errors.MCNError`
    without a test list or labels, before a feature is computed, and for a target that the data has not.
    """
    if target != "class" and config.sweep:
        raise MCNError(f"--sweep chooses by classes, and --target is {target}: give --c instead")
    ranks = join_ranks(config.device)
    train, test = features_of_lists(config, ranks=ranks)
    if target == "class":
        return ranks.on_first(lambda: _fitted(config, train, test))
    return ranks.on_first(lambda: probe_of(questions(target, train, test), config.c))


def probe_of(asked: Sequence[Question], c: float = 1.0) -> Probe:
    """The quick probe of several questions, each with a fit of its own: all answers together.

    ``chance`` is the mean over the videos that are scored.
    """
    probes = [linear_probe(*question, c) for question in asked]
    videos, fitted = [len(each.test.x) for each in asked], [len(each.train.x) for each in asked]
    right = tuple(hit for probe in probes for hit in probe.right)
    return Probe(
        top1=_per_cent(np.array(right)),
        train_top1=float(np.average([probe.train_top1 for probe in probes], weights=fitted)),
        videos=len(right),
        chance=float(np.average([probe.chance for probe in probes], weights=videos)),
        c=c,
        right=right,
    )


def _fitted(config: ProbeConfig, train: Features, test: Features) -> Probe:
    c = config.c
    if config.sweep:
        sweep = choose_c(train, config.sweep, config.holdout, config.seed)
        print(f"chosen: {sweep.line('c')}")
        c = sweep.chosen
    return linear_probe(train, test, c)


def headline_probe(config: ProbeConfig) -> tuple[Path, Evaluation]:
    """The headline probe: train the layer, continuing where a run in the same folder stopped, then test it.

    Gives the run folder and what was found. Raises :class:`~mcn.errors.MCNError` without a test list, and
    for joined views or conv5 features, which it has not.
    """
    if config.view not in VIEWS or config.feature != "pooled":
        asked = f"--view {config.view} --feature {config.feature}"
        raise MCNError(f"{asked}: --recipe headline reads the pooled feature of one view")
    ranks = join_ranks(config.device, config.out)
    train, test = labelled_lists(config)
    penalty, start = config.weight_decay, None
    if config.sweep:
        kept, _ = hold_out(train, config.holdout, config.seed)
        config, start = _opened(checked(config, part_of(train, kept), _HEAD, ranks), ranks)
        penalty = choose_weight_decay(config, train, ranks, start).chosen
    run, training = fit(config, train, _HEAD, ranks, frozen=True, penalties=(penalty,), start=start)
    (found,) = evaluate(training.model, test, config, run.device, "test", ranks)
    about = {"start": training.start.origin, "protocol": protocol(config), "weight_decay": penalty}
    report(run, found, **about)
    return run.path, found


def _opened(config: ProbeConfig, ranks: Ranks) -> tuple[ProbeConfig, Start]:
    """The config with its run's folder, which the sweep lies in, and what the run and its sweep start from.

    No folder is made where it could not start. What goes on starts from its own checkpoint or its sweep's.
    """
    own = [config.out, config.out and f"{config.out}/sweep"]
    known = next(filter(None, map(own_checkpoint, own)), None)
    start = None if known else starting_point(config, choose_device(config.device))
    run = RunFolder(config, "probe", ranks)
    config = dataclasses.replace(config, out=str(run.path))
    return config, start or continued(str(known), run.device)


def choose_weight_decay(
    config: ProbeConfig,
    train: Videos,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    start: Start | None = None,
) -> Sweep:
    """Train a head with each weight decay on a part of the training list, score them on the rest.

    All at once, on the same features: the backbone is frozen. The run is ``sweep/`` in the config's
    folder, the result ``sweep.json`` there, which is used again where it is. ``start`` is its start, where it
    is at hand already.
    """
    path = Path(config.out) / "sweep.json"
    if text := ranks.on_first(lambda: path.read_text() if path.exists() else ""):
        known = json.loads(text)
        sweep = Sweep(tuple(known["values"]), tuple(known["top1"]), known["trained_on"], known["held_out"])
    else:
        kept, held = hold_out(train, config.holdout, config.seed)
        own = dataclasses.replace(config, out=str(Path(config.out) / "sweep"))
        run, training = fit(
            own, part_of(train, kept), _HEAD, ranks, frozen=True, penalties=config.sweep, start=start
        )
        found = evaluate(training.model, part_of(train, held), own, run.device, "held-out", ranks)
        sweep = Sweep(config.sweep, tuple(each.top1 for each in found), len(kept), len(held))
        if ranks.first:
            text = json.dumps({**dataclasses.asdict(sweep), "chosen": sweep.chosen}, indent=2) + "\n"
            write_text(path, text)
    print(f"chosen: {sweep.line('weight_decay')}")
    return sweep


def protocol(config: ProbeConfig, c: float | None = None, target: str = "class") -> str:
    """What a number of this config was measured by, shown beside it; ``c`` is what a sweep has chosen.

    >>> print(protocol(ProbeConfig()).replace("; ", ";\\n"))
    quick probe: logistic regression (C = 1) on standardised frozen features;
    pooled features, mean of 10 clips of 32 frames, stride 1, 128 pixels, centre crop, rgb;
    split 1
    """
    if config.recipe == "quick":
        chosen = config.c if c is None else c
        how = ", chosen on held-out training videos" if config.sweep else ""
        asked = f"; {MEANING[target]}" if MEANING[target] else ""
        return (
            f"quick probe: logistic regression (C = {chosen:g}{how}) on standardised frozen features; "
            f"{made_of(config)}; split {config.split}{asked}"
        )
    return (
        "headline probe: frozen backbone in eval mode, L2, BatchNorm and fc trained on random clips, "
        f"{config.epochs} epochs; {how_tested(config)}"
    )
