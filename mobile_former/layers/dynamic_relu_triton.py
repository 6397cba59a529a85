"""Triton kernels of dynamic ReLU for GPUs: ``max(a₁·x, a₂·x)`` and its gradients, each in one pass over the map.

Only :mod:`mobile_former.layers.dynamic_relu` imports this module, and only for maps on a GPU. The import fails without
Triton.

The kernels compute in float32. They divide the map into tiles of channels × positions. The slopes at the positions of a
tile are computed from the slopes of the tokens and the mixing weights, and are never written to memory. The gradients
with respect to slopes and mixing weights are sums over many tiles. Each program writes its part of a sum to a buffer,
and PyTorch adds the parts. There are no atomic operations, so repeated runs give the same bits.

The kernels were run only in the interpreter of Triton 3.9 on a CPU, and compiled for NVIDIA GPUs with compute
capabilities from 7.5 to 10.0. They have not been run or timed on a GPU.
"""

import functools
import warnings

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobile_former.layers.dynamic_relu import dense, layout

MAX_TOKENS = 16  # the kernels add tokens one by one; for more tokens, matrix products are the better choice
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TILE = 2048  # maximum number of values in a tile
PROGRAMS = 1024  # the backward pass divides the channels of an image between programs up to this number of programs

_failed = False


def fits(x: Tensor, slopes: Tensor, mixing: Tensor | None) -> bool:
    """Return whether the kernels can be used for the arguments of :func:`forward`."""
    if _failed or x.numel() == 0 or max(x.numel(), slopes.numel()) >= 2**31:  # offsets in memory are 32-bit integers
        return False
    batch, channels, *size = x.shape
    if mixing is None:
        return x.dtype in DTYPES and slopes.dtype in DTYPES and slopes.shape == (batch, 2 * channels)
    tokens = mixing.shape[1]
    shapes = (batch, tokens, 2 * channels), (batch, tokens, *size)
    return (
        1 <= tokens <= MAX_TOKENS
        and all(part.dtype in DTYPES for part in (x, slopes, mixing))
        and (slopes.shape, mixing.shape) == shapes
    )


