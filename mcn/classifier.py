"""A classifier: a backbone, and the heads that read classes off its features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcn.network import checkpointed_features
from mcn.precision import Precision, widened


class Head(nn.Module):
    """What reads classes off a feature, ``(B, F)`` -> ``(B, classes)``: dropout and a fully connected layer.

    ``normalise`` puts L2 normalisation and a BatchNorm with scale and shift before it, and starts the
    layer small, as CoCLR's linear probe does (:eq:`eq-transfer-headline`, row 43).
    """

    def __init__(self, width: int, classes: int, *, dropout: float = 0.0, normalise: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if normalise else None
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, classes)
        if normalise:
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of each feature."""
        if self.norm is not None:
            features = self.norm(F.normalize(features, dim=1))
        return self.fc(self.dropout(features))


class Classifier(nn.Module):
    """A backbone and the ``N`` heads that read it (one, but in a sweep): clips -> ``(N, B, classes)``.

    A ``frozen`` backbone stays in eval mode and gets no gradient. ``precision`` is the backbone's; with
    ``checkpointing`` its blocks are computed again on the way back.

    >>> from mcn.backbones import build_backbone
    >>> model = Classifier(build_backbone("r3d_small", 4), [Head(32, 5)])
    >>> model(torch.rand(2, 3, 4, 16, 16)).shape
    torch.Size([1, 2, 5])
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: Sequence[nn.Module],
        *,
        frozen: bool = False,
        precision: Precision | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.precision, self.checkpointing = precision or Precision(), checkpointing
        self.backbone, self.heads, self.frozen = backbone, nn.ModuleList(heads), frozen

    def train(self, mode: bool = True) -> "Classifier":
        """As any module's, but for a frozen backbone, which is always in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, clip: Tensor) -> Tensor:
        """Logits of each head, of clips ``(B, 3, T, H, W)``."""
        again = self.checkpointing and self.training
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen), self.precision.autocast():
            features = checkpointed_features(self.backbone, clip) if again else self.backbone(clip)
        features = widened(features)
        return torch.stack([head(features) for head in self.heads])
