"""Clips of one video -> its feature: which crops, which view, which layer, and their mean.

Protocol rows 41 and 46. ``centre``: the short side is resized to the clip's size, the centre cut out.
``ten``: four corners and the centre, each of 7/8 of the short side (CoCLR's 224 of 256 pixels), and the
five mirrored. ``pooled``: the backbone's feature. ``conv5``: as in IIC, the last stage's maps,
max-pooled 2 x 2 in space and flattened.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mcn.config import EvalConfig
from mcn.data.augment import Augmentation, augment_batch, center_crop_batch
from mcn.data.datasets import Videos
from mcn.data.flow import flow_folder, read_flow
from mcn.data.loader import TestClips, check_length
from mcn.data.sampling import uniform_clips
from mcn.data.videoinfo import VideoError
from mcn.network import MetaContrastiveNetwork
from mcn.precision import Precision, widened
from mcn.settings import DataConfig
from mcn.views import make_views, normalise

#: Which of the two backbones (shared weights, own statistics) a view goes through.
VIEWS = {"rgb": 0, "residual": 1, "signed_residual": 1, "flow_u": 1, "flow_v": 1}
#: How many images of a clip are shown.
CROPS = {"centre": 1, "ten": 10}
#: What is taken of the network.
FEATURES = ("pooled", "conv5")
_FEATURE = {"pooled": "pooled features", "conv5": "conv5 features (max-pooled, flattened)"}
#: The same for a line of protocol.
CROPS_IN_WORDS = {"centre": "centre crop", "ten": "ten crops"}


class FlowClips(TestClips):
    """:class:`~mcn.data.loader.TestClips` of stored flow: uint8 ``(clips, T, H, W, 3)``, same moments."""

    def __init__(self, videos: Videos, *, view: str, **sizes: Any) -> None:
        super().__init__(videos, **sizes)
        self.view = view

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            with self.videos.open(index, self.reader, self.timeout) as video:
                check_length(video, self.frames + 1, self.stride)
                wanted = uniform_clips(len(video), self.frames + 1, self.stride, self.clips)
                info = video.info
            folder = flow_folder(self.videos, index)
            clips = [read_flow(folder, clip, self.view, info.height, info.width) for clip in wanted]
            return index, torch.stack([torch.from_numpy(clip) for clip in clips]), info.damage
        except VideoError as error:
            return index, None, str(error)


def evaluation_clips(videos: Videos, view: str, **sizes: Any) -> TestClips:
    """The clips that an evaluation reads for a view: of stored flow, or of the videos themselves.

    ``sizes`` are the settings of :class:`~mcn.data.loader.TestClips`.
    """
    return FlowClips(videos, view=view, **sizes) if is_flow(view) else TestClips(videos, **sizes)


def is_flow(view: str) -> bool:
    """Whether a view is read from stored flow images.

    >>> is_flow("flow_v"), is_flow("residual")
    (True, False)
    """
    return view in ("flow_u", "flow_v")


def evaluation_crops(raw: Tensor, size: int, crops: str = "centre", view: str = "rgb") -> Tensor:
    """What a network is shown of clips: ``uint8 (B, T, H, W, 3)`` -> ``(B * N, 3, T, size, size)`` in [0, 1].

    ``N`` is 1 for ``crops="centre"``, 10 for ``"ten"``. Mirrored horizontal flow points the other
    way (``view="flow_u"``).

    >>> evaluation_crops(torch.zeros(2, 3, 24, 32, 3, dtype=torch.uint8), 16, "ten").shape
    torch.Size([20, 3, 3, 16, 16])
    """
    if crops == "centre":
        return center_crop_batch(raw, size)
    boxes = ten_crops(*raw.shape[2:4])
    found = augment_batch(
        [clip for clip in raw for _ in boxes], boxes * len(raw), size, colour=False, device=raw.device
    )
    if view == "flow_u":
        flip = torch.tensor([box.flip for box in boxes] * len(raw), device=found.device)
        found = torch.where(flip.view(-1, 1, 1, 1, 1), 1 - found, found)
    return found


def ten_crops(height: int, width: int) -> list[Augmentation]:
    """Centre and four corners of a frame, in pixels, and the same five to be mirrored.

    >>> [(box.top, box.left, box.height) for box in ten_crops(16, 24)[:5]]
    [(1, 5, 14), (0, 0, 14), (0, 10, 14), (2, 0, 14), (2, 10, 14)]
    """
    side = max(1, round(min(height, width) * 7 / 8))
    down, right = height - side, width - side
    places = [(down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right)]
    boxes = [Augmentation(top, left, side, side) for top, left in places]
    return boxes + [replace(box, flip=True) for box in boxes]


def clips_in_words(config: DataConfig) -> str:
    """Length, stride and size of a config's clips.

    >>> clips_in_words(EvalConfig())
    '32 frames, stride 1, 128 pixels'
    """
    return f"{config.frames} frames, stride {config.stride}, {config.size} pixels"


def made_of(config: EvalConfig) -> str:
    """What a video's feature is by a config, in words for the line of protocol.

    >>> print(made_of(EvalConfig(view="rgb+flow_v", crops="ten")).replace("rgb", "\\nrgb"))
    pooled features, mean of 10 clips of 32 frames, stride 1, 128 pixels, ten crops,
    rgb+flow_v, each view at unit length
    """
    view = config.view + ", each view at unit length" * ("+" in config.view)
    clips = f"{config.clips} clips of {clips_in_words(config)}"
    return f"{_FEATURE[config.feature]}, mean of {clips}, {CROPS_IN_WORDS[config.crops]}, {view}"


def one_view(clip: Tensor, view: str) -> Tensor:
    """The view that an evaluation shows the network, normalised: ``(B, 3, T, H, W)``.

    ``clip`` is in [0, 1]: frames ``(B, 3, T + 1, H, W)``, for flow views images ``(B, 3, T, H, W)``.
    """
    if is_flow(view):
        return normalise(clip, view)
    return make_views(clip, "residual" if view == "rgb" else view)[VIEWS[view]]


def conv5_feature(maps: Tensor) -> Tensor:
    """Maps of the last stage max-pooled over 2 x 2 cells and flattened: ``(B, C, t, h, w)`` -> ``(B, F)``.

    >>> conv5_feature(torch.arange(8.0).view(1, 2, 1, 2, 2))
    tensor([[3., 7.]])
    """
    return F.max_pool3d(maps, (1, min(2, maps.shape[3]), min(2, maps.shape[4]))).flatten(1)


def video_feature(
    network: MetaContrastiveNetwork,
    raw: Tensor,
    *,
    size: int,
    view: str = "rgb",
    crops: str = "centre",
    feature: str = "pooled",
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    precision: Precision | None = None,
) -> Tensor:
    """The mean feature ``(F,)`` of a video's clips, uint8 ``(clips, T + 1, H, W, 3)``.

    The backbone is computed in ``precision``, by default full float32; the mean is always float32.

    At most ``batch_size`` images go through the network at a time (ten, if a clip has ten crops). The
    network should be in eval mode.
    """
    backbone = network.backbone(VIEWS[view])

    def each() -> Iterator[Tensor]:
        for some in raw.split(max(1, batch_size // CROPS[crops])):
            x = one_view(evaluation_crops(some.to(device), size, crops, view), view)
            with (precision or Precision()).autocast():
                y = backbone(x) if feature == "pooled" else conv5_feature(backbone.maps(x))  # type: ignore[operator]
            yield widened(y)

    # TF32 would make a feature depend on the batch it was computed in.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return torch.cat(list(each())).mean(0)
