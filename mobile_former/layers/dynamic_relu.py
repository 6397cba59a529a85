"""Dynamic ReLU: an activation function with slopes that depend on the image (Chen et al., Dynamic ReLU, ECCV 2020).

In Mobile-Former, the slopes are computed from the tokens.

For large maps on a CPU, :func:`larger_product` works in blocks that fit into the second-level cache. Otherwise, it
would spend most of its time on memory: with different slopes at each position, the slopes alone are twice as large as
the map.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from mobile_former.layers.linear import linear

BLOCK = 1 << 17  # values of a map that a thread processes at once; three blocks take 1.5 MB, a second-level cache


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
        theta1, theta2 = self._theta(guiding_tokens(tokens, mixing)).chunk(2, dim=-1)
        return larger_product(x, torch.cat([2 * theta1, 2 * theta2 - 1], dim=-1), mixing)

    def _theta(self, tokens: Tensor) -> Tensor:
        return F.hardsigmoid(self.slopes(F.relu(self.reduce(tokens))))


def guiding_tokens(tokens: Tensor, mixing: Tensor | None) -> Tensor:
    """Return the tokens from which dynamic ReLU computes its slopes.

    Args:
        tokens: all tokens, ``(B, M, d)``. If ``mixing`` is None, the first token ``(B, d)`` is enough.
        mixing: weight of each token at each position for the spatially aware variant; None for the spatially shared
            variant.

    Returns:
        All tokens ``(B, M, d)`` for the spatially aware variant, the first token ``(B, d)`` for the other one.
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
        blocked = _is_large(x) and _allows_buffers(x, slopes, mixing, gradient) and not torch.is_grad_enabled()
        return (_blocked_backward if blocked else _whole_backward)(gradient, x, slopes, mixing)


def _forward(x: Tensor, slopes: Tensor, mixing: Tensor | None, overwrite: bool) -> Tensor:
    if not _allows_buffers(x, slopes, mixing):
        return _whole_forward(x, slopes, mixing)
    if _is_large(x):
        return _blocked_forward(x, slopes, mixing, overwrite)
    if not overwrite:
        return _whole_forward(x, slopes, mixing)
    slope1, slope2 = _slopes_at_positions(slopes, mixing)
    product = x * slope1
    return torch.maximum(product, x.mul_(slope2), out=product)


def _is_large(x: Tensor) -> bool:
    """Return whether a map is computed in blocks, which only pays for large maps on a CPU."""
    return x.is_cpu and x.numel() > BLOCK


def _allows_buffers(*inputs: Tensor | None) -> bool:
    """Return whether operations may write into given memory.

    Tracers, dispatch modes and function transforms such as ``vmap`` do not support this.
    """
    return (
        all(part is None or type(part) in (Tensor, nn.Parameter) for part in inputs)
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
    )


def _whole_forward(x: Tensor, slopes: Tensor, mixing: Tensor | None) -> Tensor:
    """Compute :func:`larger_product` with whole maps."""
    slope1, slope2 = _slopes_at_positions(slopes, mixing)
    return torch.maximum(x * slope1, x * slope2)  # with x first, the result has its memory format


