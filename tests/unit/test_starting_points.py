"""Weights of other programs give their own features here; what does not fit is refused in one line."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save, save_file
from torch import Tensor, nn

from mcn._torchvision import torchvision
from mcn.attend import watched_networks
from mcn.backbones import build_backbone
from mcn.checkpoint import find_checkpoint, load_checkpoint
from mcn.classify import continued
from mcn.cli import main
from mcn.coclr import our_names, with_eps_of
from mcn.config import AttendConfig, EvalConfig, FinetuneConfig, PretrainConfig
from mcn.errors import MCNError
from mcn.export import export_backbone
from mcn.loading import load_network, network_from_config
from mcn.pretrain import Pretraining, pretrain
from mcn.starting_points import clips_seen, read_starting_point

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")
ROOT = "torchvision:"


def as_if_trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Running statistics and BatchNorm weights that a forgotten tensor would be seen by."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_var", "1.weight")) and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5, generator=draw)
        elif tensor.dim() == 1:
            tensor.normal_(0, 0.1, generator=draw)
    return model.eval()


def clips(size: int = 32, frames: int = 8) -> Tensor:
    return torch.randn(2, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


# torchvision


def pooled(model: nn.Module, clip: Tensor) -> Tensor:
    """The feature of torchvision's own model, without its classifier."""
    if hasattr(model, "classifier"):  # its S3D; the fixed window of its pool is for larger clips
        return model.features(clip).mean((2, 3, 4))
    model.fc = nn.Identity()
    return model(clip)


@pytest.mark.parametrize(
    ("backbone", "name"),
    [("r3d_18", "w.pth"), ("r2plus1d_18", "w.pth"), ("s3d", "w.pth"), ("s3d", "w.safetensors")],
)
@torch.no_grad()
def test_torchvisions_weights_give_torchvisions_features(
    backbone: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = as_if_trained(getattr(torchvision.models.video, backbone)())
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(theirs.state_dict(), path)
    else:
        save_file(theirs.state_dict(), path)
    network, built = load_network(EvalConfig(checkpoint=str(path), backbone=backbone), CPU)
    said = capsys.readouterr().out
    ours = [network.eval().features(clips(), view) for view in (0, 1)]  # statistics of both views
    expected = pooled(theirs, clips())
    assert expected.std() > 1e-3
    for features in ours:
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    count = len(network.backbone().state_dict())
    head = "classifier" if backbone == "s3d" else "fc"
    assert said == (
        f"started from torchvision weights {path}: {count} of {count} backbone tensors, "
        f"projection and meta head new; not carried over: {head}\n"
    )
    assert (built.backbone, built.init_from) == (backbone, str(path))


def test_torchvisions_own_names_ask_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    state = as_if_trained(torchvision.models.video.r3d_18()).state_dict()
    weights = torchvision.models.video.R3D_18_Weights

    def fetch(member: Any, *_: Any, **settings: Any) -> Tensors:
        asked.append((member, settings))
        return state

    monkeypatch.setattr(weights, "get_state_dict", fetch)
    for name in ("KINETICS400_V1", "DEFAULT"):
        start = read_starting_point(ROOT + name, "r3d_18", "--init_from")
        settings = {"progress": True, "check_hash": True, "weights_only": True}
        assert asked.pop() == (weights.KINETICS400_V1, settings)
        network = network_from_config(PretrainConfig())
        start.load_into(network, PretrainConfig())
        assert torch.equal(network.backbone().stem[0].weight, state["stem.0.weight"])
        assert start.record() == {
            "kind": "torchvision r3d_18 KINETICS400_V1",
            "file": "r3d_18-b3b3357e.pth",
            "sha256": "b3b3357e",
        }

    def fail(*_: Any, **__: Any) -> Tensors:
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "get_state_dict", fail)
    with pytest.raises(MCNError, match=r"cannot fetch .*r3d_18-b3b3357e.pth: no route to host .*its path"):
        read_starting_point(ROOT + "DEFAULT", "r3d_18")


