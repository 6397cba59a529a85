"""The inference form of a model: the same outputs from far fewer operations."""

import copy
import functools
from reprlib import repr as brief

import torch
from torch import nn

from mobile_former.ablation import is_ablated
from mobile_former.deployment.backbone import DeployedBackbone, DeployedMobileFormer
from mobile_former.deployment.folding import fold_norm
from mobile_former.deployment.mobile import DeployedMobile
from mobile_former.errors import InputError
from mobile_former.layers.conv_norm import ConvNorm
from mobile_former.mobile import Mobile
from mobile_former.model import Backbone, MobileFormer


def deploy(model: nn.Module) -> nn.Module:
    """The inference form of a model.

    BatchNorm, shuffles and constant factors are folded into weights, and linears that read the same tokens are merged.
    It takes what the model takes, of one image or more, and gives what the model gives in evaluation, up to rounding.
    On a CPU, the first image also has most convolutions' weights copied in oneDNN's order, which takes as much memory
    again.

    Args:
        model: a classifier, a backbone or a detector of this project, a compiled one too (the result is not), or any
            module that holds some. It stays as it is.

    Returns:
        A module in evaluation, on the model's device and in its type, whose parameters need no gradients and have names
        of their own: it is made from a trained model, and neither trained nor loaded. Hooks run on the whole, and not
        on its parts.

    Raises:
        InputError: what is given is no module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"deploy takes a model and was given {brief(model)}: build it first, as by create_model")
    with torch.no_grad():
        return inference_form(copy.deepcopy(model)).eval().requires_grad_(False)


@functools.singledispatch
def inference_form(module: nn.Module) -> nn.Module:
    """What takes the place of a module, which may be altered; by default itself, with its parts replaced."""
    if isinstance(module, torch._dynamo.OptimizedModule):
        return inference_form(module._orig_mod)
    for name, child in module._modules.items():  # named_children() tells of a child with two names once
        if child is not None:
            setattr(module, name, inference_form(child))
    return module


@inference_form.register
def _(module: ConvNorm) -> nn.Module:
    return fold_norm(module)


@inference_form.register
def _(module: Mobile) -> nn.Module:
    return DeployedMobile(module) if _is_published(module, Mobile) else _with_parts_replaced(module)


@inference_form.register
def _(module: Backbone) -> nn.Module:
    return DeployedBackbone(module) if _is_published(module, Backbone) else _with_parts_replaced(module)


@inference_form.register
def _(module: MobileFormer) -> nn.Module:
    return DeployedMobileFormer(module) if _is_published(module, MobileFormer) else _with_parts_replaced(module)


def _is_published(module: nn.Module, kind: type) -> bool:
    """Whether a module computes what its kind does; of a class of its own, or ablated, its parts alone are replaced."""
    return type(module) is kind and not is_ablated(module)


def _with_parts_replaced(module: nn.Module) -> nn.Module:
    return inference_form.dispatch(nn.Module)(module)
