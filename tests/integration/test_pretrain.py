"""The training loop: all methods are settings of one path, and a step is what the formulas say."""

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mcn.meta
from mcn.bank import FeatureBank
from mcn.checkpoint import load_checkpoint
from mcn.config import PretrainConfig, build, load_preset
from mcn.data.loader import Clip
from mcn.data.plan import epoch_plan
from mcn.errors import MCNError
from mcn.loop import checked_steps
from mcn.losses import classification_loss, meta_loss, multiview_loss
from mcn.optim import learning_rate
from mcn.pretrain import Batch, Pretraining, pretrain
from mcn.run import generator_for

VIDEOS = 12


def config(**changes: Any) -> PretrainConfig:
    return build(PretrainConfig, {**load_preset("smoke", "pretrain"), "device": "cpu", **changes})


def clips(videos: range, seed: int) -> list[Clip]:
    random = torch.Generator().manual_seed(seed)
    return [
        Clip(torch.randint(256, (5, 24, 24, 3), dtype=torch.uint8, generator=random), None, None, v, ())
        for v in videos
    ]


def prepared(**changes: Any) -> tuple[Pretraining, Batch, Batch]:
    """A training in float64 and a support and a query batch of four videos each."""
    torch.manual_seed(0)
    training = Pretraining(config(**changes), VIDEOS)
    training.network.double()
    training.bank.double()
    made = []
    for stage, videos in (("support", range(0, 4)), ("query", range(4, 8))):
        batch = training.batch(clips(videos, seed=len(stage)), 0, stage)
        made.append(dataclasses.replace(batch, view1=batch.view1.double(), view2=batch.view2.double()))
    return training, made[0], made[1]


def weights(training: Pretraining) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in training.network.named_parameters()}


def plain_loss(network: Any, batch: Batch, settings: PretrainConfig, params: Any = None) -> Tensor:
    """Eq. 5 written out, for a network used as any other module."""
    views = (batch.view1, batch.view2)
    out = torch.func.functional_call(network, params, views) if params else network(*views)
    contrast = multiview_loss(out.z1, out.z2, batch.rows, batch.index, negatives=batch.negatives, tau=0.07)
    binary = classification_loss(out.logits, out.labels, out.group)
    return meta_loss(binary, contrast, cls_weight=settings.cls_weight)


PLAIN = {"momentum": 0.0, "weight_decay": 0.0}


def test_a_step_is_the_formula() -> None:
    """One step against two-stage training written out naively with autograd, statistics and bank too."""
    training, support, query = prepared(inner_lr=0.01, **PLAIN)
    naive = copy.deepcopy(training.network).train()
    params = {name: p.detach().clone().requires_grad_() for name, p in naive.named_parameters()}
    loss_s = plain_loss(naive, support, training.config, params)
    inner = torch.autograd.grad(loss_s, tuple(params.values()), create_graph=True, allow_unused=True)
    adapted = {
        name: p if g is None else p - 0.01 * g
        for (name, p), g in zip(params.items(), inner, strict=True)
    }  # fmt: skip
    loss_q = plain_loss(naive, query, training.config, adapted)
    outer = torch.autograd.grad(loss_q, tuple(params.values()))

    numbers = training.update(support, query, lr=0.1)
    assert numbers["support_loss"] == pytest.approx(loss_s.item(), abs=1e-9)
    assert numbers["loss"] == pytest.approx(loss_q.item(), abs=1e-9)
    for (name, p), g in zip(params.items(), outer, strict=True):
        assert torch.allclose(weights(training)[name], p.detach() - 0.1 * g, atol=1e-9, rtol=0), name
    for (name, buffer), expected in zip(training.network.named_buffers(), naive.buffers(), strict=True):
        assert torch.allclose(buffer, expected, atol=1e-9, rtol=0), name