def _none_if_it_fails(function):
    """Decorator: if Triton fails in the function, issue a warning and return None instead of raising the error.

    Only errors that occur while a kernel is compiled or launched are caught. Errors of a running kernel are raised
    later, by another operation.
    """

    @functools.wraps(function)
    def guarded(*args, **options):
        global _failed
        try:
            return function(*args, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton has no common class: compiler, driver and C compiler raise their own
            _failed = True
            warnings.warn(
                "the Triton kernel of dynamic ReLU failed, so slower operations of PyTorch are used from now on: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
            return None

    return guarded


@_none_if_it_fails
def forward(x: Tensor, slopes: Tensor, mixing: Tensor | None, *, overwrite: bool = False) -> Tensor | None:
    """Compute :func:`mobile_former.layers.dynamic_relu.larger_product`, without autograd.

    Args:
        x: feature map, ``(B, C, H, W)``, float32, float16 or bfloat16.
        slopes: the slopes ``a₁``, followed by the slopes ``a₂``: ``(B, 2C)`` without ``mixing``, otherwise
            ``(B, M, 2C)``.
        mixing: weight of each token at each position, ``(B, M, H, W)``, or None. At most :data:`MAX_TOKENS` tokens.
        overwrite: store the result in the memory of ``x`` if ``x`` and the result have the same dtype.

    Returns:
        The output map, ``(B, C, H, W)``. None if Triton failed. In this case, ``x`` is not changed.
    """
    dtype = torch.result_type(x, slopes)
    x = dense(x)
    out = x if overwrite and x.dtype == dtype else torch.empty_like(x, dtype=dtype)
    channels, positions, blocks, chunks, constants = _division(x, mixing)
    with torch.cuda.device_of(x):
        _forward_kernel[(len(x) * blocks * chunks,)](
            x, slopes.contiguous(), _contiguous(mixing, x), out, channels, positions, **constants
        )
    return out


@_none_if_it_fails
def backward(
    gradient: Tensor, x: Tensor, slopes: Tensor, mixing: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Compute the gradients of :func:`forward`. The slopes at the positions are computed again.

    If the two products are equal, for example at ``x = 0``, the gradients are those of the second product.

    Args:
        gradient: gradient with respect to the output, ``(B, C, H, W)``.
        x: see :func:`forward`.
        slopes: see :func:`forward`.
        mixing: see :func:`forward`.

    Returns:
        The gradients with respect to ``x``, ``slopes`` and ``mixing``. The last one is None if ``mixing`` is None. The
        result is None instead of a tuple if Triton failed.
    """
    x = dense(x)
    gradient = gradient.contiguous(memory_format=layout(x))
    batch = len(x)
    channels, positions, blocks, steps, constants = _division(x, mixing)
    # Without mixing weights, each program computes one tile. With them, a program computes several tiles of the same
    # positions, because it adds their gradients with respect to the weights. The fewer programs, the fewer parts.
    chunks = steps if mixing is None else min(steps, triton.cdiv(PROGRAMS, batch * blocks))
    of_x = torch.empty_like(x)
    of_slopes = x.new_empty(blocks, *slopes.shape, dtype=torch.float32)
    of_mixing = of_x if mixing is None else x.new_empty(chunks, *mixing.shape, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _backward_kernel[(batch * blocks * chunks,)](
            *(gradient, x, slopes.contiguous(), _contiguous(mixing, x), of_x, of_slopes, of_mixing),
            *(batch, chunks, triton.cdiv(steps, chunks), channels, positions),
            **constants,
            rows=triton.next_power_of_2(constants["tokens"]),
        )
    return of_x, _sum(of_slopes).to(slopes.dtype), None if mixing is None else _sum(of_mixing).to(mixing.dtype)


def _contiguous(mixing: Tensor | None, x: Tensor) -> Tensor:
    """Return the mixing weights in contiguous memory. If they are None, return ``x``.

    The kernels need a tensor for this argument, but do not read it without mixing weights.
    """
    return x if mixing is None else mixing.contiguous()


def _sum(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _division(x: Tensor, mixing: Tensor | None) -> tuple[int, int, int, int, dict[str, int]]:
    """Divide a dense map into tiles.

    Returns:
        A tuple: number of channels C, number of positions H·W, number of tiles along the positions, number of tiles
        along the channels, and a dictionary of the kernels' arguments that Triton compiles as constants.
    """
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    # Long rows of positions: each one gives a part of the gradient with respect to the slopes. Channels-last tiles have
    # more channels, because a row of channels is contiguous in memory there.
    channels_last = layout(x) == torch.channels_last
    tile_p = min(64 if channels_last else 128, max(16, triton.next_power_of_2(positions)))
    tile_c = min(TILE // tile_p, triton.next_power_of_2(channels))
    constants = {
        "mixed": mixing is not None,
        "tokens": 1 if mixing is None else mixing.shape[1],
        "channels_last": channels_last,
        "tile_c": tile_c,
        "tile_p": tile_p,
        "num_warps": 8 if tile_c * tile_p == TILE else 4,
    }
    return channels, positions, triton.cdiv(positions, tile_p), triton.cdiv(channels, tile_c), constants


@triton.jit
def _offsets(image, c, p, channels, positions, channels_last: tl.constexpr):
    """Return the offsets in memory of channels ``c`` (tile_c, 1) and positions ``p`` (1, tile_p) of an image."""
    return (image * positions + p) * channels + c if channels_last else (image * channels + c) * positions + p


@triton.jit
def _slopes_of_tile(
    slopes, mixing, c, p, channels, positions,
    mixed: tl.constexpr, tokens: tl.constexpr, tile_c: tl.constexpr, tile_p: tl.constexpr,
):  # fmt: skip
    """Return the slopes ``a₁`` and ``a₂`` at channels ``c`` and positions ``p`` of one image.

    ``slopes`` and ``mixing`` are pointers to the slopes and mixing weights of this image. Both results have the shape
    (tile_c, tile_p), or (tile_c, 1) without mixing weights.
    """
    if not mixed:
        slope1 = tl.load(slopes + c, mask=c < channels, other=0.0).to(tl.float32)
        slope2 = tl.load(slopes + channels + c, mask=c < channels, other=0.0).to(tl.float32)
    else:
        slope1 = tl.zeros((tile_c, tile_p), tl.float32)
        slope2 = tl.zeros((tile_c, tile_p), tl.float32)
        for m in range(tokens):  # not unrolled: this needs half of the registers
            weight = tl.load(mixing + m * positions + p, mask=p < positions, other=0.0).to(tl.float32)
            token = slopes + 2 * m * channels + c
            slope1 += tl.load(token, mask=c < channels, other=0.0).to(tl.float32) * weight
            slope2 += tl.load(token + channels, mask=c < channels, other=0.0).to(tl.float32) * weight
    return slope1, slope2


@triton.jit
def _forward_kernel(
    x, slopes, mixing, out, channels, positions, mixed: tl.constexpr, tokens: tl.constexpr,
    channels_last: tl.constexpr, tile_c: tl.constexpr, tile_p: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the output map ``out``. See :func:`forward` and :func:`_division` for the arguments."""
    chunks, blocks = tl.cdiv(channels, tile_c), tl.cdiv(positions, tile_p)
    program = tl.program_id(0)
    chunk, block, image = program % chunks, program // chunks % blocks, program // chunks // blocks
    c = chunk * tile_c + tl.arange(0, tile_c)[:, None]
    p = block * tile_p + tl.arange(0, tile_p)[None, :]
    slopes += image * tokens * 2 * channels
    mixing += image * tokens * positions
    slope1, slope2 = _slopes_of_tile(slopes, mixing, c, p, channels, positions, mixed, tokens, tile_c, tile_p)
    offsets, inside = _offsets(image, c, p, channels, positions, channels_last), (c < channels) & (p < positions)
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    larger = tl.maximum(values * slope1, values * slope2, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + offsets, larger.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "chunks", "steps"])  # their values need no kernels of their own
def _backward_kernel(
    gradient, x, slopes, mixing, of_x, of_slopes, of_mixing, batch, chunks, steps, channels, positions,
    mixed: tl.constexpr, tokens: tl.constexpr, rows: tl.constexpr,
    channels_last: tl.constexpr, tile_c: tl.constexpr, tile_p: tl.constexpr,
):  # fmt: skip
    """Compute the gradients with respect to ``x``, ``slopes`` and ``mixing`` for ``steps`` tiles at the same positions.

    The gradient with respect to ``x`` is stored in ``of_x``. The other two gradients are sums over all tiles. The part
    of these tiles is stored in ``of_slopes``, (blocks of positions, B, M, 2C), and ``of_mixing``, (chunks of channels,
    B, M, H·W). ``rows`` is M rounded up to a power of 2.

    The gradients are those of ``a₂·x + relu(d·x)`` with ``d = a₁ − a₂``, which equals ``max(a₁·x, a₂·x)``.
    """
    blocks = tl.cdiv(positions, tile_p)
    program = tl.program_id(0)
    chunk, block, image = program % chunks, program // chunks % blocks, program // chunks // blocks
    slopes += image * tokens * 2 * channels
    mixing += image * tokens * positions
    of_slopes += (block * batch + image) * tokens * 2 * channels
    of_mixing += (chunk * batch + image) * tokens * positions
    p = block * tile_p + tl.arange(0, tile_p)[None, :]
    row = tl.arange(0, rows)[:, None]
    of_weights = tl.zeros((rows, tile_p), tl.float32)
    for step in range(steps):
        c = (chunk * steps + step) * tile_c + tl.arange(0, tile_c)[:, None]
        in_channels = c < channels
        offsets, inside = _offsets(image, c, p, channels, positions, channels_last), in_channels & (p < positions)
        slope1, slope2 = _slopes_of_tile(slopes, mixing, c, p, channels, positions, mixed, tokens, tile_c, tile_p)
        values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        of_out = tl.load(gradient + offsets, mask=inside, other=0.0).to(tl.float32)
        difference = slope1 - slope2
        of_first = tl.where(difference * values <= 0, 0.0, of_out)  # NaN keeps its gradient, as in PyTorch's ReLU
        result = of_out * slope2 + of_first * difference
        tl.store(of_x + offsets, result.to(of_x.dtype.element_ty), mask=inside)
        of_slope1 = of_first * values
        of_slope2 = of_out * values - of_slope1
        if not mixed:
            tl.store(of_slopes + c, tl.sum(of_slope1, 1, keep_dims=True), mask=in_channels)
            tl.store(of_slopes + channels + c, tl.sum(of_slope2, 1, keep_dims=True), mask=in_channels)
        else:
            for m in range(tokens):
                weight = tl.load(mixing + m * positions + p, mask=p < positions, other=0.0).to(tl.float32)
                token = 2 * m * channels + c
                tl.store(of_slopes + token, tl.sum(of_slope1 * weight, 1, keep_dims=True), mask=in_channels)
                tl.store(of_slopes + channels + token, tl.sum(of_slope2 * weight, 1, keep_dims=True), mask=in_channels)
                products = of_slope1 * tl.load(slopes + token, mask=in_channels, other=0.0).to(tl.float32)
                products += of_slope2 * tl.load(slopes + channels + token, mask=in_channels, other=0.0).to(tl.float32)
                of_weights += tl.where(row == m, tl.sum(products, 0, keep_dims=True), 0.0)
    if mixed:
        tl.store(of_mixing + row * positions + p, of_weights, mask=(row < tokens) & (p < positions))
