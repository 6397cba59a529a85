"""Random predictions and objects for the tests of losses, and the size of the largest tensor."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def random_layer(queries, classes=3, images=1, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, queries, classes + 1, generator=generator, dtype=dtype)
    boxes = torch.rand(images, queries, 4, generator=generator, dtype=dtype) * 0.4 + 0.3
    return {"logits": logits, "boxes": boxes}


def random_target(objects, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "labels": torch.randint(0, classes, (objects,), generator=generator),
        "boxes": torch.rand(objects, 4, generator=generator) * 0.4 + 0.3,
    }


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and not value._is_view():
                self.elements = max(self.elements, value.numel())
        return result
