"""What a model costs: parameters and multiply-adds."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Cost of a model on one image.

    Attributes:
        params: number of parameters.
        madds: multiply-adds of the convolutions, linears and both matrix products of every attention.
    """

    params: int
    madds: int

    def __str__(self) -> str:
        return f"{self.params / 1e6:.2f} M parameters, {self.madds / 1e6:.2f} M multiply-adds"


def cost(model: nn.Module, image_size: tuple[int, int] = (224, 224)) -> Cost:
    """Count parameters and multiply-adds for one image; the model itself stays as it is.

    Args:
        model: takes images ``(1, C, H, W)`` of float32, with ``C`` its attribute ``in_chans`` or 3.
        image_size: height and width in pixels.
    """
    return Cost(sum(p.numel() for p in model.parameters()), madds_by_module(model, image_size)[""])


def madds_by_module(model: nn.Module, image_size: tuple[int, int] = (224, 224)) -> dict[str, int]:
    """Multiply-adds of a model and of each of its parts that has any, for one image, as :func:`cost` counts them.

    Args:
        model: and
        image_size: as of :func:`cost`.

    Returns:
        By the part's name, its own parts included; the model's name is empty.
    """
    # On the meta device nothing is computed, and every kernel of attention is counted. Fake tensors let through models
    # that look at a mask's values where there are any.
    twin = copy.deepcopy(model).to(device="meta", dtype=torch.float32).eval().requires_grad_(False)
    images = torch.empty(1, getattr(model, "in_chans", 3), *image_size, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(images)
    counts = {"": counter.get_total_flops() // 2}
    for name, operations in counter.get_flop_counts().items():
        if "." in name:
            counts[name.partition(".")[2]] = sum(operations.values()) // 2
    return counts