def test_the_ways_to_the_exact_order_are_one_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps each: weights, statistics, bank, momenta and numbers are the same."""
    monkeypatch.setattr(mcn.meta, "memory_of", lambda device: 0)  # auto is lean then
    made = []
    for method in ("fast", "balanced", "lean", "auto"):
        training, support, query = prepared(method=method, inner_steps=2, outer_support_weight=0.3)
        for lr in (0.05, 0.02, 0.01):
            snapshot = training.bank.snapshot()
            stages = [dataclasses.replace(batch, rows=snapshot) for batch in (support, query)]
            numbers = training.update(*stages, lr=lr)
        state = training.state()
        momenta = {str(k): v["momentum_buffer"] for k, v in state["optimizer"]["state"].items()}
        made.append(({**state["network"], **momenta, "bank": training.bank.rows}, numbers))
    for found, numbers in made[1:]:
        assert numbers == pytest.approx(made[0][1], abs=1e-9)
        for name, value in made[0][0].items():
            assert torch.allclose(found[name], value, atol=1e-9, rtol=1e-9), name


def test_exact_and_first_order_differ() -> None:
    moved = []
    for order in ("exact", "first"):
        training, support, query = prepared(order=order, **PLAIN)
        training.update(support, query, lr=0.05)
        moved.append(torch.cat([w.flatten() for w in weights(training).values()]))
    assert not torch.allclose(moved[0], moved[1], atol=1e-9)


def test_outer_support_weight_adds_the_support_gradient() -> None:
    steps = []
    for weight in (0.0, 0.3):
        training, support, query = prepared(outer_support_weight=weight, **PLAIN)
        before = weights(training)
        if weight == 0:
            fresh = copy.deepcopy(training.network).train()
            plain_loss(fresh, support, training.config).backward()
            plain = {name: p.grad for name, p in fresh.named_parameters()}
        training.update(support, query, lr=1.0)
        steps.append({name: before[name] - w for name, w in weights(training).items()})
    for name, gradient in plain.items():
        assert torch.allclose(steps[1][name] - steps[0][name], 0.3 * gradient, atol=1e-9, rtol=0), name


def test_inner_rate_follows_the_rate_unless_it_is_set() -> None:
    moved = {}
    for inner_lr in (None, 0.02, 0.05):
        training, support, query = prepared(inner_lr=inner_lr)
        training.update(support, query, lr=0.02)
        moved[inner_lr] = torch.cat([w.flatten() for w in weights(training).values()])
    assert torch.equal(moved[None], moved[0.02])
    assert not torch.equal(moved[None], moved[0.05])


def test_decay_may_leave_out_norms_and_biases() -> None:
    """With rate 1 and everything else still, a step takes the decayed share of a weight away."""
    for decay_norm in (True, False):
        changes = {"momentum": 0.0, "weight_decay": 0.25, "decay_norm": decay_norm, "order": "none"}
        training, _, query = prepared(**changes)
        still = prepared(**{**changes, "weight_decay": 0.0})[0]
        before = weights(training)
        for one in (training, still):
            one.update(None, query, lr=1.0)
        for name, weight in before.items():
            share = 0.25 if decay_norm or weight.dim() > 1 else 0.0
            lost = weights(still)[name] - weights(training)[name]
            assert torch.allclose(lost, share * weight, atol=1e-9), name


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"order": "exact"}, 2),
        ({"order": "exact", "method": "balanced"}, 2),
        ({"order": "exact", "method": "lean"}, 2),
        ({"order": "exact", "method": "lean", "inner_steps": 2, "outer_support_weight": 0.5}, 2),
        ({"order": "exact", "outer_support_weight": 0.5}, 2),
        ({"order": "exact", "inner_steps": 3}, 2),
        ({"order": "first"}, 2),
        ({"order": "exact", "norm_update": "query"}, 1),
        ({"order": "none"}, 1),
    ],
)
def test_batch_norm_counts_each_stage_once(changes: dict[str, Any], passes: int) -> None:
    training, support, query = prepared(**changes)
    training.update(support if training.config.order != "none" else None, query, lr=0.01)
    counts = [b for name, b in training.network.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counts) > 10  # two views, each with its own
    assert {int(count) for count in counts} == {passes}


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    training, support, query = prepared()
    training.update(support, query, lr=0.01)
    before = copy.deepcopy(training.state())
    broken = dataclasses.replace(query, view1=query.view1 * float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan"):
        training.update(support, broken, lr=0.01)
    after = training.state()
    for part in ("network", "bank"):
        assert all(torch.equal(after[part][name], value) for name, value in before[part].items())
    momenta = [s["optimizer"]["state"][0]["momentum_buffer"] for s in (before, after)]
    assert torch.equal(momenta[0], momenta[1])


def test_a_gradient_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    training, support, query = prepared()
    before = weights(training)
    honest = training._gradient

    def overflowing(*args: Any) -> Any:
        meta = honest(*args)
        meta.gradients["fc.bias"][0] = float("inf")
        return meta

    monkeypatch.setattr(training, "_gradient", overflowing)
    with pytest.raises(FloatingPointError, match="gradient is inf"):
        training.update(support, query, lr=0.01)
    assert all(torch.equal(weights(training)[name], value) for name, value in before.items())


METHODS: dict[str, dict[str, Any]] = {
    "contrast only": {"order": "none", "cls_weight": 0.0},
    "contrast + binary": {"order": "none"},
    "exact": {"order": "exact"},
    "first": {"order": "first"},
    "query only": {"order": "exact", "bank_update": "query"},
    "k negatives": {"order": "exact", "negatives": 8},
    "current positive": {"order": "none", "positive": "current"},
    "lean": {"order": "exact", "method": "lean"},
    "several inner steps": {"order": "exact", "inner_steps": 2},
    "shuffled": {"order": "none", "shuffle_views": True},
    "mixed statistics": {"order": "first", "statistics": "mixed"},
    "separate backbones": {"order": "exact", "sharing": "separate"},
}


@pytest.fixture(scope="module")
def runs(smoke_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp("methods") / "run"
            made[name] = pretrain(smoke_config("pretrain", out=out, epochs=1, batch_size=6, **METHODS[name]))
        return made[name]

    return run


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_one_path(name: str, runs: Callable[[str], Path]) -> None:
    """It runs, logs, and writes only the bank rows of the videos that its plan has drawn."""
    settings = METHODS[name]
    stages = settings["order"] != "none"
    steps = 32 // 12 if stages else 32 // 6
    lines = [json.loads(line) for line in (runs(name) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert all(("support_loss" in line) == stages for line in lines)
    for line in lines:
        share = settings.get("cls_weight", 0.2)
        total = share * line["classification"] + (1 - share) * line["contrast"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)

    state = load_checkpoint(runs(name))
    first = FeatureBank(32, 16, generator=generator_for(0, "bank")).rows
    changed = (state["bank"]["rows"] != first).any(dim=-1)
    plan = epoch_plan(32, 6, epoch=0, seed=0, stages=stages)
    stage_names = ["query"] if settings.get("bank_update") == "query" else ["support", "query"]
    drawn = {request.video for step in plan for stage in stage_names for request in getattr(step, stage)}
    assert 0 < len(drawn) < 32
    for view in changed:
        assert set(view.nonzero().flatten().tolist()) == drawn


def test_settings_change_what_is_computed(runs: Callable[[str], Path]) -> None:
    """No setting is without effect: the first or second loss tells the methods apart."""
    pairs = [
        ("exact", "first"), ("exact", "k negatives"), ("exact", "several inner steps"),
        ("exact", "query only"),
        ("contrast + binary", "current positive"), ("contrast + binary", "shuffled"),
        ("contrast + binary", "contrast only"), ("exact", "separate backbones"),
    ]  # fmt: skip

    def losses(name: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (runs(name) / "metrics.jsonl").read_text().splitlines()]

    for one, other in pairs:
        assert losses(one) != losses(other), (one, other)


def test_shuffled_views_are_a_control() -> None:
    """The control pairs each RGB clip with another second view, and leaves the clips themselves alone."""
    normal, control = (Pretraining(config(shuffle_views=on), VIDEOS) for on in (False, True))
    given = clips(range(4), seed=0)
    one, other = normal.batch(given, 0, "query"), control.batch(given, 0, "query")
    assert torch.equal(one.view1, other.view1)
    assert not torch.equal(one.view2, other.view2)
    assert sorted(one.view2.sum((1, 2, 3, 4)).tolist()) == sorted(other.view2.sum((1, 2, 3, 4)).tolist())


def test_init_from_starts_at_a_checkpoint(
    trained: Path, smoke_config: Callable[..., Any], tmp_path: Path
) -> None:
    frozen = {"lr": 0.0, "epochs": 1, "weight_decay": 0.0}
    run = pretrain(smoke_config("pretrain", out=tmp_path / "run", init_from=trained, **frozen))
    before, after = load_checkpoint(trained)["network"], load_checkpoint(run)["network"]
    names = [name for name in before if "running" not in name and "tracked" not in name]
    assert all(torch.equal(before[name], after[name]) for name in names)
    with pytest.raises(MCNError, match=r"is another network: size mismatch for .*stem") as refused:
        pretrain(smoke_config("pretrain", out=tmp_path / "other", init_from=trained, width=8))
    assert "\n" not in str(refused.value)
    with pytest.raises(MCNError, match="no checkpoint at nowhere"):
        pretrain(smoke_config("pretrain", out=tmp_path / "other", init_from="nowhere"))
    assert not (tmp_path / "other").exists()  # it is refused before a folder is made


def test_annealing_is_first_order_then_exact(smoke_config: Callable[..., Any], tmp_path: Path) -> None:
    """Four of eight steps: as a run of the first order; then as one of the exact order from there."""

    def network_at(step: int, **settings: Any) -> dict[str, Tensor]:
        name = "-".join(f"{value}" for value in settings.values())
        known = {"out": tmp_path / name, "epochs": 2, "checkpoint_every": 4, "keep": 9, "inner_clip": 2.0}
        run = pretrain(smoke_config("pretrain", **known, **settings))
        return load_checkpoint(run / f"checkpoints/step_{step:08d}.pt")["network"]

    def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return all(torch.equal(a[name], b[name]) for name in a)

    annealed = {"order": "exact", "first_order_until": 0.5}
    assert same(network_at(4, **annealed), network_at(4, order="first"))
    assert not same(network_at(8, **annealed), network_at(8, order="first"))
    assert not same(network_at(4, **annealed), network_at(4, order="exact"))
    # Its first half resumed by the exact order alone is its second half.
    run, exact = tmp_path / "exact-0.5", tmp_path / "resumed"
    shutil.copytree(run, exact)
    for name in ("checkpoints/step_00000008.pt", "config.yaml"):
        (exact / name).unlink()
    pretrain(smoke_config("pretrain", out=exact, epochs=2, order="exact", inner_clip=2.0))
    assert same(load_checkpoint(exact)["network"], network_at(8, **annealed))


@pytest.mark.parametrize("order", ["first", "none"])
def test_annealing_to_an_order_that_never_comes_is_refused(order: str) -> None:
    with pytest.raises(MCNError, match=f"first_order_until is for --order exact.*not {order}"):
        pretrain(config(order=order, first_order_until=0.5))


def test_a_clipped_inner_step_has_that_length() -> None:
    """The adapted parameters that the query loss sees are ``inner_lr * inner_clip`` away."""
    training, support, query = prepared(inner_lr=0.5, inner_clip=0.01, **PLAIN)
    theta, params = weights(training), dict(training.network.named_parameters())
    gradient = torch.autograd.grad(
        plain_loss(training.network, support, training.config), tuple(params.values())
    )
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    adapted = {name: theta[name] - 0.5 * 0.01 * g / norm for name, g in zip(params, gradient, strict=True)}
    expected = plain_loss(copy.deepcopy(training.network), query, training.config, adapted).item()
    assert training.update(support, query, lr=0.1)["loss"] == pytest.approx(expected, abs=1e-9)


def test_learning_rate_schedules() -> None:
    def rates(total: int, **settings: Any) -> list[float]:
        return [learning_rate(PretrainConfig(lr=1.0, **settings), step, total) for step in range(total)]

    assert rates(4, schedule="constant") == [1.0] * 4
    cosine = rates(10, schedule="cosine")
    assert cosine[0] == 1.0
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[5] == pytest.approx(0.5)
    steps = rates(500)  # the paper's 500 epochs: a tenth at 250, 333 and 417 (row 28)
    drops = [i for i in range(1, 500) if steps[i] < steps[i - 1]]
    assert drops == [250, 334, 417]
    warm = rates(10, schedule="constant", warmup=0.4)
    assert warm == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])


def test_a_batch_larger_than_the_data_is_refused(smoke_config: Callable[..., Any], tmp_path: Path) -> None:
    for order, batch_size, fits in (("exact", 17, 16), ("none", 33, 32)):
        with pytest.raises(MCNError, match=f"lower --batch_size {batch_size} to {fits}$"):
            pretrain(smoke_config("pretrain", out=tmp_path / "run", order=order, batch_size=batch_size))
        assert checked_steps(32, fits, stages=order == "exact") == 1  # what is named does fit
    assert not (tmp_path / "run").exists()
    with pytest.raises(MCNError, match=r"1 training videos are fewer than .*: a step takes 2 at least"):
        checked_steps(1, 4, stages=True)