@pytest.mark.parametrize(("name", "backbone"), [("KINETICS400_V9", "r3d_18"), ("DEFAULT", "r3d_10")])
def test_weights_that_torchvision_has_not(name: str, backbone: str) -> None:
    with pytest.raises(MCNError, match=rf"no weights '{name}' for --backbone {backbone}, but KINETICS400_V1"):
        read_starting_point(ROOT + name, backbone)


# CoCLR: its layers by its names and widths, written down from its code, with a forward of their own

SEPARABLE, BASIC = ("conv1", "bn1", "conv2", "bn2"), ("conv", "bn")
STEM = [("Conv_1a", 3, 64, 7), ("Conv_2b", 64, 64, 0), ("Conv_2c", 64, 192, 3)]
INCEPTION = {  # in, then the widths of branch 0, 1 (two), 2 (two), 3
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
BLOCKS = {  # the second registration of each layer
    "Conv_1a": "block1.0", "Conv_2b": "block2.1", "Conv_2c": "block2.2", "Mixed_3b": "block3.1",
    "Mixed_3c": "block3.2", "Mixed_4b": "block4.1", "Mixed_4c": "block4.2", "Mixed_4d": "block4.3",
    "Mixed_4e": "block4.4", "Mixed_4f": "block4.5", "Mixed_5b": "block5.1", "Mixed_5c": "block5.2",
}  # fmt: skip


def layers() -> dict[str, tuple[int, int, int]]:
    """Every convolutional layer: width in, width out, kernel (0: a plain 1 x 1 x 1)."""
    found = {name: (into, out, kernel) for name, into, out, kernel in STEM}
    for name, (into, b0, b1a, b1b, b2a, b2b, b3) in INCEPTION.items():
        found |= {
            f"{name}.branch0.0": (into, b0, 0),
            f"{name}.branch1.0": (into, b1a, 0),
            f"{name}.branch1.1": (b1a, b1b, 3),
            f"{name}.branch2.0": (into, b2a, 0),
            f"{name}.branch2.1": (b2a, b2b, 3),
            f"{name}.branch3.1": (into, b3, 0),
        }
    return found


def coclr_s3d(seed: int = 0) -> Tensors:
    """Weights of the backbone, with running variances from far below eps to far above."""
    draw = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, (into, out, k) in layers().items():
        shapes = [(out, into, 1, k, k), (out, out, k, 1, 1)] if k else [(out, into, 1, 1, 1)]
        parts = SEPARABLE if k else BASIC
        for conv, bn, shape in zip(parts[::2], parts[1::2], shapes, strict=True):
            variance = 10 ** torch.empty(out).uniform_(-4, 0, generator=draw)
            fan = shape[1] * shape[2] * shape[3] * shape[4]
            weight = torch.randn(shape, generator=draw) * (variance.view(-1, 1, 1, 1, 1) / fan).sqrt()
            tensors |= {
                f"{name}.{conv}.weight": weight,
                f"{name}.{bn}.weight": torch.empty(out).uniform_(0.5, 1.5, generator=draw),
                f"{name}.{bn}.bias": torch.randn(out, generator=draw) * 0.1,
                f"{name}.{bn}.running_mean": torch.randn(out, generator=draw) * 0.1 * variance.sqrt(),
                f"{name}.{bn}.running_var": variance,
                f"{name}.{bn}.num_batches_tracked": torch.tensor(7),
            }
    return tensors


def coclr_forward(tensors: Tensors, x: Tensor) -> Tensor:
    """What CoCLR's S3D makes of a clip in eval mode, pooled; from its names, BatchNorm's eps its 1e-5."""

    def norm(x: Tensor, at: str) -> Tensor:
        mean, var, weight, bias = (
            tensors[f"{at}.{name}"].double() for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5).relu()

    def layer(x: Tensor, name: str, stride: int = 1) -> Tensor:
        if f"{name}.conv.weight" in tensors:
            return norm(F.conv3d(x, tensors[f"{name}.conv.weight"].double()), f"{name}.bn")
        space, time = (tensors[f"{name}.{conv}.weight"].double() for conv in ("conv1", "conv2"))
        pad = space.shape[-1] // 2
        x = norm(F.conv3d(x, space, stride=(1, stride, stride), padding=(0, pad, pad)), f"{name}.bn1")
        return norm(F.conv3d(x, time, stride=(stride, 1, 1), padding=(pad, 0, 0)), f"{name}.bn2")

    def inception(x: Tensor, name: str) -> Tensor:
        one = layer(layer(x, f"{name}.branch1.0"), f"{name}.branch1.1")
        two = layer(layer(x, f"{name}.branch2.0"), f"{name}.branch2.1")
        three = layer(F.max_pool3d(x, 3, 1, 1), f"{name}.branch3.1")
        return torch.cat((layer(x, f"{name}.branch0.0"), one, two, three), 1)

    pools = {"3b": ((1, 3, 3), (1, 2, 2), (0, 1, 1)), "4b": (3, 2, 1), "5b": (2, 2, 0)}
    x = layer(x.double(), "Conv_1a", 2)
    x = layer(layer(F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)), "Conv_2b"), "Conv_2c")
    for name in INCEPTION:
        kernel, stride, padding = pools.get(name[-2:], (1, 1, 0))
        x = inception(F.max_pool3d(x, kernel, stride, padding), name)
    return x.mean((2, 3, 4))


