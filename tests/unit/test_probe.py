"""The linear probe: what is frozen, what is trained, what chooses its penalty, and what cannot."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from mcn import classify, probe
from mcn.checkpoint import load_checkpoint
from mcn.classifier import Classifier, Head
from mcn.classify import Classification, Start
from mcn.config import ProbeConfig, load_preset
from mcn.data.datasets import Videos, load_videos
from mcn.errors import MCNError
from mcn.features import Features
from mcn.finetune import predict
from mcn.holdout import hold_out
from mcn.loading import load_network
from mcn.probe import Sweep, choose_c, headline_probe, linear_probe, run_probe

CPU = torch.device("cpu")


class AsItIs(nn.Identity):
    """A backbone for clips that are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_features = width


def planted(classes: int = 4, sources: int = 10, clips: int = 2, width: int = 12, seed: int = 0) -> Features:
    """Features of a class's mean, a source's own shift and noise, named as UCF101's."""
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, width, generator=draw)
    rows, names, labels = [], [], []
    for label in range(classes):
        for source in range(sources):
            shift = 1.5 * torch.randn(width, generator=draw)
            for clip in range(clips):
                rows.append(means[label] + shift + 0.1 * torch.randn(width, generator=draw))
                names.append(f"A{label}/v_A{label}_g{source:02d}_c{clip:02d}.avi")
                labels.append(label)
    classes_ = tuple(f"A{label}" for label in range(classes))
    return Features(torch.stack(rows), Videos(Path("data"), tuple(names), tuple(labels), classes_))


def training(
    features: Features, head: dict[str, Any], penalties: tuple[float, ...] = (), **settings: Any
) -> Classification:
    """A probe of given features, in float64."""
    start = Start(AsItIs(features.x.shape[1]), {}, "features")
    config = ProbeConfig(recipe="headline", **settings)
    made = Classification(config, features.videos, start, head, CPU, frozen=True, penalties=penalties)
    made.model.double()
    return made


def test_its_layer_converges_to_scikit_learns_logistic_regression() -> None:
    """Mean cross-entropy with decay 1 / (C n) on weights is scikit-learn's sum with C; biases are free."""
    features = planted()
    x, y = features.x.double(), features.labels
    for c in (0.05, 1.0):
        decay = 1 / (c * len(x))
        ours = training(features, {}, weight_decay=decay, decay_norm=False)
        for _ in range(800):
            said = ours.learn(x, y, lr=0.5)
        theirs = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x.numpy(), y.numpy())
        layer = ours.model.heads[0].fc
        assert layer.weight.detach().numpy() == pytest.approx(theirs.coef_, abs=1e-5)
        # A constant added to all biases changes no probability.
        bias = layer.bias.detach().numpy()
        assert bias - bias.mean() == pytest.approx(theirs.intercept_ - theirs.intercept_.mean(), abs=1e-5)
        logits = ours.model.eval()(x)[0]
        assert logits.softmax(1).detach().numpy() == pytest.approx(theirs.predict_proba(x.numpy()), abs=1e-6)
        assert said["top1"] == pytest.approx(100 * theirs.score(x.numpy(), y.numpy()))


def test_the_headline_head_is_coclrs() -> None:
    """L2, BatchNorm with scale 1 and shift 0 to learn, a small layer with zero biases, no dropout."""
    torch.manual_seed(0)
    head = Head(512, 101, normalise=True)
    assert [name for name, _ in head.named_parameters()] == [
        "norm.weight",
        "norm.bias",
        "fc.weight",
        "fc.bias",
    ]
    assert (head.norm.weight == 1).all()
    assert (head.norm.bias == 0).all()
    assert head.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (head.fc.bias == 0).all()
    assert head.dropout.p == 0
    x = torch.randn(16, 512)
    logits = head(x)
    assert torch.allclose(head(x * torch.rand(16, 1).add(0.1)), logits, atol=1e-5)  # only directions count
    unit = x / x.norm(dim=1, keepdim=True)
    normed = (unit - unit.mean(0)) / (unit.var(0, correction=0) + 1e-5).sqrt()
    assert torch.allclose(logits, normed @ head.fc.weight.T, atol=1e-5)


