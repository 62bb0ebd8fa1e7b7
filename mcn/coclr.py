"""CoCLR's S3D by the names of ours, so that a network of its authors can be a starting point (row 29).

The two are the same network layer for layer: 1 x k x k convolution, then k x 1 x 1, each followed by
BatchNorm and ReLU and without bias; the same widths, strides, paddings and pools. They differ in names
and in BatchNorm's eps, 1e-5 there and 1e-3 here, which matters where a running variance is small. So
each BatchNorm weight is scaled by ``sqrt((var + 1e-3) / (var + 1e-5))``: in eval mode the network is then
CoCLR's own, and in training as far as a batch's variance is the running one. A network with self-gating
(S3D-G, ``--net s3dg`` there) is another one and is refused.
"""

import re

import torch
from torch import Tensor, nn

from mcn.errors import MCNError

#: BatchNorm's eps in CoCLR's S3D, which is PyTorch's default; torchvision's S3D has .001.
EPS = 1e-5
#: What the backbone's names begin with: pre-trained (the query encoder), fine-tuned, and the backbone alone.
PREFIXES = ("encoder_q.0.", "backbone.", "")

# A layer is registered twice there, by its name and by its place in a block: both lead to our features.N.
_LAYERS = {
    "Conv_1a": 0, "Conv_2b": 2, "Conv_2c": 3, "Mixed_3b": 5, "Mixed_3c": 6, "Mixed_4b": 8, "Mixed_4c": 9,
    "Mixed_4d": 10, "Mixed_4e": 11, "Mixed_4f": 12, "Mixed_5b": 14, "Mixed_5c": 15,
    "block1.0": 0, "block2.1": 2, "block2.2": 3, "block3.1": 5, "block3.2": 6, "block4.1": 8, "block4.2": 9,
    "block4.3": 10, "block4.4": 11, "block4.5": 12, "block5.1": 14, "block5.2": 15,
}  # fmt: skip
_PARTS = {"conv": "0", "bn": "1", "conv1": "0.0", "bn1": "0.1", "conv2": "1.0", "bn2": "1.1"}
_NAME = re.compile(
    rf"(?P<layer>{'|'.join(map(re.escape, _LAYERS))})\.(?:(?P<branch>branch[0-3])\.(?P<place>[01])\.)?"
    rf"(?P<part>{'|'.join(_PARTS)})\.(?P<tensor>\w+)"
)


def our_name(name: str) -> str | None:
    """The name in our S3D of a tensor of CoCLR's, or ``None`` for one that is not of the plain S3D.

    >>> our_name("block3.1.branch1.1.conv2.weight"), our_name("Mixed_3b.gating_b0.fc.weight")
    ('features.5.branch1.1.1.0.weight', None)
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    branch, place = found["branch"], found["place"]
    # branch0 is one convolution, in a list of one there and bare here
    inside = "" if branch is None else "branch0." if branch == "branch0" else f"{branch}.{place}."
    return f"features.{_LAYERS[found['layer']]}.{inside}{_PARTS[found['part']]}.{found['tensor']}"


def our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """CoCLR's S3D by the names of ours; what it names twice, once.

    Raises :class:`~mcn.errors.MCNError` for tensors that our S3D has no place for, and where the two names
    of a layer hold different numbers.
    """
    unknown = [name for name in tensors if our_name(name) is None]
    if unknown:
        gates = any("gating" in name for name in unknown)
        what = "self-gating is S3D-G's, take a network of `--net s3d`" if gates else "not CoCLR's plain S3D"
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise MCNError(f"s3d has no place for {', '.join(unknown[:3])}{more}: {what}")
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = str(our_name(name))
        if not torch.equal(renamed.setdefault(ours, tensor), tensor):
            raise MCNError(f"{name} differs from the same layer under its other name: get the file again")
    return renamed


def with_eps_of(backbone: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """BatchNorm weights that do with the backbone's eps what these do with CoCLR's, in eval mode."""
    changed = dict(tensors)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm3d):
            variance = tensors[f"{name}.running_var"].double()
            scale = ((variance + module.eps) / (variance + EPS)).sqrt()
            changed[f"{name}.weight"] = tensors[f"{name}.weight"] * scale
    return changed