def _slopes_at_positions(slopes: Tensor, mixing: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both slopes at each position, ``(B, C, H, W)``, or ``(B, C, 1, 1)`` if they are the same everywhere."""
    if mixing is None:
        mixed = slopes[:, :, None, None]
    else:
        mixed = (slopes.transpose(1, 2) @ mixing.flatten(2)).unflatten(2, mixing.shape[2:])
    return mixed.chunk(2, dim=1)


def _whole_backward(
    gradient: Tensor, x: Tensor, slopes: Tensor, mixing: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the gradients of :func:`larger_product` with respect to its inputs, with whole maps.

    No boolean mask is used, because on a CPU masks take twenty times as long as products.
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


def _blocked_forward(x: Tensor, slopes: Tensor, mixing: Tensor | None, overwrite: bool) -> Tensor:
    """Compute :func:`larger_product` block by block."""
    dtype = torch.result_type(x, slopes)
    x = _dense(x)
    out = x if overwrite and x.dtype == dtype else torch.empty_like(x, dtype=dtype)
    of_map, of_out = _matrices(x), _matrices(out)
    slope1, slope2 = (_Slopes(part, mixing, x, dtype) for part in slopes.chunk(2, dim=-1))
    blocks = _blocks(of_map.shape)
    first, second = (_buffer(blocks, of_map, dtype) for _ in range(2))
    for images, rows in blocks:
        values, result = of_map[images, rows], of_out[images, rows]
        product1, product2 = (_like(values, buffer) for buffer in (first, second))
        torch.mul(values, slope1.block(images, rows, product1), out=product1)
        torch.mul(values, slope2.block(images, rows, product2), out=product2)
        torch.maximum(product1, product2, out=result)
    return out


def _blocked_backward(
    gradient: Tensor, x: Tensor, slopes: Tensor, mixing: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the gradients of :func:`larger_product` block by block. The slopes are computed again in each block.

    With ``d = a₁ − a₂``, the function is ``a₂·x + relu(d·x)``. Its gradients with respect to ``d`` and ``a₂`` give
    those with respect to ``a₁`` and ``a₂``.
    """
    x = _dense(x)
    gradient = gradient.contiguous(memory_format=_layout(x))
    of_x = torch.empty_like(x, dtype=gradient.dtype)
    maps = _matrices(x), _matrices(gradient), _matrices(of_x)
    slope1, slope2 = slopes.chunk(2, dim=-1)
    difference, slope2 = (_Slopes(part, mixing, x, gradient.dtype) for part in (slope1 - slope2, slope2))
    blocks = _blocks(maps[0].shape)
    buffers = [_buffer(blocks, maps[0], gradient.dtype) for _ in range(3)]
    for images, rows in blocks:
        values, of_out, result = (each[images, rows] for each in maps)
        first, second, third = (_like(values, buffer) for buffer in buffers)
        d = difference.block(images, rows, first)
        # 0 unless the first product is larger. A boolean mask would take twenty times as long as a product.
        torch.mul(values, d, out=second)
        torch.ops.aten.threshold_backward(of_out, second, 0, grad_input=second)
        torch.mul(of_out, slope2.block(images, rows, third), out=result).addcmul_(second, d)
        difference.add_gradient(images, rows, second.mul_(values))
        slope2.add_gradient(images, rows, torch.mul(of_out, values, out=third))
    (of_difference, mixing1), (of_slope2, mixing2) = difference.gradients(), slope2.gradients()
    of_slopes = torch.cat([of_difference, of_slope2 - of_difference], dim=-1)
    return of_x, of_slopes, None if mixing is None else (mixing1 + mixing2).unflatten(2, mixing.shape[2:])


class _Slopes:
    """One of the two slopes at all positions, as a product of two small matrices for each image.

    A map is a matrix for each image, see :func:`_matrices`. The slope has the same shape and is the product
    ``left @ right`` of the mixing weights and the tokens' slopes, in the order that fits the memory layout of the map.
    Without mixing weights, the slope is a row or a column.

    Args:
        slope: ``(B, C)`` without ``mixing``, otherwise ``(B, M, C)``.
        mixing: ``(B, M, H, W)``, or None.
        x: feature map ``(B, C, H, W)``, whose memory layout is used.
        dtype: type of the slope.
    """

    def __init__(self, slope: Tensor, mixing: Tensor | None, x: Tensor, dtype: torch.dtype):
        slope = slope.detach().to(dtype)
        mixing = None if mixing is None else mixing.detach().to(dtype).flatten(2)  # (B, M, H·W)
        self.positions_first = _layout(x) == torch.channels_last
        if mixing is None:
            self.left, self.right = (None, slope[:, None]) if self.positions_first else (slope[:, :, None], None)
        elif self.positions_first:
            self.left, self.right = mixing.transpose(1, 2).contiguous(), slope.contiguous()
        else:
            self.left, self.right = slope.transpose(1, 2).contiguous(), mixing.contiguous()
        # Half precision would lose digits in sums over many blocks.
        exact = torch.promote_types(dtype, torch.float32)
        self.of_left, self.of_right = (
            None if part is None else torch.zeros_like(part, dtype=exact) for part in (self.left, self.right)
        )

    def block(self, images: slice, rows: slice, out: Tensor) -> Tensor:
        """Return the slopes in a block of the map, in the memory of ``out`` or as a broadcastable row or column."""
        if self.left is None:
            return self.right[images]
        if self.right is None:
            return self.left[images, rows]
        return torch.bmm(self.left[images, rows], self.right[images], out=out)

    def add_gradient(self, images: slice, rows: slice, gradient: Tensor) -> None:
        """Add the gradient with respect to the slopes in a block to the gradients of ``left`` and ``right``."""
        if self.left is None:
            self.of_right[images] += gradient.sum(1, keepdim=True)
        elif self.right is None:
            self.of_left[images, rows] += gradient.sum(2, keepdim=True)
        else:
            self.of_left[images, rows] += torch.bmm(gradient, self.right[images].transpose(1, 2))
            self.of_right[images] += torch.bmm(self.left[images, rows].transpose(1, 2), gradient)

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        """Return the gradients with respect to ``slope``, and to ``mixing`` as ``(B, M, H·W)`` or None."""
        if self.left is None:
            return self.of_right[:, 0], None
        if self.right is None:
            return self.of_left[:, :, 0], None
        if self.positions_first:
            return self.of_right, self.of_left.transpose(1, 2)
        return self.of_left.transpose(1, 2), self.of_right


def _layout(x: Tensor) -> torch.memory_format:
    """Return the memory format of a dense map. It is channels-last if both formats fit."""
    fits = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if fits else torch.contiguous_format


def _dense(x: Tensor) -> Tensor:
    """Return a map with the same values that is contiguous in one of both memory formats."""
    return x.contiguous(memory_format=_layout(x))


def _matrices(x: Tensor) -> Tensor:
    """View a dense map as a matrix for each image, ``(B, H·W, C)`` if it is channels-last, else ``(B, C, H·W)``."""
    return x.permute(0, 2, 3, 1).flatten(1, 2) if _layout(x) == torch.channels_last else x.flatten(2)


def _blocks(shape: torch.Size) -> list[tuple[slice, slice]]:
    """Divide matrices ``(B, R, K)`` into blocks of similar size: several small matrices, or rows of a large one.

    Returns:
        List with the images and the rows of each block.
    """
    batch, rows, columns = shape
    limit = BLOCK * torch.get_num_threads()
    if rows * columns <= limit:
        return [(images, slice(0, rows)) for images in _parts(batch, limit // (rows * columns))]
    within = _parts(rows, max(1, limit // columns))
    return [(slice(image, image + 1), part) for image in range(batch) for part in within]


def _parts(length: int, limit: int) -> list[slice]:
    """Divide ``range(length)`` into slices of similar length, with at most ``limit`` elements each."""
    count = math.ceil(length / limit)
    size = math.ceil(length / count)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _buffer(blocks: list[tuple[slice, slice]], matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Allocate memory for the largest block."""
    images, rows = blocks[0]
    return matrices.new_empty(images.stop * rows.stop * matrices.shape[2], dtype=dtype)


def _like(block: Tensor, buffer: Tensor) -> Tensor:
    """Return the beginning of a buffer in the shape of a block."""
    return buffer[: block.numel()].view(block.shape)