def twice(tensors: Tensors) -> Tensors:
    """As a state dict of CoCLR's S3D has them: each layer also by its place in a block."""
    layer = {name: next(known for known in BLOCKS if name.startswith(known)) for name in tensors}
    return tensors | {n.replace(layer[n], BLOCKS[layer[n]], 1): t for n, t in tensors.items()}


def coclr_file(path: Path, backbone: Tensors, prefix: str = "encoder_q.0.", **more: Any) -> Path:
    """A checkpoint as CoCLR writes it; the other encoders hold other numbers."""
    other = {name: tensor + 1 for name, tensor in list(backbone.items())[:5]}
    beside = {
        **{f"encoder_k.0.{name}": tensor for name, tensor in other.items()},
        **{f"sampler.0.{name}": tensor for name, tensor in other.items()},
        "encoder_q.2.weight": torch.zeros(1024, 1024, 1, 1, 1), "encoder_q.2.bias": torch.zeros(1024),
        "encoder_q.4.weight": torch.zeros(128, 1024, 1, 1, 1), "encoder_q.4.bias": torch.zeros(128),
        "queue": torch.zeros(128, 8), "queue_ptr": torch.zeros(1, dtype=torch.long),
    }  # fmt: skip
    state = {f"{prefix}{name}": tensor for name, tensor in backbone.items()}
    state |= beside if prefix.endswith("encoder_q.0.") else more.pop("head", {})
    if prefix.startswith("module."):
        state = {name if name.startswith("module.") else f"module.{name}": t for name, t in state.items()}
    torch.save({"epoch": 182, "state_dict": state, "best_acc": 0.5, "optimizer": {}, "iteration": 9}, path)
    return path


HEAD = {"final_bn.weight": torch.ones(1024), "final_fc.0.weight": torch.zeros(101, 1024)}