@pytest.mark.parametrize("backbone", ["r3d_18", "r2plus1d_18", "s3d"])
def test_the_headline_recipe_is_the_paper_presets(backbone: str) -> None:
    for settings in (load_preset(f"paper-{backbone}", "probe"), dataclasses.asdict(ProbeConfig())):
        known = {**dataclasses.asdict(ProbeConfig()), **settings}
        assert (known["lr"], known["epochs"], tuple(known["milestones"])) == (0.1, 100, (0.6, 0.8))
        assert (known["momentum"], known["weight_decay"], known["schedule"]) == (0.9, 0.001, "steps")
        assert (known["batch_size"], known["clips"], known["frames"], known["size"]) == (64, 10, 32, 128)
    assert load_preset(f"paper-{backbone}", "probe")["recipe"] == "headline"
    assert ProbeConfig().recipe == "quick"


def test_heads_beside_each_other_are_trained_as_alone() -> None:
    features, penalties = planted(), (0.0, 0.01, 1.0)
    x, y = features.x.double(), features.labels
    together = training(features, {"normalise": True}, penalties)
    alone = [training(features, {"normalise": True}, (penalty,)) for penalty in penalties]
    for step in range(20):
        rows = slice(step % 4 * 20, step % 4 * 20 + 20)
        for each in (together, *alone):
            each.learn(x[rows], y[rows], lr=0.1)
    weights = [head.fc.weight for head in together.model.heads]
    for head, other in zip(together.model.heads, alone, strict=True):
        for (name, one), two in zip(
            head.state_dict().items(), other.model.heads[0].state_dict().values(), strict=True
        ):
            assert torch.equal(one, two), name
    assert weights[0].norm() > weights[1].norm() > weights[2].norm()


def test_a_frozen_backbone_stays_in_eval_mode_and_gets_no_gradient() -> None:
    network, _ = load_network(ProbeConfig(backbone="r3d_small", width=4), CPU)
    model = Classifier(network.backbone(0), [Head(32, 3, normalise=True)], frozen=True).train()
    assert model.heads[0].norm.training
    assert not any(module.training for module in model.backbone.modules())
    model(torch.rand(2, 3, 4, 16, 16)).sum().backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.heads.parameters())


