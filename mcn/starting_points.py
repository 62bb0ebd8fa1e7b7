"""Weights to start from: our runs and exports, torchvision's video weights, CoCLR's S3D (protocol row 29).

All end up as tensors with torchvision's names, which are ours. Each is checked by name and shape, and what
a file has beyond the backbone is named, never dropped in silence. Reading a file runs no code from it.

Two things no weight records. BatchNorm's momentum is ours (row 36). torchvision's weights were trained on
clips normalised by Kinetics' mean and deviation, ``mcn`` and CoCLR normalise by ImageNet's (row 16), whose
mean is .03 to .06 higher on a scale of 0 to 1; the network sees ours.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcn import coclr
from mcn._torchvision import torchvision
from mcn._weights import look_into, read_weights, require
from mcn.backbones import BACKBONES, build_backbone
from mcn.checkpoint import find_checkpoint
from mcn.config import PretrainConfig, build
from mcn.errors import MCNError
from mcn.files import first_line
from mcn.network import MetaContrastiveNetwork
from mcn.settings import NetworkConfig

_TORCHVISION = "torchvision:"
_COCLR = "CoCLR S3D"
_HEADS = ("fc.", "classifier.")  # of torchvision's ResNets and S3D
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class StartingPoint:
    """What was found at the place a run is to start from."""

    asked: str  #: flag and value, for messages
    kind: str  #: what it was recognised as
    file: str
    tensors: dict[str, Tensor] = field(repr=False)  #: a backbone's; or, if ``whole``, our network's
    whole: bool = False  #: our pre-training's network, with projection and meta head
    left: tuple[str, ...] = ()  #: parts of the file's network that are not for us
    ours: dict[str, Any] = field(default_factory=dict, repr=False)  #: all of a checkpoint, if it is ours
    sha256: str = ""  #: where it is known already

    def record(self) -> dict[str, str]:
        """Kind, file and SHA-256, to be kept with what is made from it.

        Of a file that torchvision fetches, the first eight digits, which torchvision checks.
        """
        return {"kind": self.kind, "file": self.file, "sha256": self.sha256 or _sha256(self.file)}

    def load_into(self, network: MetaContrastiveNetwork, config: PretrainConfig) -> str:
        """Put the weights into ``network``, which ``config`` describes; the line given says what was taken.

        A backbone goes to both views, with its running statistics. Raises :class:`~mcn.errors.MCNError`
        where a name or shape differs; nothing has changed then.
        """
        if self.whole:
            self._check(network, config)
            network.load_state_dict(self.tensors)
            return f"started from {self.kind} {self.file}: the whole network, bank and optimiser new"
        first = network.backbone()
        self._check(first, config)
        tensors = coclr.with_eps_of(first, self.tensors) if self.kind == _COCLR else self.tensors
        for backbone in network.backbones:
            backbone.load_state_dict({**backbone.state_dict(), **tensors})
        took = f"{len(tensors)} of {len(first.state_dict())} backbone tensors"
        line = f"started from {self.kind} {self.file}: {took}, projection and meta head new"
        return line + (f"; not carried over: {', '.join(self.left)}" if self.left else "")

    def _check(self, module: nn.Module, config: PretrainConfig) -> None:
        """Compare every name and shape; BatchNorm's counters, which nothing reads, may be missing."""
        own, given = module.state_dict(), self.tensors
        wrong = {name: _difference(name, given.get(name), own.get(name)) for name in {**own, **given}}
        wrong = {name: words for name, words in wrong.items() if words}
        if wrong:
            first, *others = wrong
            more = f" (also {_listed(others)})" if others else ""
            raise MCNError(f"{self.asked} is another network: {wrong[first]}{more}: {self._mend(config)}")

    def _mend(self, config: PretrainConfig) -> str:
        """What to do about another network."""
        if not self.whole:
            return _fitting_backbone(self.tensors, config)
        saved = build(PretrainConfig, self.ours["config"])
        names = [f.name for f in dataclasses.fields(NetworkConfig) if f.name != "view2"]
        values = {
            name: getattr(saved, name) for name in names if getattr(saved, name) != getattr(config, name)
        }
        if not values:
            return "it was made by an earlier version of mcn, train again"
        flags = [f"no --{name}" if value is None else f"--{name} {value}" for name, value in values.items()]
        return f"use {', '.join(flags)}, or start from its backbone alone (`mcn export` writes it)"


def read_starting_point(where: str | Path, backbone: str, flag: str = "--checkpoint") -> StartingPoint:
    """Read what is at ``where`` and recognise it by the names of its tensors.

    ``where`` is a file: a checkpoint of ``mcn`` (or a run folder: its newest), a ``.safetensors`` file or
    state dict with torchvision's names, a checkpoint of CoCLR; or ``torchvision:KINETICS400_V1``, and
    torchvision fetches its weights of ``backbone``. ``flag`` is what messages call the setting. Raises
    :class:`~mcn.errors.MCNError` for a file that is missing, damaged, holds more than data, or is none of
    these.
    """
    asked = f"{flag} {where}"
    if str(where).startswith(_TORCHVISION):
        return _fetched(asked, str(where).removeprefix(_TORCHVISION), backbone)
    path = find_checkpoint(where)
    contents = read_weights(path)
    if "bank" in contents:
        return StartingPoint(
            asked, "mcn checkpoint", str(path), contents["network"], whole=True, ours=contents
        )
    if "network" in contents:
        mine, left = _below("backbone.", contents["network"])
        return StartingPoint(asked, "fine-tuned mcn checkpoint", str(path), mine, left=left, ours=contents)
    tensors = _weights(path, contents)
    for prefix in coclr.PREFIXES:
        mine, left = _below(prefix, tensors)
        if any(map(coclr.our_name, mine)):
            return _coclr(asked, str(path), mine, left, backbone)
    return _plain(asked, "torchvision weights", str(path), tensors)