@pytest.mark.parametrize(
    ("prefix", "head", "left"),
    [
        ("encoder_q.0.", {}, "encoder_q.2, encoder_q.4, encoder_k, sampler, queue, queue_ptr"),
        ("module.encoder_q.0.", {}, "encoder_q.2, encoder_q.4, encoder_k, sampler, queue, queue_ptr"),
        ("backbone.", HEAD, "final_bn, final_fc"),
        ("", {}, ""),
    ],
)
@torch.no_grad()
def test_coclrs_weights_give_coclrs_features(
    prefix: str, head: Tensors, left: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = coclr_s3d()
    path = coclr_file(tmp_path / "coclr.pth.tar", twice(backbone), prefix, head=head)
    network, _ = load_network(EvalConfig(checkpoint=str(path), backbone="s3d"), CPU)
    said = capsys.readouterr().out.strip()
    assert said.startswith(
        f"started from CoCLR S3D {path}: 462 of 462 backbone tensors, projection and meta head new"
    )
    assert set(said.partition("not carried over: ")[2].split(", ")) == set(left.split(", "))
    if prefix in ("encoder_q.0.", "backbone."):
        clip = clips(48, 16)
        expected = coclr_forward(backbone, clip)
        for view in (0, 1):
            ours = network.double().eval().features(clip.double(), view)
            # the file's weights are float32, and so are the scaled ones
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.std()))


@torch.no_grad()
def test_coclrs_eps_matters() -> None:
    """Had its BatchNorm weights been taken as they are, the features would be others."""
    backbone, clip = coclr_s3d(), clips(48, 16)
    s3d = build_backbone("s3d").eval().double()
    features = []
    for tensors in (our_names(backbone), with_eps_of(s3d, our_names(backbone))):
        s3d.load_state_dict(tensors)
        features.append(s3d(clip.double()))
    expected = coclr_forward(backbone, clip)
    as_they_are, scaled = ((each - expected).norm() / expected.norm() for each in features)
    assert as_they_are > 0.1
    assert scaled < 1e-5


def test_coclr_is_s3d(tmp_path: Path) -> None:
    path = coclr_file(tmp_path / "c.tar", coclr_s3d())
    with pytest.raises(MCNError, match=r"c.tar is CoCLR's S3D: use --backbone s3d, not r3d_18"):
        read_starting_point(path, "r3d_18", "--init_from")


def test_gates_are_refused(tmp_path: Path) -> None:
    gates = {f"{name}.gating_b{n}.fc.weight": torch.zeros(2, 2) for name in INCEPTION for n in range(4)}
    path = coclr_file(tmp_path / "c.tar", coclr_s3d() | gates)
    with pytest.raises(
        MCNError, match=r"Mixed_3b.gating_b0.fc.weight, .* and 33 more: self-gating .*--net s3d`"
    ):
        read_starting_point(path, "s3d")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"block1.0.conv1.weight": t["Conv_1a.conv1.weight"] + 1}), "other name"),
        (lambda t: t.update({"Mixed_6a.branch0.0.conv.weight": torch.ones(1)}), "no place for Mixed_6a"),
        (lambda t: t.pop("Mixed_5c.branch3.1.bn.running_var"), "it has no features.15.branch3.1.1.running_v"),
        (
            lambda t: t.update({"Conv_1a.conv1.weight": torch.ones(64, 2, 1, 7, 7)}),
            "size mismatch for features.0.0.0.weight, 64x2x1x7x7 there and 64x3x1x7x7 here",
        ),
    ],
    ids=["two versions", "unknown layer", "missing", "two channels"],
)
def test_a_coclr_file_that_is_not_whole(change: Callable[[Tensors], Any], words: str, tmp_path: Path) -> None:
    tensors = coclr_s3d()
    change(tensors)
    path = coclr_file(tmp_path / "c.tar", tensors)
    network = network_from_config(PretrainConfig(backbone="s3d"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(MCNError) as refused:
        read_starting_point(path, "s3d").load_into(network, PretrainConfig(backbone="s3d"))
    assert words in str(refused.value)
    assert "c.tar" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


# our own files


def small(**changes: Any) -> PretrainConfig:
    return PretrainConfig(**{"backbone": "r3d_small", "width": 4, "dim": 8, "device": "cpu", **changes})


def save_run(path: Path, config: PretrainConfig) -> Tensors:
    training = Pretraining(config, 6)
    for view, backbone in enumerate(training.network.backbones):  # statistics of each view of its own
        as_if_trained(backbone, seed=view)
    torch.save({"step": 1, "bad_videos": {}, **training.state()}, path)
    return {name: tensor.clone() for name, tensor in training.network.state_dict().items()}


def start(config: PretrainConfig, where: Path) -> Pretraining:
    training = Pretraining(config, 6)
    training.start_from(str(where))
    return training


def test_our_checkpoint_gives_the_whole_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.pt"
    saved = save_run(path, small())
    fresh, training = Pretraining(small(seed=1), 6), start(small(seed=1), path)
    assert all(torch.equal(saved[name], tensor) for name, tensor in training.network.state_dict().items())
    assert torch.equal(training.bank.snapshot(), fresh.bank.snapshot())  # the run's own, new
    assert not training.optimizer.state
    assert f"mcn checkpoint {path}: the whole network, bank and optimiser new" in capsys.readouterr().out
    assert training.started_from == {
        "kind": "mcn checkpoint",
        "file": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"width": 8}, "use --width 4, or"),
        ({"dim": 16, "projection": "mlp"}, "use --dim 8, --projection linear, or"),
        ({"backbone": "r3d_18", "width": None}, "use --backbone r3d_small, --width 4, or"),
    ],
)
def test_another_network_of_ours(changes: dict[str, Any], fix: str, tmp_path: Path) -> None:
    save_run(tmp_path / "step.pt", small())
    with pytest.raises(MCNError, match=r"--init_from .*step.pt is another network: ") as refused:
        start(small(**changes), tmp_path / "step.pt")
    assert fix in str(refused.value)
    assert "mcn export" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("view", ["rgb", "second"])
