"""Import torchvision beside any build of PyTorch.

torchvision's wheel is compiled against one build of PyTorch (usually CUDA's). Beside another one
(a CPU build, say) its compiled operators cannot load, and then ``import torchvision`` itself fails:
it registers meta kernels for ``torchvision::nms`` and ``torchvision::qnms``, whose schemas only the
compiled library defines. Nothing here needs those two operators (they belong to object detection),
so where the compiled library does not load we define the two schemas and import again.

Everything else in the package says ``from mcn._torchvision import torchvision``.
"""

import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # the schemas live as long as this object

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    _library = torch.library.Library("torchvision", "DEF")
    for _schema in _SCHEMAS:
        _library.define(_schema)
    for _name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[_name]
    import torchvision

__all__ = ["torchvision"]