def classifier_backbone(state: dict[str, Any], where: str | Path) -> nn.Module:
    """The backbone in a checkpoint's ``state`` that ``mcn finetune`` or the headline probe wrote.

    Raises :class:`~mcn.errors.MCNError`, which calls the checkpoint ``where``, for one of an earlier version.
    """
    require(state, ("backbone",), where)
    backbone = build_backbone(**state["backbone"])
    backbone.load_state_dict(_below("backbone.", state["network"])[0])
    return backbone


def weights_file(where: str | Path) -> Path:
    """The file that ``where`` means, in a run folder its newest checkpoint; a name of torchvision's as it is.

    Raises :class:`~mcn.errors.MCNError` where there is none.
    """
    return Path(where) if str(where).startswith(_TORCHVISION) else find_checkpoint(where)


def clips_seen(where: str | Path) -> dict[str, int]:
    """Frames, stride and size of the clips that a checkpoint of ours has seen; of another file nothing.

    Reads no tensor, and leaves it to who does to say what is wrong with a file.
    """
    if str(where).startswith(_TORCHVISION):
        return {}
    known = look_into(find_checkpoint(where)).get("config", {})
    return {name: known[name] for name in ("frames", "stride", "size") if name in known}


def _weights(path: Path, contents: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, bare or as CoCLR wraps it."""
    weights = contents.get("state_dict", contents)
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(t, Tensor) for t in weights.values())
    ):
        raise MCNError(
            f"{path} holds no weights by name ({_listed(map(str, contents)) or 'nothing'}): give a "
            "checkpoint of mcn or CoCLR, or a state dict of torchvision"
        )
    parallel = all(name.startswith("module.") for name in weights)  # saved from within DataParallel
    return {name.removeprefix("module.") if parallel else name: tensor for name, tensor in weights.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What is below a prefix, and the parts of the network that are not."""
    mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    others = [name.split(".") for name in tensors if not name.startswith(prefix)]
    beside = prefix.partition(".")[0]
    parts = (".".join(words[: 2 if words[0] == beside else 1]) for words in others)
    return mine, tuple(dict.fromkeys(parts))


def _coclr(
    asked: str, file: str, tensors: dict[str, Tensor], left: tuple[str, ...], backbone: str
) -> StartingPoint:
    if backbone != "s3d":
        raise MCNError(f"{asked} is CoCLR's S3D: use --backbone s3d, not {backbone}")
    try:
        return StartingPoint(asked, _COCLR, file, coclr.our_names(tensors), left=left)
    except MCNError as error:
        raise MCNError(f"{asked} is CoCLR's, but {error}") from error


def _plain(asked: str, kind: str, file: str, tensors: dict[str, Tensor], sha256: str = "") -> StartingPoint:
    """A backbone by torchvision's names: with torchvision's classifier or, as we export it, without."""
    mine = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEADS)}
    head = tuple(dict.fromkeys(name.partition(".")[0] for name in tensors if name not in mine))
    return StartingPoint(
        asked, kind if head else "an exported backbone", file, mine, left=head, sha256=sha256
    )


def _fetched(asked: str, name: str, backbone: str) -> StartingPoint:
    """Weights that torchvision publishes for a backbone; it keeps what it has fetched."""
    try:
        weights = torchvision.models.get_model_weights(backbone)[name]
    except (ValueError, KeyError) as error:
        raise MCNError(
            f"{asked}: torchvision has no weights {name!r} for --backbone {backbone}, "
            "but KINETICS400_V1 for r3d_18, r2plus1d_18 and s3d"
        ) from error
    try:
        tensors = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a full disk, a damaged file: each has types of its own
        raise MCNError(
            f"{asked}: torchvision cannot fetch {weights.url}: {first_line(error)} "
            "(fetch it yourself and give its path)"
        ) from error
    file = weights.url.rpartition("/")[2]
    digits = file.rpartition("-")[2].partition(".")[0]
    return _plain(asked, f"torchvision {backbone} {weights.name}", file, tensors, digits)


def _difference(name: str, given: Tensor | None, own: Tensor | None) -> str:
    if own is None:
        return f"{name} has no place here"
    if given is None:
        return "" if name.endswith(_COUNTER) else f"it has no {name}"
    if given.shape != own.shape:
        return f"size mismatch for {name}, {_shape(given)} there and {_shape(own)} here"
    return ""


def _fitting_backbone(tensors: dict[str, Tensor], config: PretrainConfig) -> str:
    """Flags that ask for the backbone that has just these names and shapes."""
    norm = tensors.get("layer1.0.conv1.1.weight")  # of the ResNets: as many as the first stage has channels
    widths = [None] if norm is None or len(norm) < 4 else [None, len(norm)]
    for width, name in ((width, name) for width in widths for name in BACKBONES):
        if name == "s3d" and width is not None:
            continue
        with torch.device("meta"):
            own = build_backbone(name, width).state_dict()
        if not any(_difference(n, tensors.get(n), own.get(n)) for n in {**own, **tensors}):
            own_width = "" if config.width is None else " --width null"  # which takes back a preset's
            return f"use --backbone {name}" + (f" --width {width}" if width else own_width)
    return "it fits no backbone of mcn"


def _sha256(file: str) -> str:
    digest = hashlib.sha256()
    with Path(file).open("rb") as opened:
        for block in iter(lambda: opened.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _listed(names: Iterable[str], most: int = 4) -> str:
    known = list(names)
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")
