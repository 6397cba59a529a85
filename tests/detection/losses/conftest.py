"""Random predictions and objects for the tests of losses."""

import torch


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
