"""Linear probe (paper, Table 2): how well a linear classifier reads classes off frozen features.

This is the quick probe: multinomial logistic regression (scikit-learn) on cached, clip-averaged
features, standardised on the training list. It is not comparable with the paper's numbers, which
train the layer on augmented clips (protocol row 43).
"""

from dataclasses import dataclass

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mcn.config import ProbeConfig
from mcn.errors import MCNError
from mcn.features import Features, features_of

#: Shown beside every number.
PROTOCOL = "quick probe: logistic regression on clip-averaged frozen features"


@dataclass(frozen=True)
class Probe:
    """Accuracies in per cent, over all test videos."""

    top1: float
    train_top1: float
    videos: int
    chance: float


def linear_probe(train: Features, test: Features, c: float = 1.0) -> Probe:
    """Fit on ``train``, score on ``test``; an unreadable test video counts as wrong.

    ``c`` is scikit-learn's inverse penalty. Raises :class:`~mcn.errors.MCNError` for fewer than two classes.
    """
    x, y = train.x[train.readable].numpy(), train.labels[train.readable].numpy()
    if len(set(y)) < 2:
        raise MCNError(f"{train.videos.folder} has fewer than two classes: a probe has nothing to tell apart")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(x, y)
    right = (probe.predict(test.x[test.readable].numpy()) == test.labels[test.readable].numpy()).sum()
    return Probe(
        top1=100.0 * float(right) / len(test.x),
        train_top1=100.0 * float(probe.score(x, y)),
        videos=len(test.x),
        chance=100.0 / len(test.videos.classes),
    )


def run_probe(config: ProbeConfig) -> Probe:
    """Extract both lists' features and probe them."""
    train = features_of(config, "train")
    return linear_probe(train, features_of(config, "test"), config.c)
