"""3-D convolutional backbones: clip -> pooled feature, with torchvision's parameter names.

The paper uses S3D, R3D-18 and R(2+1)D; the last is read as torchvision's 18-layer ``r2plus1d_18``
(protocol row 2). The 10-layer pair of VCOP and IIC is here for comparison with those papers, and a
narrow ``r3d_small`` for laptops. Every module and key is torchvision's own, so exported weights
load into torchvision's models and its weights load here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from mcn._torchvision import torchvision

_resnet = torchvision.models.video.resnet


class VideoResNet(_resnet.VideoResNet):  # type: ignore[name-defined]
    """torchvision's video ResNet at any width, without its classifier.

    ``(B, 3, T, H, W)`` -> ``(B, 8 * width)``; ``width=64`` is torchvision's own size.
    """

    def __init__(
        self, conv: type[nn.Module], layers: list[int], stem: Callable[..., nn.Module], width: int
    ) -> None:
        self._width = width
        super().__init__(_resnet.BasicBlock, [conv] * 4, layers, partial(stem, width))
        self.fc = nn.Identity()
        self.out_features = 8 * width

    def _make_layer(self, block: Any, conv: Any, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        if stride == 1:  # the first stage: what enters it is the stem's output
            self.inplanes = self._width
        return super()._make_layer(block, conv, planes * self._width // 64, blocks, stride)

    def maps(self, x: Tensor) -> Tensor:
        """Activations of conv5, the last stage: ``(B, 8 * width, T / 8, H / 16, W / 16)``."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))

    light_blocks = (0,)  #: numbers of the :meth:`blocks` that are little work for what they keep: the stem

    @property
    def small_blocks(self) -> int:
        """So many of the last :meth:`blocks` keep little for their work: all stages but the first."""
        return len(self.layer2) + len(self.layer3) + len(self.layer4)

    def blocks(self) -> list[nn.Module]:
        """The modules that make :meth:`maps`, in order: stem and residual blocks."""
        return [self.stem, *self.layer1, *self.layer2, *self.layer3, *self.layer4]

    def pool(self, maps: Tensor) -> Tensor:
        """Pooled feature from :meth:`maps`: ``(B, 8 * width)``."""
        return self.avgpool(maps).flatten(1)


class S3D(nn.Module):
    """torchvision's S3D features, pooled over whatever size is left: ``(B, 3, T, H, W)`` -> ``(B, 1024)``.

    torchvision's own head averages a fixed 2 x 7 x 7 window and raises at the paper's 128 x 128
    (protocol row 3); its BatchNorm momentum of .001 never settles in a short run (row 36), so it is
    .1 here as in the other backbones.
    """

    out_features = 1024
    light_blocks = (1,)  #: a pooling and a convolution of one point: 1 % of the work, 11 % of what is kept
    small_blocks = 7  #: after the third pooling; with two more a product takes a sixth more memory

    def __init__(self) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm3d, eps=0.001, momentum=0.1)
        self.features = torchvision.models.video.S3D(norm_layer=norm).features

    def maps(self, x: Tensor) -> Tensor:
        """Activations of the last inception block: ``(B, 1024, T / 8, H / 32, W / 32)``."""
        return self.features(x)

    def blocks(self) -> list[nn.Module]:
        """The modules that make :meth:`maps`, in order; a pooling stands before what it feeds."""
        blocks: list[nn.Module] = []
        poolings: list[nn.Module] = []
        for module in self.features:
            if isinstance(module, nn.MaxPool3d):
                poolings.append(module)
            else:
                blocks.append(nn.Sequential(*poolings, module))
                poolings = []
        return blocks

    def pool(self, maps: Tensor) -> Tensor:
        """Pooled feature from :meth:`maps`: ``(B, 1024)``."""
        return maps.mean(dim=(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Pooled feature of each clip: ``(B, 1024)``."""
        return self.pool(self.maps(x))


def _stem_3d(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(3, width, kernel_size=(3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )


def _stem_2plus1d(width: int) -> nn.Sequential:
    middle = 45 * width // 64
    return nn.Sequential(
        nn.Conv3d(3, middle, kernel_size=(1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, width, kernel_size=(3, 1, 1), padding=(1, 0, 0), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )


@dataclass(frozen=True)
class _ResNetSpec:
    conv: type[nn.Module]
    stem: Callable[[int], nn.Module]
    layers: tuple[int, ...]
    width: int = 64


_RESNETS = {
    "r3d_18": _ResNetSpec(_resnet.Conv3DSimple, _stem_3d, (2, 2, 2, 2)),
    "r2plus1d_18": _ResNetSpec(_resnet.Conv2Plus1D, _stem_2plus1d, (2, 2, 2, 2)),
    "r3d_10": _ResNetSpec(_resnet.Conv3DSimple, _stem_3d, (1, 1, 1, 1)),
    "r2plus1d_10": _ResNetSpec(_resnet.Conv2Plus1D, _stem_2plus1d, (1, 1, 1, 1)),
    "r3d_small": _ResNetSpec(_resnet.Conv3DSimple, _stem_3d, (1, 1, 1, 1), width=16),
}

#: Names that :func:`build_backbone` knows.
BACKBONES = (*_RESNETS, "s3d")


def build_backbone(name: str, width: int | None = None) -> nn.Module:
    """A randomly initialised backbone, ``(B, 3, T, H, W)`` -> ``(B, backbone.out_features)``.

    ``name`` is one of :data:`BACKBONES`. ``width`` is the number of channels of the first stage
    (64 in torchvision's models, 16 in ``r3d_small``; the pooled feature has 8 times as many); S3D
    has one width only. ``backbone.maps(x)`` gives the last stage before pooling. Raises
    ``ValueError`` for an unknown name or a width that the backbone cannot have.

    >>> build_backbone("r3d_10", width=8).out_features
    64
    """
    if name == "s3d":
        if width not in (None, 64):
            raise ValueError(f"s3d has a fixed width: leave width out, got {width}")
        return S3D()
    if name not in _RESNETS:
        raise ValueError(f"unknown backbone {name!r}: one of {', '.join(BACKBONES)}")
    spec = _RESNETS[name]
    width = spec.width if width is None else width
    if width < 4:
        raise ValueError(f"width must be at least 4, got {width}")
    return VideoResNet(spec.conv, list(spec.layers), spec.stem, width)