@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_an_exported_backbone_starts_both_views(view: str, sharing: str, tmp_path: Path) -> None:
    saved = save_run(tmp_path / "step.pt", small())
    path = export_backbone(tmp_path / "step.pt", tmp_path / "b.safetensors", view)
    training = start(small(seed=1, sharing=sharing, dim=16), path)
    of = {"rgb": "backbones.0.", "second": "backbones.1."}[view]
    for backbone in training.network.backbones:
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, saved[of + name]), name
    fresh = Pretraining(small(seed=1, sharing=sharing, dim=16), 6)
    assert torch.equal(training.network.fc.weight, fresh.network.fc.weight)
    assert training.started_from["kind"] == "an exported backbone"


def test_the_experiments_network_can_be_started_from() -> None:
    (path,) = (Path(__file__).parents[2] / "book/results/networks").glob("*.safetensors")
    training = start(small(width=8), path)
    fresh = Pretraining(small(width=8), 6).network.backbones[0]
    weights = training.network.backbones[0].state_dict()
    assert not any(
        torch.equal(weights[n], t) for n, t in fresh.state_dict().items() if t.dtype.is_floating_point
    )


def test_a_fine_tuned_backbone_starts_a_pretraining(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = as_if_trained(build_backbone("r3d_small", 4)).state_dict()
    named = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    tuned = {"network": named | {"fc.weight": torch.zeros(3, 32), "fc.bias": torch.zeros(3)}, "classes": []}
    torch.save(tuned, tmp_path / "tuned.pt")
    training = start(small(), tmp_path / "tuned.pt")
    for each in training.network.backbones:
        assert all(torch.equal(backbone[name], tensor) for name, tensor in each.state_dict().items())
    assert "fine-tuned mcn checkpoint" in (said := capsys.readouterr().out)
    assert said.endswith("not carried over: fc\n")


@pytest.mark.parametrize(
    ("saved", "asked", "words"),
    [
        (
            ("r2plus1d_10", 8),
            ("r3d_10", 8),
            ["5x3x1x7x7 there and 8x3x3x7x7", "r2plus1d_10 --width 8"],
        ),
        (("r3d_10", 8), ("r3d_10", 4), ["stem.0.weight, 8x3x3x7x7 there and 4x3", "r3d_10 --width 8"]),
        (("r3d_small", None), ("r3d_18", None), ["use --backbone r3d_small"]),
        (("s3d", None), ("r3d_18", None), ["it has no stem.0.weight", "use --backbone s3d"]),
    ],
)
def test_another_backbone_is_named_with_the_fix(
    saved: tuple[str, int | None], asked: tuple[str, int | None], words: list[str], tmp_path: Path
) -> None:
    torch.save(build_backbone(*saved).state_dict(), tmp_path / "w.pth")
    config = FinetuneConfig(checkpoint=str(tmp_path / "w.pth"), backbone=asked[0], width=asked[1])  # type: ignore[arg-type]
    with pytest.raises(MCNError, match=r"--checkpoint .*w.pth is another network") as refused:
        load_network(config, CPU)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value)


