"""Count the parameters and the multiply-adds of a model."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Number of parameters of a model, and number of multiply-adds for one image.

    Attributes:
        params: number of parameters.
        madds: number of multiply-adds in the convolutions, the linear layers and both matrix products of every
            attention.
    """

    params: int
    madds: int

    def __str__(self) -> str:
        return f"{self.params / 1e6:.2f} M parameters, {self.madds / 1e6:.2f} M multiply-adds"


def cost(model: nn.Module, image_size: tuple[int, int] = (224, 224)) -> Cost:
    """Count the parameters of a model and the multiply-adds for one image. The model is not modified.

    Args:
        model: model that takes float32 images ``(1, C, H, W)``. ``C`` is ``model.in_chans``, or 3 if the model has no
            such attribute.
        image_size: height and width of the image in pixels.

    Returns:
        A :class:`Cost` with both numbers.
    """
    return Cost(sum(p.numel() for p in model.parameters()), madds_by_module(model, image_size)[""])


def madds_by_module(model: nn.Module, image_size: tuple[int, int] = (224, 224)) -> dict[str, int]:
    """Count the multiply-adds of a model and of each submodule for one image.

    :class:`Cost` lists the operations that are counted.

    Args:
        model: model that takes float32 images ``(1, C, H, W)``. ``C`` is ``model.in_chans``, or 3 if the model has no
            such attribute.
        image_size: height and width of the image in pixels.

    Returns:
        Dictionary from module names to multiply-adds. The count of a module includes its submodules. The whole model
        has the empty name. Modules without multiply-adds are absent.
    """
    # On the meta device nothing is computed, and every attention kernel is counted. Fake tensors support models that
    # read the values of a mask.
    twin = copy.deepcopy(model).to(device="meta", dtype=torch.float32).eval().requires_grad_(False)
    images = torch.empty(1, getattr(model, "in_chans", 3), *image_size, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(images)
    counts = {"": counter.get_total_flops() // 2}
    for name, operations in counter.get_flop_counts().items():
        if "." in name:
            counts[name.partition(".")[2]] = sum(operations.values()) // 2
    return counts
