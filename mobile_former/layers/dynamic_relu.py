"""Dynamic ReLU: an activation function with slopes that depend on the image (Chen et al., Dynamic ReLU, ECCV 2020).

In Mobile-Former, the slopes are computed from the tokens.

For large maps on a CPU, :func:`larger_product` divides the map into blocks that fit into the second-level cache.
Without blocks, most of the time would be spent on reading and writing memory: if the slopes differ between positions,
they need twice as much memory as the map.

On a GPU, operations on whole maps would also spend most of their time on reading and writing memory. The Triton kernels
of :mod:`mobile_former.layers.dynamic_relu_triton` are therefore used there if Triton is installed. Without Triton,
``torch.compile`` does not help, because its code for GPUs is Triton code.
"""

import functools
import importlib
import math
import warnings
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobile_former.layers.eager import is_eager
from mobile_former.layers.linear import linear

CACHED = 3 << 17  # number of values in all buffers of a thread: 1.5 MB in float32, as large as a second-level cache
LARGE = 1 << 17  # maps with more values are computed in blocks


class DynamicReLU(nn.Module):
    """The activation ``max(a₁·x, a₂·x)``, whose two slopes for each channel are computed by an MLP from tokens.

    The MLP has two layers and computes ``θ = hsigmoid(W₂·relu(W₁·z))`` from a token ``z``. With ``θ`` split into halves
    ``θ₁`` and ``θ₂``, the slopes are ``a₁ = 2(θ₁ − ½) + 1`` and ``a₂ = 2(θ₂ − ½)``. The spatially shared variant uses
    the slopes of the first token at all positions. The spatially aware variant computes slopes for every token. At each
    position, it uses a weighted mean of the slopes of all tokens.

    Args:
        channels: channels of the feature map.
        token_dim: dimension of a token.
    """

    def __init__(self, channels: int, token_dim: int):
        super().__init__()
        self.reduce = linear(token_dim, token_dim // 4)
        self.slopes = linear(token_dim // 4, 2 * channels)

    def forward(self, x: Tensor, tokens: Tensor, mixing: Tensor | None = None) -> Tensor:
        """Apply the activation.

        Args:
            x: feature map, ``(B, C, H, W)``.
            tokens: ``(B, M, d)``. If ``mixing`` is None, the first token ``(B, d)`` is enough.
            mixing: weight of each token at each position, ``(B, M, H, W)``, for the spatially aware variant. The
                weights sum to 1 over the tokens. It is None for the spatially shared variant.

        Returns:
            The output map, ``(B, C, H, W)``.
        """
        return larger_product(x, self.slopes_of(guiding_tokens(tokens, mixing)), mixing)

    def slopes_of(self, tokens: Tensor) -> Tensor:
        """Return the slopes ``(…, 2C)`` for tokens ``(…, d)``: first ``a₁`` of all channels, then ``a₂``."""
        theta1, theta2 = F.hardsigmoid(self.slopes(F.relu(self.reduce(tokens)))).chunk(2, dim=-1)
        return torch.cat([2 * theta1, 2 * theta2 - 1], dim=-1)


def guiding_tokens(tokens: Tensor, mixing: Tensor | None) -> Tensor:
    """Return the tokens from which dynamic ReLU computes its slopes.

    Args:
        tokens: all tokens, ``(B, M, d)``. If ``mixing`` is None, the first token ``(B, d)`` is enough.
        mixing: weight of each token at each position for the spatially aware variant; None for the spatially shared
            variant.

    Returns:
        All tokens ``(B, M, d)`` for the spatially aware variant, the first token ``(B, d)`` for the spatially shared
        variant.
    """
    return tokens[:, 0] if mixing is None and tokens.ndim == 3 else tokens


def larger_product(x: Tensor, slopes: Tensor, mixing: Tensor | None = None, *, overwrite: bool = False) -> Tensor:
    """Compute ``max(a₁·x, a₂·x)`` with a backward pass that needs less time and memory than autograd's.

    Args:
        x: feature map, ``(B, C, H, W)``.
        slopes: the slopes ``a₁``, followed by the slopes ``a₂``: ``(B, 2C)`` without ``mixing``, otherwise
            ``(B, M, 2C)`` for the tokens.
        mixing: weight of each token at each position, ``(B, M, H, W)``. The slopes at a position are the weighted sum
            of the tokens' slopes. None if the slopes are the same at all positions.
        overwrite: allow the result to be stored in the memory of ``x``. This saves time, because new memory is slow at
            the first access. It has no effect if autograd records the operation.

    Returns:
        The elementwise maximum, ``(B, C, H, W)``.
    """
    if torch.compiler.is_compiling():  # a compiler fuses the operations and derives the gradients itself
        return _whole_forward(x, slopes, mixing)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, slopes, mixing)):
        return _LargerProduct.apply(x, slopes, mixing)
    return _forward(x, slopes, mixing, overwrite)