def test_old_files_have_no_counters(tmp_path: Path) -> None:
    state = build_backbone("r3d_small", 4).state_dict()
    torch.save({n: t for n, t in state.items() if "tracked" not in n}, tmp_path / "w.pth")
    training = start(small(), tmp_path / "w.pth")
    assert torch.equal(training.network.backbone().stem[0].weight, state["stem.0.weight"])


# files that are none of these


class Harmful:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("place", ["file", "state_dict"])
def test_reading_runs_no_code(place: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "c.pth.tar", tmp_path / "made"
    if place == "file":
        path.write_bytes(pickle.dumps(Harmful(folder), protocol=2))
    else:
        torch.save({"state_dict": twice(coclr_s3d()), "best_acc": Harmful(folder)}, path)
    with pytest.raises(MCNError, match=r"c.pth.tar is not a readable checkpoint: it holds more") as refused:
        read_starting_point(path, "s3d")
    assert "(posix.mkdir), and reading that would run code from it; give" in str(refused.value)
    assert not folder.exists()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pt", b"junk", "not a readable checkpoint: it is a text file; give a run folder of mcn, a check"),
        ("w.pt", b"", "not a readable checkpoint: it is empty; give"),
        ("w.pt", bytes(range(200)), "not a readable checkpoint: it is damaged, or of another kind; give"),
        ("w.pt", save({"conv1.weight": torch.ones(9)}), "whose name should end in .safetensors; give"),
        (
            "w.safetensors",
            b"junk",
            "not a readable checkpoint: it is damaged, or no file of safetensors; give",
        ),
        ("w.pt", {"epoch": 1, "model": {}}, "holds no weights by name (epoch, model)"),
        ("w.pt", {}, "holds no weights by name (nothing)"),
        ("w.pt", {"state_dict": {}}, "holds no weights by name"),
        ("w.pt", torch.zeros(3), "holds no weights by name (nothing)"),
        ("w.pt", {"conv1.weight": torch.zeros(3)}, "it fits no backbone of mcn"),
    ],
)
def test_files_of_something_else(name: str, content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(MCNError) as refused:
        start(small(), path)
    assert words in str(refused.value)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)  # torch advises to run the file's code


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "step.pt"
    save_run(path, small())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MCNError, match=r"step.pt is not a readable checkpoint: its end is missing, .*; give"):
        start(small(), path)


def without(path: Path, *names: str) -> Path:
    """The same checkpoint as an earlier version might have written it."""
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if name not in names}, path)
    return path


