"""Convert a trained model to its inference form, which computes the same outputs with fewer operations."""

import copy
import functools
import sys
from reprlib import repr as brief

import torch
from torch import nn

import mobile_former.deployment.exported_graphs  # noqa: F401 — registers the forward passes of exported graphs
from mobile_former.ablation import is_ablated
from mobile_former.deployment.backbone import DeployedBackbone, DeployedMobileFormer
from mobile_former.deployment.folding import fold_norm
from mobile_former.deployment.mobile import DeployedMobile
from mobile_former.errors import InputError
from mobile_former.layers.conv_norm import ConvNorm
from mobile_former.mobile import Mobile
from mobile_former.model import Backbone, MobileFormer

_FORMS = {Mobile: DeployedMobile, Backbone: DeployedBackbone, MobileFormer: DeployedMobileFormer}


def deploy(model: nn.Module) -> nn.Module:
    """Convert a model to its inference form, which computes the same outputs with fewer operations.

    The inference form takes the same inputs as the model, but the batch must not be empty. Up to rounding, its outputs
    are those of the model in evaluation mode. BatchNorm, channel shuffles and constant factors are folded into weights.
    Linear layers that read the same tokens are merged. On a CPU, the first forward pass also stores most convolution
    weights a second time, in oneDNN's layout. This doubles the memory of these weights.

    Args:
        model: a classifier, backbone or detector of this project, or a module that contains such models. It is not
            modified. It may be compiled, but the result is not compiled.

    Returns:
        A module in evaluation mode, with the model's device and dtype. It cannot be trained, because its parameters
        require no gradients. It cannot load the model's weights, because its parameters have other names. Hooks on the
        whole module run, but hooks on most of its submodules do not.

    Raises:
        InputError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"deploy takes a model and was given {brief(model)}: build it first, for example with create_model"
        )
    with torch.no_grad():
        return inference_form(copy.deepcopy(model)).eval().requires_grad_(False)


@functools.singledispatch
def inference_form(module: nn.Module) -> nn.Module:
    """Convert a module to its inference form, and return it. The given module may be modified in place.

    If the class of the module has an inference form, and no ablation has replaced a part of the module, the whole
    module is replaced. Any other module is kept, and this function is applied to its children. An ablated module, or a
    module of a subclass, is kept because its outputs would differ from those of the inference form.
    """
    # A compiled module exists only if torch._dynamo is loaded. Loading it takes as long as loading the rest of torch.
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and isinstance(module, dynamo.OptimizedModule):
        return inference_form(module._orig_mod)
    if type(module) in _FORMS and not is_ablated(module):
        return _FORMS[type(module)](module)
    for name, child in module._modules.items():  # named_children() omits the second name of a child
        if child is not None:
            setattr(module, name, inference_form(child))
    return module


@inference_form.register
def _(module: ConvNorm) -> nn.Module:
    return fold_norm(module)
