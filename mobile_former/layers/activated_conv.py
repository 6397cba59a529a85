"""BatchNorm, dynamic ReLU and the convolution after them as one operation, for training on a CPU.

Training with separate operations stores three large maps for the backward pass: the inputs of BatchNorm, of dynamic
ReLU and of the convolution. The second and third are cheap to compute from the first. :func:`activated_conv` therefore
stores only the first, and computes the others again in the backward pass. Dynamic ReLU is computed in blocks that fit
into a cache, see :mod:`mobile_former.layers.dynamic_relu`. BatchNorm's scale and shift are applied to these blocks, so
that the second map is never written to memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.layers.conv_norm import ConvNorm
from mobile_former.layers.dynamic_relu import (
    DynamicReLU,
    blocked_backward,
    blocked_forward,
    guiding_tokens,
    larger_product,
)
from mobile_former.layers.eager import is_eager
from mobile_former.layers.padding import zero_padding
from mobile_former.layers.pointwise import batch_for_onednn, convolve, divide_positions, join_positions

LARGE = 1 << 18  # for maps with fewer values, storing them is faster than computing them again


def can_train_activated_conv(x: Tensor, *modules: nn.Module) -> bool:
    """Return whether :func:`activated_conv` can replace modules in a training step.

    The result is False if a module has hooks, because the hooks would not be called. It is also False if the class of a
    module or of one of its submodules is not the expected one.

    Args:
        x: input map of the first module.
        modules: the modules to replace.
    """
    return (
        torch.is_grad_enabled()
        and x.is_cpu
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and is_eager(x)
        and all(_is_unchanged(module) for module in modules)
        and not torch.nn.modules.module._has_any_global_hook()
    )


def _is_unchanged(module: nn.Module) -> bool:
    """Return True if a module is of a class that this file supports, and no part of it has hooks."""
    if type(module) is ConvNorm:
        norm = module.norm
        if (
            type(norm) is not nn.BatchNorm2d
            or norm.weight is None
            or norm.running_mean is None
            or norm.momentum is None
        ):
            return False
    elif type(module) not in (DynamicReLU, nn.Identity):
        return False
    return not any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for part in module.modules()
    )


def activated_conv(
    x: Tensor,
    norm: nn.BatchNorm2d,
    relu: DynamicReLU,
    conv: nn.Conv2d,
    tokens: Tensor,
    mixing: Tensor | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    """Compute ``conv(zero_padding(relu(norm(x), tokens, mixing), padding))``.

    If ``x`` is large, only ``x`` is stored for the backward pass.

    Args:
        x: feature map, ``(B, C, H, W)``.
        norm: BatchNorm. In training mode, its running statistics are updated.
        relu: dynamic ReLU.
        conv: convolution without bias.
        tokens: see :meth:`DynamicReLU.forward`.
        mixing: see :meth:`DynamicReLU.forward`.
        padding: ``(B, 1, H, W)`` bool, True on padding; None for no padding.

    Returns:
        The output map of the convolution.
    """
    slopes = relu.slopes_of(guiding_tokens(tokens, mixing))
    if x.numel() < LARGE:
        return convolve(conv, zero_padding(larger_product(norm(x), slopes, mixing), padding))
    with torch.no_grad():
        mean, variance = norm.running_mean.clone(), norm.running_var
        if norm.training:
            norm.num_batches_tracked.add_(1)
            mean, variance = torch.ops.aten.batch_norm_update_stats(
                x, norm.running_mean, norm.running_var, norm.momentum
            )
        deviation = (variance + norm.eps).sqrt()
    inputs = (x, norm.weight, norm.bias, slopes, mixing, conv.weight)
    convolution = (conv.stride, conv.padding, conv.groups)
    eps = norm.eps if norm.training else None
    return _ActivatedConv.apply(*inputs, mean, deviation, padding, eps, convolution)


class _ActivatedConv(torch.autograd.Function):
    """Autograd function of :func:`activated_conv`.

    Its inputs are:

    - ``x``: feature map ``(B, C, H, W)``;
    - ``weight``, ``bias``: weight and bias of BatchNorm;
    - ``slopes``, ``mixing``: see :func:`larger_product`;
    - ``kernel``: weight of the convolution;
    - ``mean``, ``deviation``: mean and standard deviation with which BatchNorm normalises, ``(C,)``;
    - ``padding``: see :func:`activated_conv`;
    - ``eps``: number that BatchNorm adds to the variance of ``x``; None if ``mean`` and ``deviation`` are running
      statistics instead of the statistics of ``x``;
    - ``convolution``: tuple of stride, padding and groups of the convolution.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, slopes, mixing, kernel, mean, deviation, padding, eps, convolution):
        ctx.save_for_backward(x, weight, bias, slopes, mixing, kernel, mean, deviation, padding)
        ctx.eps, ctx.convolution = eps, convolution
        hidden = _activate(x, slopes, mixing, _scale_and_shift(weight, bias, mean, deviation), padding)
        stride, margin, groups = convolution
        batch = batch_for_onednn(hidden, kernel, *convolution)
        if batch is not None:
            return join_positions(F.conv2d(divide_positions(hidden, batch), kernel), hidden)
        return F.conv2d(hidden, kernel, None, stride, margin, 1, groups)

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_gradients(ctx, gradient)
        x, weight, bias, slopes, mixing, kernel, mean, deviation, padding = ctx.saved_tensors
        affine = _scale_and_shift(weight, bias, mean, deviation)
        # The gradient of the kernel needs the activated map. blocked_backward computes this map as well.
        of_hidden = _convolution_gradient(0, gradient, x, kernel, ctx.convolution)
        if padding is not None:
            of_hidden.masked_fill_(padding, 0)
        hidden = torch.empty_like(x) if ctx.needs_input_grad[5] else None
        of_normed, of_slopes, of_mixing = blocked_backward(
            of_hidden, x, slopes, mixing, affine, overwrite=True, output=hidden
        )
        of_kernel = None
        if hidden is not None:
            hidden = hidden if padding is None else hidden.masked_fill_(padding, 0)
            of_kernel = _convolution_gradient(1, gradient, hidden, kernel, ctx.convolution)
            del hidden
        of_map = ctx.eps is not None
        statistics = (mean, 1 / deviation) if of_map else (None, None)
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            of_normed, x, weight, mean, deviation.square(), *statistics, of_map, 0.0, (True, True, True)
        )
        return of_x, of_weight, of_bias, of_slopes, of_mixing, of_kernel, *[None] * 5