class _LargerProduct(torch.autograd.Function):
    """Autograd function of :func:`larger_product`.

    For the backward pass, it saves its inputs, but neither the slopes at the positions nor the products. If the two
    products are equal, for example at ``x = 0``, the gradients are those of the second product.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, slopes: Tensor, mixing: Tensor | None) -> Tensor:
        return _forward(x, slopes, mixing, overwrite=False)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, slopes, mixing = ctx.saved_tensors
        # With create_graph=True, autograd records the backward pass, which is possible only for whole maps.
        if is_eager(x, slopes, mixing, gradient) and not torch.is_grad_enabled():
            if is_large(x):
                return blocked_backward(gradient, x, slopes, mixing)
            kernels = _kernels(x, slopes, mixing)
            if kernels and (gradients := kernels.backward(gradient, x, slopes, mixing)):
                return gradients
        return _whole_backward(gradient, x, slopes, mixing)


def _forward(x: Tensor, slopes: Tensor, mixing: Tensor | None, overwrite: bool) -> Tensor:
    if not is_eager(x, slopes, mixing):
        return _whole_forward(x, slopes, mixing)
    kernels = _kernels(x, slopes, mixing)
    if kernels and (out := kernels.forward(x, slopes, mixing, overwrite=overwrite)) is not None:
        return out
    if is_large(x):
        return blocked_forward(x, slopes, mixing, overwrite=overwrite)
    if not overwrite:
        return _whole_forward(x, slopes, mixing)
    slope1, slope2 = _slopes_at_positions(slopes, mixing)
    product = x * slope1
    return torch.maximum(product, x.mul_(slope2), out=product)


def _kernels(x: Tensor, slopes: Tensor, mixing: Tensor | None) -> ModuleType | None:
    """Return the module with the GPU kernels, or None if they cannot be used for these arguments."""
    kernels = _kernels_for(x.device.type)
    return kernels if kernels and kernels.fits(x, slopes, mixing) else None


@functools.cache
def _kernels_for(device: str) -> ModuleType | None:
    """Return the module with the kernels for a type of device.

    Return None if the device has no kernels, if Triton is missing, or if the kernels compute other values than PyTorch.
    """
    if device != "cuda":
        return None
    try:
        kernels = importlib.import_module("mobile_former.layers.dynamic_relu_triton")
    except ImportError:
        return None
    return kernels if _agree(kernels, device) else None


def _agree(kernels: ModuleType, device: str) -> bool:
    """Return whether kernels compute the same values as PyTorch's operations on a small map. If not, warn.

    The check is needed because a wrong kernel would spoil a training without raising any error.

    Args:
        kernels: module with the kernels.
        device: type of the device, such as ``"cuda"``.
    """
    generator = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(2, 2, 24, 9, 11, generator=generator).to(device)
    slopes = torch.randn(2, 3, 48, generator=generator).to(device)
    mixing = torch.rand(2, 3, 9, 11, generator=generator).to(device)
    with torch.no_grad(), torch.autocast(device, enabled=False):
        for own_slopes, own_mixing in ((slopes[:, 0], None), (slopes, mixing)):
            inputs = (x, own_slopes, own_mixing)
            found = kernels.forward(*inputs), *(kernels.backward(gradient, *inputs) or ())
            if found[0] is None or len(found) == 1:
                return False  # the kernels have warned
            expected = _whole_forward(*inputs), *_whole_backward(gradient, *inputs)
            pairs = ((own, other) for own, other in zip(found, expected, strict=True) if own is not None)
            # The tolerance allows for products of TensorFloat-32 in PyTorch's operations.
            if not all(torch.allclose(own, other, rtol=0.02, atol=0.1) for own, other in pairs):
                warnings.warn(
                    "the Triton kernels of dynamic ReLU compute wrong values on this GPU, so slower operations of "
                    "PyTorch are used: please report it with the GPU and the version of Triton",
                    stacklevel=2,
                )
                return False
    return True


def is_large(x: Tensor) -> bool:
    """Return True for a large map on a CPU. Such a map is computed block by block, because this is faster."""
    return x.is_cpu and x.numel() > LARGE


def _whole_forward(x: Tensor, slopes: Tensor, mixing: Tensor | None) -> Tensor:
    """Compute :func:`larger_product` on the whole map at once, without blocks."""
    slope1, slope2 = _slopes_at_positions(slopes, mixing)
    return torch.maximum(x * slope1, x * slope2)  # with x first, the result has its memory format


def _slopes_at_positions(slopes: Tensor, mixing: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the slopes ``a₁`` and ``a₂`` at each position, as two tensors ``(B, C, H, W)``.

    If ``mixing`` is None, the slopes are the same at all positions, and both tensors are ``(B, C, 1, 1)``.
    """
    if mixing is None:
        mixed = slopes[:, :, None, None]
    else:
        mixed = (slopes.transpose(1, 2) @ mixing.flatten(2)).unflatten(2, mixing.shape[2:])
    return mixed.chunk(2, dim=1)


