"""Backbone weights for other programs: safetensors with torchvision's own key names.

``torchvision.models.video.r3d_18().load_state_dict(weights, strict=False)`` takes them; only the
classifier ``fc`` is missing, which pre-training does not have.
"""

from pathlib import Path

from safetensors.torch import save

from mcn.checkpoint import load_checkpoint
from mcn.files import write_atomically

_VIEWS = {"rgb": 0, "second": 1}


def export_backbone(checkpoint: str | Path, path: Path, view: str = "rgb") -> Path:
    """Write the backbone of a pre-trained or fine-tuned checkpoint to ``path`` (``.safetensors``).

    ``view`` is ``"rgb"`` or ``"second"``: the weights are shared, BatchNorm's running statistics
    are the view's own. Where there is one backbone for all (fine-tuned, or mixed statistics) it is
    that. Raises :class:`~mcn.errors.MCNError` for a
    checkpoint that cannot be read or a path that cannot be written.
    """
    state = load_checkpoint(checkpoint)["network"]
    prefixes = (f"backbones.{_VIEWS[view]}.", "backbones.0.", "backbone.")
    prefix = next(p for p in prefixes if any(name.startswith(p) for name in state))
    weights = {
        name.removeprefix(prefix): t.contiguous() for name, t in state.items() if name.startswith(prefix)
    }
    write_atomically(path, lambda file: file.write(save(weights)))
    return path
