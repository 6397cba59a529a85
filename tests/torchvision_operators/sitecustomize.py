"""Make ``import torchvision`` work beside a torch that its compiled library does not fit, such as torch for CPUs.

During its import, torchvision registers functions for the operators ``nms`` and ``qnms`` of its compiled library. The
import fails if the library cannot be loaded. This module declares the two operators before torchvision is imported.
They have no implementation. The models of timm do not need one.

Python imports this module when it starts, if PYTHONPATH contains this folder. The fixture ``timm`` imports it too.
"""

import functools
import sys
from importlib.machinery import PathFinder
from pathlib import Path


@functools.cache
def declare_operators() -> object:
    """Declare the operators, unless torchvision's own can be loaded."""
    import torch

    torchvision = PathFinder.find_spec("torchvision")
    if torchvision is None:
        return None
    try:
        for library in Path(torchvision.origin).parent.glob("_C.*"):
            torch.ops.load_library(library)
        return None
    except OSError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return operators  # the operators exist as long as this object, which the cache keeps


class BeforeTorchvision:
    """Import hook that finds no module. It declares the operators before torchvision is imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision":
            declare_operators()


sys.meta_path.insert(0, BeforeTorchvision)
