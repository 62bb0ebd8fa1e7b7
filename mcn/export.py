"""Backbone weights for other programs: safetensors with torchvision's own key names.

``torchvision.models.video.r3d_18().load_state_dict(weights, strict=False)`` takes them; only the
classifier ``fc`` is missing, which pre-training does not have.
"""

import os
from pathlib import Path

from safetensors.torch import save_file

from mcn.checkpoint import load_checkpoint
from mcn.errors import MCNError

_VIEWS = {"rgb": 0, "second": 1}


def export_backbone(checkpoint: str | Path, path: Path, view: str = "rgb") -> Path:
    """Write the backbone of a pre-trained or fine-tuned checkpoint to ``path`` (``.safetensors``).

    ``view`` is ``"rgb"`` or ``"second"``: the weights are shared, BatchNorm's running statistics
    are the view's own. A fine-tuned network has one view. Raises :class:`MCNError` for a
    checkpoint that cannot be read or a path that cannot be written.
    """
    state = load_checkpoint(checkpoint)["network"]
    prefix = f"backbones.{_VIEWS[view]}."
    if any(name.startswith("backbone.") for name in state):
        prefix = "backbone."
    weights = {
        name.removeprefix(prefix): t.contiguous() for name, t in state.items() if name.startswith(prefix)
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, str(temporary))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MCNError(f"cannot write {path}: {error.strerror or error}") from error
    return path