def _convolution_gradient(of: int, gradient: Tensor, x: Tensor, kernel: Tensor, convolution: tuple) -> Tensor:
    """Return the gradient of a convolution with respect to its input (``of=0``) or its kernel (``of=1``).

    ``gradient`` is the gradient with respect to the output, and ``x`` is the input. For ``of=0``, only the shape and
    the memory format of ``x`` are used. ``convolution`` is the tuple (stride, padding, groups).
    """
    stride, margin, groups = convolution
    needed = (of == 0, of == 1, False)
    batch = batch_for_onednn(x, kernel, *convolution)
    maps = (gradient, x) if batch is None else (divide_positions(gradient, batch), divide_positions(x, batch))
    found = torch.ops.aten.convolution_backward(
        *maps, kernel, None, stride, margin, (1, 1), False, (0, 0), groups, needed
    )[of]
    return join_positions(found, x) if of == 0 and batch is not None else found


def _scale_and_shift(weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tuple (scale, shift), both ``(C,)``, of the linear function that BatchNorm applies to each channel.

    See :class:`_ActivatedConv` for the arguments.
    """
    scale = weight / deviation
    return scale, bias - scale * mean


def _activate(
    x: Tensor, slopes: Tensor, mixing: Tensor | None, affine: tuple[Tensor, Tensor], padding: Tensor | None
) -> Tensor:
    hidden = blocked_forward(x, slopes, mixing, affine)
    return hidden if padding is None else hidden.masked_fill_(padding, 0)


def _differentiable_gradients(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of :class:`_ActivatedConv` by operations that autograd can differentiate again.

    ``gradient`` is the gradient with respect to the output. The result has one entry for each input of the autograd
    function. An entry is None if its gradient is not needed.
    """
    *inputs, mean, deviation, padding = ctx.saved_tensors
    # Views, because one input can depend on another one, but only the direct gradient of each input is needed.
    inputs = [None if part is None else part.view_as(part) for part in inputs]
    x, weight, bias, slopes, mixing, kernel = inputs
    if ctx.eps is not None:
        mean, deviation = x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + ctx.eps).sqrt()
    normed = (x - mean[:, None, None]) * (weight / deviation)[:, None, None] + bias[:, None, None]
    hidden = zero_padding(larger_product(normed, slopes, mixing), padding)
    stride, margin, groups = ctx.convolution
    out = F.conv2d(hidden, kernel, None, stride, margin, 1, groups)
    needed = [part for part, need in zip(inputs, ctx.needs_input_grad, strict=False) if need]
    found = iter(torch.autograd.grad(out, needed, gradient, create_graph=True))
    return (*(next(found) if need else None for need in ctx.needs_input_grad[:6]), *[None] * 5)
