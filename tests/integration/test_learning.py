"""Does it learn? The demo's comparison, held to margins, with a control that must miss them.

``make test`` runs the demo's own settings on one seed, ``make learn`` on three, about 20 minutes on two
cores. (Half the demo's epochs were not enough: there contrast was ahead of the control by 9.6 points on one
kind of processor, whose rounding differs, and by more than the 10 asked for on another.)
"""

import dataclasses
from pathlib import Path

import pytest

from mcn.config import EvalConfig, PretrainConfig, build, load_preset
from mcn.demo import DATA, NETWORKS
from mcn.features import features_of
from mcn.preparation.synthetic import write_synthetic_actions
from mcn.pretrain import pretrain
from mcn.probe import linear_probe

# The preset's step sizes were chosen on seeds 0 to 4, so those are not used to prove it.
SEEDS = (5, 6, 7)
CONTROL = {"order": "none", "cls_weight": 0.0, "shuffle_views": True}


def probe_of(data: Path, out: Path, settings: dict[str, object] | None, seed: int) -> float:
    """Linear probe top-1 of a network pre-trained with the laptop preset and ``settings``."""
    checkpoint = ""
    if settings is not None:
        asked = {**load_preset("laptop", "pretrain"), **settings, "seed": seed}
        checkpoint = str(pretrain(build(PretrainConfig, {**asked, "data": str(data), "out": str(out)})))
    asked = {**load_preset("laptop", "probe"), "data": str(data), "checkpoint": checkpoint, "seed": seed}
    config = build(EvalConfig, asked)
    return linear_probe(features_of(config, "train"), features_of(config, "test")).top1


def compare(folder: Path, seed: int) -> None:
    """Train contrast, MCN and the control; hold each to its margin over the untrained network."""
    data = write_synthetic_actions(folder / "data", dataclasses.replace(DATA["laptop"], seed=seed))
    networks = {**NETWORKS, "control": CONTROL}
    top1 = {name: probe_of(data, folder / name, its, seed) for name, its in networks.items()}
    print(f"seed {seed}: " + ", ".join(f"{name} {value:.1f}" for name, value in top1.items()))
    assert top1["contrast only"] >= top1["untrained"] + 10
    assert top1["full MCN"] >= top1["untrained"] + 5
    # The control is contrast with the views of other videos: it must miss contrast's own margin.
    assert top1["control"] < top1["untrained"] + 10
    assert top1["control"] <= top1["contrast only"] - 10


def test_it_learns(tmp_path: Path) -> None:
    compare(tmp_path, SEEDS[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_demo_learns_on_every_seed(tmp_path: Path, seed: int) -> None:
    compare(tmp_path, seed)