def test_checkpoints_of_an_earlier_version_say_so(
    finetuned: Path, action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old.pt"
    old.write_bytes(find_checkpoint(finetuned).read_bytes())
    without(old, "head", "start")
    video = str(next(action_data.rglob("*.mp4")))
    assert main(["predict", video, "--checkpoint", str(old), "--device", "cpu"]) == 1
    line = f"{old} was made by an earlier version of mcn (it has no head): train again"
    assert line in capsys.readouterr().err
    with pytest.raises(MCNError, match=r"it has no head, start\): train again"):
        continued(old, CPU)
    without(old, "backbone")
    assert main(["attend", video, "--checkpoint", str(old), "-o", str(tmp_path / "maps.png")]) == 1
    assert f"{old} was made by an earlier version of mcn (it has no backbone)" in capsys.readouterr().err


def test_a_pre_training_whose_network_had_other_parts_says_so(tmp_path: Path) -> None:
    path = tmp_path / "step.pt"
    save_run(path, small())
    state = torch.load(path, weights_only=True)
    state["network"]["head.gone"] = state["network"].pop("fc.bias")
    torch.save(state, path)
    with pytest.raises(MCNError, match=r"it has no fc.bias .*an earlier version of mcn, train again") as said:
        load_network(EvalConfig(checkpoint=str(path)), CPU)
    assert "step.pt is another network" in str(said.value)
    without(path, "config")
    with pytest.raises(MCNError, match=r"step.pt was made by an earlier version of mcn \(it has no config\)"):
        load_network(EvalConfig(checkpoint=str(path)), CPU)


# what a run keeps of it


def test_a_run_records_what_it_started_from(smoke_config: Callable[..., Any], tmp_path: Path) -> None:
    weights = as_if_trained(build_backbone("r3d_small", 4)).state_dict()
    path, run = tmp_path / "w.pth", tmp_path / "run"
    torch.save(weights, path)
    still = {"lr": 0.0, "weight_decay": 0.0, "epochs": 1, "width": 4, "workers": 0}
    pretrain(smoke_config("pretrain", out=run, init_from=path, **still))
    state = load_checkpoint(run)
    expected = {
        "kind": "an exported backbone",
        "file": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert state["started_from"] == expected
    assert json.loads((run / "started_from.json").read_text()) == expected
    assert state["config"]["init_from"] == str(path)
    for name, tensor in weights.items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(state["network"][f"backbones.0.{name}"], tensor), name
    path.unlink()  # a run that goes on does not start again, and still knows
    again = Pretraining(smoke_config("pretrain", init_from=path, **still), 32)
    again.load(state)
    assert again.state()["started_from"] == expected


# as a user types it


def test_commands_take_weights_of_other_programs(
    action_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pth"
    weights = as_if_trained(build_backbone("r3d_small")).state_dict()
    torch.save(weights, path)
    given = ["--preset", "smoke", "--data", str(action_data), "--checkpoint", str(path)]
    small = ["--backbone", "r3d_small", "--width", "16", "--workers", "0", "--clips", "1"]
    assert main(["retrieve", *given, *small, "--out", str(tmp_path / "run")]) == 0
    assert (
        f"started from an exported backbone {path}: {len(weights)} of {len(weights)} "
        in capsys.readouterr().out
    )
    assert main(["retrieve", *given, "--backbone", "r3d_18", "--width", "8"]) == 1
    assert "use --backbone r3d_small --width null" in capsys.readouterr().err
    assert main(["retrieve", *given, "--backbone", "r3d_small", "--width", "null", "--clips", "1"]) == 0


def test_clips_are_as_long_as_a_run_of_ours_says(tmp_path: Path) -> None:
    save_run(tmp_path / "step.pt", small(frames=6, stride=2, size=24))
    torch.save(build_backbone("r3d_small").state_dict(), tmp_path / "w.pth")
    assert clips_seen(tmp_path / "step.pt") == {"frames": 6, "stride": 2, "size": 24}
    assert clips_seen(tmp_path / "w.pth") == clips_seen(ROOT + "DEFAULT") == {}
    (tmp_path / "junk.pt").write_bytes(b"junk")
    assert clips_seen(tmp_path / "junk.pt") == {}  # who reads it says so


def test_a_picture_does_not_claim_that_we_trained_it(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(build_backbone("r3d_small").state_dict(), path)
    save_run(tmp_path / "step.pt", small())
    config = AttendConfig(checkpoint=str(path), compare=str(tmp_path / "step.pt"), backbone="r3d_small")
    assert [each.title for each in watched_networks(config, CPU)] == ["with MCN", "not trained by mcn"]