def _whole_backward(
    gradient: Tensor, x: Tensor, slopes: Tensor, mixing: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of :func:`larger_product` with respect to ``x``, ``slopes`` and ``mixing``.

    They are computed on the whole map at once. No boolean mask is used, because on a CPU, masks take twenty times as
    long as products.
    """
    x, slopes = x.to(gradient.dtype), slopes.to(gradient.dtype)
    mixing = None if mixing is None else mixing.to(gradient.dtype)
    slope1, slope2 = _slopes_at_positions(slopes, mixing)
    difference = slope1 - slope2
    of_first = torch.ops.aten.threshold_backward(gradient, difference * x, 0)  # 0 unless the first product is larger
    of_x = (gradient * slope2).addcmul_(of_first, difference)
    of_slope1 = of_first * x
    of_slopes = torch.cat([of_slope1, gradient * x - of_slope1], dim=1).flatten(2)  # (B, 2C, H·W)
    if mixing is None:
        return of_x, of_slopes.sum(2), None
    of_mixing = (slopes @ of_slopes).unflatten(2, mixing.shape[2:])
    return of_x, (of_slopes @ mixing.flatten(2).transpose(1, 2)).transpose(1, 2), of_mixing


def blocked_forward(
    x: Tensor,
    slopes: Tensor,
    mixing: Tensor | None,
    affine: tuple[Tensor, Tensor] | None = None,
    *,
    overwrite: bool = False,
) -> Tensor:
    """Compute :func:`larger_product` block by block, without autograd.

    Args:
        x: feature map, ``(B, C, H, W)``.
        slopes: see :func:`larger_product`.
        mixing: see :func:`larger_product`.
        affine: tuple (scale, shift) with a number for each channel, both ``(C,)``. The activation is then applied to
            ``scale * x + shift`` instead of ``x``. None: it is applied to ``x``.
        overwrite: store the result in the memory of ``x`` if ``x`` and the result have the same dtype.

    Returns:
        The output map, ``(B, C, H, W)``.
    """
    dtype = torch.result_type(x, slopes)
    x = dense(x)
    out = x if overwrite and x.dtype == dtype else torch.empty_like(x, dtype=dtype)
    blocks = _Blocks(x, dtype, buffers=2 if affine is None else 3)
    slope1, slope2 = (_Slopes(part, mixing, blocks) for part in slopes.chunk(2, dim=-1))
    scale_shift = None if affine is None else blocks.of_channels(*affine)
    for block, (values, result) in enumerate(zip(blocks.of_map(x), blocks.of_map(out), strict=True)):
        product1, product2, *other = blocks.buffers(values.shape)
        if scale_shift is not None:
            scale, shift = scale_shift[block]
            values = torch.addcmul(shift, values, scale, out=other[0])
        torch.mul(values, slope1.block(block, product1), out=product1)
        torch.mul(values, slope2.block(block, product2), out=product2)
        torch.maximum(product1, product2, out=result)
    return out


def blocked_backward(
    gradient: Tensor,
    x: Tensor,
    slopes: Tensor,
    mixing: Tensor | None,
    affine: tuple[Tensor, Tensor] | None = None,
    *,
    overwrite: bool = False,
    output: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the gradients of :func:`blocked_forward` block by block. The slopes are computed again in each block.

    With ``d = a₁ − a₂``, the function is ``a₂·x + relu(d·x)``. Its gradients with respect to ``d`` and ``a₂`` give
    those with respect to ``a₁`` and ``a₂``.

    Args:
        gradient: gradient with respect to the output, ``(B, C, H, W)``.
        x: see :func:`blocked_forward`.
        slopes: see :func:`blocked_forward`.
        mixing: see :func:`blocked_forward`.
        affine: see :func:`blocked_forward`.
        overwrite: store the gradient with respect to the map in the memory of ``gradient``.
        output: map in which the output of :func:`blocked_forward`, which is computed again, is stored. It has the shape
            and memory format of ``x``. A separate call of :func:`blocked_forward` would take longer. None: the output
            is not computed again.

    Returns:
        The gradients with respect to the map after ``affine``, to ``slopes`` and to ``mixing``. The last one is None if
        ``mixing`` is None.
    """
    x = dense(x)
    gradient = gradient.contiguous(memory_format=layout(x))
    of_x = gradient if overwrite else torch.empty_like(x, dtype=gradient.dtype)
    blocks = _Blocks(x, gradient.dtype, buffers=4 if affine is None else 5)
    slope1, slope2 = slopes.chunk(2, dim=-1)
    difference, slope2 = (_Slopes(part, mixing, blocks, sums=True) for part in (slope1 - slope2, slope2))
    scale_shift = None if affine is None else blocks.of_channels(*affine)
    maps = (x, gradient, of_x, x if output is None else output)
    for block, (values, of_out, result, out) in enumerate(zip(*map(blocks.of_map, maps), strict=True)):
        first, second, third, fourth, *other = blocks.buffers(values.shape)
        if scale_shift is not None:
            scale, shift = scale_shift[block]
            values = torch.addcmul(shift, values, scale, out=other[0])
        d = difference.block(block, first)
        # 0 unless the first product is larger. A boolean mask would take twenty times as long as a product.
        torch.mul(values, d, out=second)
        second_slope = slope2.block(block, third)
        if output is not None:
            torch.clamp_min(second, 0, out=out).addcmul_(values, second_slope)
        torch.ops.aten.threshold_backward(of_out, second, 0, grad_input=second)
        slope2.add_gradient(block, torch.mul(of_out, values, out=fourth))
        torch.mul(of_out, second_slope, out=result).addcmul_(second, d)
        difference.add_gradient(block, second.mul_(values))
    (of_difference, mixing1), (of_slope2, mixing2) = difference.gradients(), slope2.gradients()
    of_slopes = torch.cat([of_difference, of_slope2 - of_difference], dim=-1)
    return of_x, of_slopes, None if mixing is None else (mixing1 + mixing2).unflatten(2, mixing.shape[2:])


class _Blocks:
    """Division of a feature map into blocks of similar size that fit into a processor's cache.

    A map is viewed as one matrix for each image, ``(B, R, K)``: ``(B, H·W, C)`` if it is channels-last, else
    ``(B, C, H·W)``. A block ``(b, r, K)`` consists of the matrices of b images, or of r rows of one matrix.

    Args:
        x: dense map ``(B, C, H, W)``.
        dtype: type of the buffers.
        buffers: number of buffers of the size of a block. All buffers of a thread together fit into its cache.
    """

    def __init__(self, x: Tensor, dtype: torch.dtype, *, buffers: int):
        self.positions_first = layout(x) == torch.channels_last
        batch, rows, columns = self._matrices(x).shape
        limit = CACHED // buffers * torch.get_num_threads()
        self.images = min(batch, max(1, limit // (rows * columns)))
        self.rows = min(rows, max(1, math.ceil(rows / math.ceil(rows * columns / limit))))
        self.in_image = math.ceil(rows / self.rows)  # blocks of an image
        self.image_groups = math.ceil(batch / self.images)
        self.dtype = dtype
        self._memory = x.new_empty(buffers, self.images * self.rows * columns, dtype=dtype)
        self._buffers: tuple[torch.Size | None, list[Tensor]] = (None, [])

    def _matrices(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1, 2) if self.positions_first else x.flatten(2)

    def of_map(self, x: Tensor) -> list[Tensor]:
        """Return a list of the blocks of ``x``, a map with the same shape and memory format as the divided map."""
        return self.of_rows(self._matrices(x))

    def of_rows(self, matrices: Tensor) -> list[Tensor]:
        """Divide a tensor with one entry for each row of each image, ``(B, R, …)``.

        Return a list with the part ``(b, r, …)`` of each block.
        """
        return [rows for images in matrices.split(self.images) for rows in images.split(self.rows, 1)]

    def of_images(self, matrices: Tensor) -> list[Tensor]:
        """Divide a tensor with one entry for each image, ``(B, …)``.

        Return a list with the part ``(b, …)`` of each block. Blocks of the same image have the same part.
        """
        return [images for images in matrices.split(self.images) for _ in range(self.in_image)]

    def of_channels(self, *vectors: Tensor) -> list[tuple[Tensor, ...]]:
        """Divide vectors with one entry for each channel, ``(C,)``.

        Return a list with one tuple for each block. The tuple contains the part of each vector that belongs to the
        channels of the block, in a shape that broadcasts to the block.
        """
        shape = (1, 1, -1) if self.positions_first else (1, -1, 1)
        vectors = [vector.reshape(shape) for vector in vectors]
        in_image = zip(
            *([v] * self.in_image if self.positions_first else v.split(self.rows, 1) for v in vectors), strict=True
        )
        return list(in_image) * self.image_groups

    def buffers(self, shape: torch.Size) -> list[Tensor]:
        """Return a list of the buffers in the shape of a block. They still contain values of the previous block."""
        if self._buffers[0] != shape:
            self._buffers = shape, [memory[: shape.numel()].view(shape) for memory in self._memory]
        return self._buffers[1]


class _Slopes:
    """One of the two slopes, ``a₁`` or ``a₂``, at all positions, stored as two small matrices for each image.

    Their product ``left @ right`` has the shape ``(B, R, K)`` of the matrices in :class:`_Blocks`. One matrix has the
    mixing weights and the other one the slopes of the tokens. The memory format of the map determines which of them is
    ``left``. Without mixing weights, the slope is a single row or column, which is broadcast.

    Args:
        slope: ``(B, C)`` without ``mixing``, otherwise ``(B, M, C)`` for M tokens.
        mixing: weight of each token at each position, ``(B, M, H, W)``, or None.
        blocks: division of the map.
        sums: whether to allocate the memory for :meth:`add_gradient`.
    """

    def __init__(self, slope: Tensor, mixing: Tensor | None, blocks: _Blocks, *, sums: bool = False):
        slope = slope.detach().to(blocks.dtype)
        mixing = None if mixing is None else mixing.detach().to(blocks.dtype).flatten(2)  # (B, M, H·W)
        self.positions_first = blocks.positions_first
        if mixing is None:
            left, right = (None, slope[:, None]) if self.positions_first else (slope[:, :, None], None)
        elif self.positions_first:
            left, right = mixing.transpose(1, 2).contiguous(), slope.contiguous()
        else:
            left, right = slope.transpose(1, 2).contiguous(), mixing.contiguous()
        self.left = None if left is None else blocks.of_rows(left)
        self.right = None if right is None else blocks.of_images(right)
        if sums:
            # Half precision would lose digits in sums over many blocks.
            exact = torch.promote_types(blocks.dtype, torch.float32)
            self.of_left, self.of_right = (
                None if part is None else torch.zeros_like(part, dtype=exact) for part in (left, right)
            )
            self.sums_left = None if left is None else blocks.of_rows(self.of_left)
            self.sums_right = None if right is None else blocks.of_images(self.of_right)

    def block(self, block: int, out: Tensor) -> Tensor:
        """Compute the slopes in block number ``block``, store them in ``out``, and return ``out``.

        Without mixing weights, ``out`` is not used. The result is then a row or column that broadcasts to the block.
        """
        if self.left is None:
            return self.right[block]
        if self.right is None:
            return self.left[block]
        return torch.bmm(self.left[block], self.right[block], out=out)

    def add_gradient(self, block: int, gradient: Tensor) -> None:
        """Add the part of one block to the gradients with respect to both matrices.

        ``gradient`` is the gradient with respect to the slopes in the block with the index ``block``.
        """
        if self.left is None:
            self.sums_right[block].add_(gradient.sum(1, keepdim=True))
        elif self.right is None:
            self.sums_left[block].add_(gradient.sum(2, keepdim=True))
        else:
            self.sums_left[block].add_(torch.bmm(gradient, self.right[block].transpose(1, 2)))
            self.sums_right[block].add_(torch.bmm(self.left[block].transpose(1, 2), gradient))

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        """Return a tuple of the gradients with respect to ``slope`` and ``mixing``.

        The second one has the shape ``(B, M, H·W)``, or is None without mixing weights.
        """
        if self.left is None:
            return self.of_right[:, 0], None
        if self.right is None:
            return self.of_left[:, :, 0], None
        if self.positions_first:
            return self.of_right, self.of_left.transpose(1, 2)
        return self.of_left.transpose(1, 2), self.of_right


def layout(x: Tensor) -> torch.memory_format:
    """Return the memory format of a dense map ``(B, C, H, W)``, channels-last or contiguous.

    Some maps have both formats, for example if ``C`` is 1. Channels-last is then returned.
    """
    fits = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if fits else torch.contiguous_format


def dense(x: Tensor) -> Tensor:
    """Return ``x`` itself if it is channels-last or contiguous, otherwise a contiguous copy."""
    return x.contiguous(memory_format=layout(x))
