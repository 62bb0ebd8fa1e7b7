"""The table of what goes together, walked: every yes that a CPU can do is done, every no is refused."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mcn import composes
from mcn.backbones import build_backbone
from mcn.bench_measure import peak_bytes
from mcn.classify import Classification, Start
from mcn.composes import NO, WARNED, YES, check_together
from mcn.config import EvalConfig, FinetuneConfig, PretrainConfig, ProbeConfig
from mcn.data.datasets import Videos
from mcn.errors import MCNError
from mcn.features import features_of
from mcn.lean import run_lightly
from mcn.memory import counted
from mcn.network import MetaContrastiveNetwork, blocks_with, running_statistics, shared_parameters
from mcn.precision import Precision, prepare
from mcn.pretrain import Pretraining
from mcn.stage import Batch, StageLoss

ORDERS = [("none", "auto"), ("first", "auto"), *(("exact", m) for m in ("auto", "fast", "balanced", "lean"))]
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
SWITCHES = ("channels_last", "compile", "checkpointing")
SMALL: dict[str, Any] = {"backbone": "r3d_small", "width": 4, "device": "cpu"}
PRETRAIN = PretrainConfig(**SMALL, dim=8, negatives=3, precision="fp32")

Case = tuple[str, Any]  # command and config
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def combinations() -> list[Case]:
    """All of the table, for one backbone whose second order is steady in bf16 and one whose is not."""
    found: list[Case] = []
    for precision, *on in itertools.product(PRECISIONS, *[(False, True)] * 3):
        both: dict[str, Any] = {"precision": precision, **dict(zip(SWITCHES, on, strict=True))}
        for (order, method), backbone in itertools.product(ORDERS, ("r3d_small", "r2plus1d_18")):
            how = {**both, "order": order, "method": method, "backbone": backbone}
            found.append(("pretrain", dataclasses.replace(PRETRAIN, width=None, **how)))
        found.append(("finetune", FinetuneConfig(**SMALL, from_scratch=True, **both)))
        if not both.pop("checkpointing"):
            found.append(("probe", ProbeConfig(**SMALL, recipe="headline", **both)))
            for feature in ("pooled", "conv5"):
                found.append(("features", EvalConfig(**SMALL, feature=feature, **both)))  # type: ignore[arg-type]
    return found


def verdict(command: str, config: Any, device: str) -> str:
    """What the table says against it; empty: nothing."""
    try:
        check_together(command, config, device)
    except MCNError as error:
        return str(error)
    return ""


def allowed(command: str, **only: Any) -> list[Any]:
    """Settings of a command that a CPU is allowed."""
    configs = (config for name, config in combinations() if name == command)
    kept = (c for c in configs if all(getattr(c, key) == value for key, value in only.items()))
    return [config for config in kept if not verdict(command, config, "cpu")]


def named(config: Any) -> str:
    """A short name for a test."""
    order = (config.order, config.method) if isinstance(config, PretrainConfig) else ()
    return "-".join((*order, config.precision, *(name for name in SWITCHES if getattr(config, name, False))))


def as_tests(configs: list[Any]) -> list[Any]:
    """One test each; to trace for the compiler takes seconds, so that is done by default only once."""
    slow = [config for config in configs if config.compile][1:]
    marks: Any = {True: pytest.mark.slow, False: ()}
    return [pytest.param(config, id=named(config), marks=marks[config in slow]) for config in configs]


def test_the_table_says_yes_or_no_of_everything_and_every_no_is_said() -> None:
    said, yes = set(), 0
    for device in ("cpu", "cuda", "mps"):
        for command, config in combinations():
            found = verdict(command, config, device)
            said.add(found)
            yes += not found
    assert {line.said for line in NO} <= said
    assert yes > 40
    untested = {sentence for sentence in said if sentence.endswith("not tested together, so refused")}
    assert said - untested - {""} == {line.said for line in NO}
    assert all("device other" in sentence for sentence in untested)  # all else has a sentence of its own


def test_every_proof_is_a_test_and_every_line_is_reached() -> None:
    for line in YES:
        file, _, name = line.test.partition("::")
        assert not name or (Path(__file__).name == Path(file).name and name in globals()), line
    for line in (*YES, *WARNED):
        cases = itertools.product(("cpu", "cuda", "mps"), combinations())
        facts = [composes.facts_of(command, config, d) for d, (command, config) in cases]
        assert any(line.holds(fact) and not any(no.holds(fact) for no in NO) for fact in facts), line


def test_the_defaults_go_together_everywhere() -> None:
    for device in ("cpu", "cuda", "mps"):
        for command, config in (
            ("pretrain", PretrainConfig()), ("finetune", FinetuneConfig()),
            ("probe", ProbeConfig()), ("features", EvalConfig()),
        ):  # fmt: skip
            assert not verdict(command, config, device)


def test_what_is_known_of_bf16_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = PretrainConfig(backbone="r3d_18", method="fast", precision="bf16")
    check_together("pretrain", config, "cuda")
    assert capsys.readouterr().out.startswith("note: the Hessian product in bf16")


# ------------------------------------------------------------------ steps in float64


def batches(training: Pretraining, videos: int = 4, clip: Sequence[int] = (4, 16, 16)) -> list[Batch]:
    """A support and a query batch, the same each time; the bank has four videos more."""
    random, rows = torch.Generator().manual_seed(0), training.bank.snapshot()
    found = []
    for first in (0, videos):
        view1, view2 = torch.randn(2, videos, 3, *clip, generator=random, dtype=torch.float64).to(rows)
        negatives = torch.randint(2 * videos, 2 * videos + 4, (videos, 3), generator=random)
        index = torch.arange(first, first + videos)
        found.append(Batch(view1, view2, index.to(rows.device), rows, negatives.to(rows.device), 7))
    return found


def step(config: PretrainConfig, device: str = "cpu", scale: float = 1.0) -> dict[str, Tensor]:
    """The network's parameters and running statistics after a step in float64."""
    training = Pretraining(config, 12, device)
    training.network.double()
    training.bank.double()
    training.scale.value = scale
    support, query = batches(training)
    numbers = training.update(None if config.order == "none" else support, query, 0.1)
    assert numbers["loss"] > 0
    return {name: tensor.cpu() for name, tensor in training.network.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        error, size = (x.double().norm() for x in (found[name] - tensor, tensor))
        assert error <= 1e-9 * max(size, 1), name


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without its code generator, which takes minutes: what is traced is what counts."""
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, backend: whole(self, backend="aot_eager"))
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Tensor]]:
    """Steps with nothing switched on."""
    orders = {"none": "auto", "first": "auto", "exact": "fast"}
    return {o: step(dataclasses.replace(PRETRAIN, order=o, method=m)) for o, m in orders.items()}  # type: ignore[arg-type]


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("config", as_tests(allowed("pretrain", backbone="r3d_small")))
def test_every_yes_of_pretraining_makes_the_same_step(
    config: PretrainConfig, plain: dict[str, dict[str, Tensor]]
) -> None:
    found = step(dataclasses.replace(config, width=4))
    assert_same(found, plain[config.order])
    other = "first" if config.order == "exact" else "exact"  # what it would be by another order
    name = "backbones.0.layer4.0.conv1.0.weight"
    assert (found[name] - plain[other][name]).norm() > 1e-6 * found[name].norm()


@pytest.mark.slow
@pytest.mark.parametrize("order", ["none", "first"])
def test_compiled_code_makes_the_same_step(order: Any, plain: dict[str, dict[str, Tensor]]) -> None:
    torch._dynamo.reset()
    assert_same(step(dataclasses.replace(PRETRAIN, order=order, compile=True)), plain[order])


def learned(command: str, config: Any) -> dict[str, Tensor]:
    """A classifier's parameters and running statistics after two steps in float64."""
    torch.manual_seed(0)
    backbone = build_backbone("r3d_small", 4)
    videos = Videos(Path(), tuple("abcd"), (0, 1, 2, 0), ("x", "y", "z"))
    head = {"normalise": True} if command == "probe" else {"dropout": 0.5}
    cpu = torch.device("cpu")
    training = Classification(config, videos, Start(backbone, {}, ""), head, cpu, frozen=command == "probe")
    training.model.double()
    clips, labels = torch.randn(2, 4, 3, 4, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    for clip in clips:
        training.learn(clip, labels, 0.1)
    return training.model.state_dict()


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    ("command", "config"),
    [
        pytest.param(command, *case.values, id=f"{command}-{case.id}", marks=case.marks)
        for command in ("finetune", "probe")
        for case in as_tests(allowed(command, precision="fp32"))
    ],
)
def test_every_yes_of_fine_tuning_makes_the_same_step(command: str, config: Any) -> None:
    expected = learned(command, dataclasses.replace(config, **dict.fromkeys(SWITCHES[:2], False)))
    if command == "finetune":
        expected = learned(command, dataclasses.replace(config, **dict.fromkeys(SWITCHES, False)))
    found = learned(command, config)
    assert_same(found, expected)
    counts = [n for name, n in found.items() if name.endswith("num_batches_tracked")]
    assert {int(n) for n in counts[:-1]} == ({2} if command == "finetune" else {0})


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("config", as_tests(allowed("features", precision="fp32", feature="pooled")))
def test_every_yes_of_features_gives_the_same(config: EvalConfig) -> None:
    torch.manual_seed(0)
    network = MetaContrastiveNetwork("r3d_small", width=4, dim=8).double().eval()
    clip = torch.randn(2, 3, 4, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = network.features(clip)
        torch.testing.assert_close(prepare(network, config).features(clip), expected, rtol=1e-9, atol=0)


# ------------------------------------------------------------------ less than float32


def test_features_in_bf16_differ_by_their_rounding(action_data: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {**SMALL, "data": str(action_data), "cache": str(tmp_path), "workers": 0}
    config = EvalConfig(**how, frames=4, size=32, clips=1)
    full = features_of(config, "test").x
    half = features_of(dataclasses.replace(config, precision="bf16"), "test").x  # and not the kept ones
    assert half.dtype == torch.float32
    error = (half - full).norm() / full.norm()
    assert 1e-4 < error < 0.02


def smooth(module: nn.Module) -> nn.Module:
    """Every ReLU becomes a softplus, so that a rounding changes a gradient little."""
    for name, part in module.named_children():
        setattr(module, name, nn.Softplus()) if isinstance(part, nn.ReLU) else smooth(part)
    return module


@pytest.fixture
def own_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own convolutions: those of oneDNN give wrong gradients in bf16 on some CPUs."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.mark.usefixtures("own_convolutions")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_gradients_in_half_of_a_smooth_network(precision: Any, checkpointing: bool, device: str) -> None:
    """g_s and, in bf16, the Hessian product along a given direction."""
    training = Pretraining(PRETRAIN, 20, device)
    smooth(training.network)
    support = batches(training, 8, (8, 32, 32))[0]
    theta = list(shared_parameters(training.network).items())
    scale = 2.0**10 if precision == "fp16" else 1.0

    def found(config: PretrainConfig, scale: float) -> list[Tensor]:
        loss = StageLoss(training.network, support, config, scale=scale)(dict(theta))
        assert loss.dtype == torch.float32
        params = [p for _, p in theta]
        vectors = [torch.autograd.grad(loss, params, create_graph=precision == "bf16")]
        if precision == "bf16":
            v = [torch.sin(torch.arange(p.numel()).to(p)).view_as(p) for p in params]
            vectors.append(torch.autograd.grad(vectors[0], params, v))
        return [torch.cat([x.detach().flatten() for x in each]) / scale for each in vectors]

    how = dataclasses.replace(PRETRAIN, precision=precision, checkpointing=checkpointing)
    bar = 0.1 if precision == "bf16" else 0.01
    for half, full in zip(found(how, scale), found(PRETRAIN, 1.0), strict=True):
        assert 1e-4 < (half - full).norm() / full.norm() < bar
        assert torch.cosine_similarity(half, full, dim=0) > 0.99


@pytest.mark.parametrize("order", ["none", "first", "exact"])
def test_a_loss_scale_changes_nothing(order: Any, plain: dict[str, dict[str, Tensor]]) -> None:
    assert_same(step(dataclasses.replace(PRETRAIN, order=order, method="fast"), scale=2.0**10), plain[order])


@pytest.mark.usefixtures("own_convolutions")
def test_a_step_that_overflows_is_done_again_with_half_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(PRETRAIN, order="first", precision="fp16")
    ends = []
    for start in (2.0**4, 2.0**22):
        training = Pretraining(config, 12)
        training.scale.value = start
        given = dict(zip(("support", "query"), batches(training), strict=True))
        monkeypatch.setattr(training, "batch", lambda clips, step, stage, share, given=given: given[stage])
        training.step([object()], [object()], 0, 0.01)  # type: ignore[list-item]
        assert training.scale.value < 2.0**22
        ends.append((training.network.state_dict(), training.bank.rows))
    for name, found in ends[1][0].items():
        torch.testing.assert_close(found, ends[0][0][name], rtol=0.02, atol=0.02)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=0.02, atol=0.02)


# ------------------------------------------------------------------ why some are refused


def test_checkpointing_saves_memory_but_not_where_the_graph_is_kept() -> None:
    kept = {}
    for checkpointing in (False, True):
        training = Pretraining(dataclasses.replace(PRETRAIN, checkpointing=checkpointing), 12)
        loss = StageLoss(training.network, batches(training)[0], training.config)
        theta = shared_parameters(training.network)
        with counted() as bytes_:
            value = loss(theta)
            once = bytes_.bytes
            torch.autograd.grad(value, list(theta.values()), create_graph=True)
        kept[checkpointing] = (once, bytes_.bytes)
    assert kept[True][0] < 0.7 * kept[False][0]
    assert kept[True][1] >= kept[False][1]


def test_checkpointed_blocks_see_adapted_parameters() -> None:
    """A block that took its parameters from the module would see theta's on the way back."""
    torch.manual_seed(0)
    network = MetaContrastiveNetwork("r3d_small", width=4, dim=8).double()
    clips = torch.randn(2, 4, 3, 4, 16, 16, dtype=torch.float64)
    adapted = {name: (p + 0.1).detach().requires_grad_() for name, p in shared_parameters(network).items()}
    gradients = []
    for again in (False, True):
        buffers = running_statistics(network)
        chain = blocks_with(network, buffers, *clips, lambda out: out.logits.sin().sum() + out.z1.sum())
        blocks = [dataclasses.replace(b, light=False, checkpointed=again) for b in chain]
        gradients.append(torch.autograd.grad(run_lightly(blocks, adapted), list(adapted.values())))
        assert {int(b) for name, b in buffers.items() if "num_batches" in name} == {1}
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() <= 1e-9 * expected.norm().clamp(min=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_product_by_blocks_fails_under_autocast(precision: Any) -> None:
    config = dataclasses.replace(PRETRAIN, precision=precision, method="balanced")
    training = Pretraining(config, 12)
    with pytest.raises(RuntimeError, match=r"type"):
        training.update(*batches(training), 0.1)


def test_checkpointing_saves_nothing_where_a_products_blocks_are_kept() -> None:
    peaks = []
    for checkpointing in (False, True):
        config = dataclasses.replace(PRETRAIN, checkpointing=checkpointing, method="balanced")
        training = Pretraining(config, 24)
        given = batches(training, 8, (8, 32, 32))
        peaks.append(peak_bytes(functools.partial(training.update, *given, 0.01), training.device))
    assert peaks[1] >= peaks[0]


def test_a_command_refuses_before_it_computes(tmp_path: Path, action_data: Path) -> None:
    from mcn.pretrain import pretrain

    config = PretrainConfig(**SMALL, data=str(action_data), out=str(tmp_path / "run"), precision="tf32")
    with pytest.raises(MCNError, match="mode of NVIDIA GPUs"):
        pretrain(config)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ GPUs


@on_gpu
@pytest.mark.parametrize("order", ["none", "first", "exact"])
def test_a_step_on_a_gpu(order: Any) -> None:
    """In float64, with the fused optimiser and channels last, it is the CPU's."""
    config = dataclasses.replace(PRETRAIN, order=order, method="fast")
    assert_same(step(dataclasses.replace(config, channels_last=True), "cuda"), step(config))


def test_float32_on_a_gpu_is_float32_unless_tf32_is_meant() -> None:
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    try:
        for name in ("tf32", "fp32"):
            prepare(nn.Identity(), PRETRAIN, Precision(name))
            assert products.allow_tf32 == convolutions.allow_tf32 == (name == "tf32")
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