@pytest.fixture(scope="module")
def probed(
    smoke_config: Callable[..., Any], trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """A headline probe with a sweep, and its result."""
    config = smoke_config(
        "probe", out=tmp_path_factory.mktemp("probed") / "run", checkpoint=trained, recipe="headline",
        sweep=(0.0001, 0.01, 100.0), epochs=2, clips=1,
    )  # fmt: skip
    return headline_probe(config)


def test_the_headline_probe_moves_its_head_alone(probed: tuple[Path, Any], trained: Path) -> None:
    run, found = probed
    state, before = load_checkpoint(run), load_checkpoint(trained)["network"]
    own = {name: x for name, x in state["network"].items() if name.startswith("backbone.")}
    assert any("running_mean" in name for name in own)
    for name, tensor in own.items():  # running statistics too
        assert torch.equal(tensor, before[name.replace("backbone.", "backbones.0.", 1)]), name
    assert state["network"]["heads.0.norm.num_batches_tracked"] == 8  # 2 epochs of 4 steps
    assert len(state["optimizer"]["state"]) == 4  # BatchNorm's and the layer's
    result = json.loads((run / "test.json").read_text())
    assert result["videos"] == found.videos == 8
    assert result["top1"] == found.top1
    assert str(trained) in result["start"]
    assert "headline" in result["protocol"]
    for name in ("classes.json", "classes.csv", "confusion.csv"):
        assert (run / name).stat().st_size


def test_the_headline_probe_predicts(probed: tuple[Path, Any], action_data: Path) -> None:
    found, _ = predict(next(action_data.rglob("*.mp4")), probed[0], "cpu")
    assert sum(p for _, p in found) == pytest.approx(1)
    assert len(found) == 4


def test_a_probe_of_nothing_says_so(smoke_config: Callable[..., Any], tmp_path: Path) -> None:
    run, _ = headline_probe(smoke_config("probe", recipe="headline", out=tmp_path / "run", epochs=1, clips=1))
    assert "never pre-trained" in json.loads((run / "test.json").read_text())["start"]


def test_a_sweep_is_scored_on_sources_that_were_not_trained_on(
    smoke_config: Callable[..., Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists: dict[str, list[str]] = {"fit": [], "scored": []}
    fit, evaluate = classify.fit, classify.evaluate

    def fitting(config: Any, videos: Videos, *args: Any, **how: Any) -> Any:
        lists["fit"].append(",".join(videos.names))
        return fit(config, videos, *args, **how)

    def evaluating(model: Any, videos: Videos, *args: Any) -> Any:
        lists["scored"].append(",".join(videos.names))
        return evaluate(model, videos, *args)

    monkeypatch.setattr(probe, "fit", fitting)
    monkeypatch.setattr(probe, "evaluate", evaluating)
    config = smoke_config(
        "probe",
        recipe="headline",
        out=tmp_path / "run",
        checkpoint=trained,
        sweep=(0.1, 0.01),
        epochs=1,
        clips=1,
    )
    headline_probe(config)
    train, test = (load_videos(config.data, subset) for subset in ("train", "test"))
    kept, held = hold_out(train, 0.2)
    expected = [[train.names[row] for row in kept], list(train.names)]
    assert [each.split(",") for each in lists["fit"]] == expected
    assert lists["scored"] == [",".join(train.names[row] for row in held), ",".join(test.names)]


def damaged_test_list(data: Path) -> None:
    """Other pictures in every test video, and half of them gone from the list."""
    path = data / "splits" / "testlist01.txt"
    names = path.read_text().split()
    others = sorted(set(data.rglob("*.mp4")) - {data / "videos" / name for name in names})
    for name, other in zip(names, others[::-1], strict=False):
        (data / "videos" / name).write_bytes(other.read_bytes())
    path.write_text("".join(f"{name}\n" for name in names[::2]))


@pytest.mark.parametrize("recipe", ["quick", "headline"])
def test_the_test_list_cannot_influence_the_choice(
    recipe: str,
    smoke_config: Callable[..., Any],
    trained: Path,
    action_data: Path,
    own_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Other test videos, fewer of them: the same choice, to the last bit of every held-out accuracy."""
    damaged_test_list(own_data)
    chosen, results = [], []
    for data in (action_data, own_data):
        config = smoke_config(
            "probe", data=data, out=tmp_path / f"{recipe}-{data.name}", checkpoint=trained, recipe=recipe,
            sweep=(0.0001, 0.01, 1.0), epochs=1, clips=1, cache="none",
        )  # fmt: skip
        found = run_probe(config) if recipe == "quick" else headline_probe(config)[1]
        results.append(found.videos)
        chosen.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("chosen")])
        if recipe == "headline":
            chosen[-1].append((Path(config.out) / "sweep.json").read_text())
            state = load_checkpoint(config.out)["network"]
            chosen[-1] += [state["heads.0.fc.weight"].tolist(), state["heads.0.norm.running_var"].tolist()]
    assert results == [8, 4]  # the test lists do differ
    assert chosen[0] == chosen[1]
    assert "held-out training videos" in chosen[0][0]


def test_choosing_takes_nothing_but_the_training_list() -> None:
    """The quick probe's choice against a loop; the training rows of held-out sources are not fitted to."""
    train = planted(sources=12, width=40)
    values = (1e-4, 1e-2, 1.0, 1e3)
    found = choose_c(train, values, share=0.25, seed=3)
    kept, held = hold_out(train.videos, 0.25, 3)
    x, y = train.x.numpy().astype(np.float64), train.labels.numpy()
    mean, std = x[kept].mean(0), x[kept].std(0)
    expected = []
    for c in values:
        fitted = LogisticRegression(C=c, max_iter=2000).fit((x[kept] - mean) / std, y[kept])
        expected.append(100 * fitted.score((x[held] - mean) / std, y[held]))
    assert found.top1 == pytest.approx(expected)
    assert found.chosen == values[int(np.argmax(expected))]
    assert (found.trained_on, found.held_out) == (len(kept), len(held))


def test_of_equals_the_first_is_chosen() -> None:
    assert Sweep((0.1, 1.0, 10.0), (50.0, 75.0, 75.0), 8, 4).chosen == 1.0
    assert Sweep((10.0, 1.0), (75.0, 75.0), 8, 4).line("c").startswith("c 10 of 10: 75.0 %, 1: 75.0 %")


def test_unreadable_training_videos_are_neither_fitted_to_nor_scored_right() -> None:
    train = planted()
    whole = choose_c(train, (1.0,), 0.25)
    _, held = hold_out(train.videos, 0.25)
    x = train.x.clone()
    x[held[0]] = float("nan")
    broken = choose_c(Features(x, train.videos), (1.0,), 0.25)
    assert whole.top1[0] - broken.top1[0] in (0, pytest.approx(100 / len(held)))
    x[held] = float("nan")
    assert choose_c(Features(x, train.videos), (1.0,), 0.25).top1 == (0.0,)


def test_the_quick_probe_uses_the_penalty_it_is_given() -> None:
    train, test = planted(), planted(seed=0)
    weak, strong = linear_probe(train, test, 1e-6), linear_probe(train, test, 1e3)
    assert (weak.c, strong.c) == (1e-6, 1e3)
    assert strong.train_top1 == 100 > weak.train_top1


def test_what_a_headline_probe_has_not(smoke_config: Callable[..., Any], tmp_path: Path) -> None:
    for changes, said in (
        ({"feature": "conv5"}, "--feature conv5.*pooled"),
        ({"view": "rgb+residual"}, "--view rgb.residual"),
        ({"batch_size": 1}, "--batch_size 1: BatchNorm compares videos, so a batch needs at least 2"),
        ({"checkpoint": "nowhere", "sweep": (0.1,)}, "no checkpoint at nowhere"),
        ({"checkpoint": "nowhere"}, "no checkpoint at nowhere"),
        ({"batch_size": 33}, "lower --batch_size 33"),
        ({"batch_size": 32, "sweep": (0.1,)}, "lower --batch_size 32 to 2[0-9]$"),  # a sweep trains on less
        ({"sweep": (0.1,), "compile": True, "precision": "fp16"}, "--precision fp16 on a CPU"),
    ):
        with pytest.raises(MCNError, match=said):
            headline_probe(smoke_config("probe", recipe="headline", out=tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()


def test_a_sweep_goes_on_and_is_not_done_twice(
    smoke_config: Callable[..., Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the sweep, then in the run proper, with the pre-training gone: as if nothing had been."""
    start = shutil.copytree(trained, tmp_path / "start")
    changes = {
        "checkpoint": start,
        "recipe": "headline",
        "sweep": (0.001, 0.1),
        "clips": 1,
        "checkpoint_every": 2,
    }
    whole, _ = headline_probe(smoke_config("probe", out=tmp_path / "whole", **changes))
    config = smoke_config("probe", out=tmp_path / "killed", **changes)
    step = Classification.step

    def killed_at(number: int) -> None:
        def dying(self: Any, support: Any, query: Any, at: int, lr: float) -> dict[str, float]:
            if at == number:
                raise KeyboardInterrupt
            return step(self, support, query, at, lr)

        monkeypatch.setattr(Classification, "step", dying)
        with pytest.raises(KeyboardInterrupt):
            headline_probe(config)
        monkeypatch.setattr(Classification, "step", step)

    killed_at(3)
    assert not (tmp_path / "killed" / "sweep.json").exists()
    shutil.rmtree(start)
    monkeypatch.setattr(Classification, "step", step)
    killed_at(7)  # the sweep has 3 steps an epoch, the run 4
    assert (tmp_path / "killed" / "sweep.json").exists()
    again, _ = headline_probe(config)
    for folder in ("", "sweep"):
        one, two = (load_checkpoint(run / folder)["network"] for run in (whole, again))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    for name in ("test.json", "sweep.json", "classes.json"):
        assert (whole / name).read_text() == (again / name).read_text()
