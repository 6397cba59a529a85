"""Tests of the Triton kernels, on a GPU if there is one, otherwise in Triton's interpreter on the CPU.

Triton reads TRITON_INTERPRET when it is imported, so it has to be set when pytest starts.
"""

import os
import subprocess
import sys
import warnings

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="Triton is not installed; see docs/develop.md")
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU, these tests need TRITON_INTERPRET=1", allow_module_level=True)

from mobile_former.layers import dynamic_relu, dynamic_relu_triton  # noqa: E402
from mobile_former.layers.dynamic_relu import DynamicReLU, larger_product  # noqa: E402
from tests.mobile_former.layers.test_dynamic_relu import FORMATS, _formula  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error:the Triton kernel")  # else PyTorch's operations hide a failure

# Several tiles, the last ones not full, in both dimensions; one tile; one position.
SHAPES = [(1, 70, 13, 11), (3, 5, 4, 3), (3, 37, 1, 1)]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def calls(monkeypatch):
    """Let maps on any device use the kernels. Return a list that receives the names of the called functions."""
    names = []

    def recorded(name, function):
        def call(*args, **options):
            names.append(name)
            return function(*args, **options)

        return call

    for name in ("forward", "backward"):
        monkeypatch.setattr(dynamic_relu_triton, name, recorded(name, getattr(dynamic_relu_triton, name)))
    monkeypatch.setattr(dynamic_relu_triton, "_failed", False)
    monkeypatch.setattr(dynamic_relu, "_kernels_for", lambda device: dynamic_relu_triton)
    return names


def _inputs(shape, tokens, memory_format=torch.contiguous_format, dtype=torch.float32):
    """Return the arguments of larger_product. Without tokens, the slopes are shared. Some values of the map are 0."""
    batch, channels, height, width = shape
    x = torch.randn(shape, device=DEVICE).contiguous(memory_format=memory_format)
    x = torch.where(torch.rand_like(x) < 0.1, 0.0, x)
    slopes = torch.randn(batch, *([tokens] if tokens else []), 2 * channels, device=DEVICE)
    mixing = [torch.randn(batch, tokens, height, width, device=DEVICE).softmax(1)] if tokens else []
    return [tensor.to(dtype).requires_grad_() for tensor in (x, slopes, *mixing)]


def _assert_close(found, expected, dtype):
    """Compare with float64. The bound is relative to the largest value, as for sums of values of both signs."""
    limit = TOLERANCES[dtype] * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCES[dtype], atol=limit)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("tokens", [0, 1, 3, 6])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_formula_in_float64(calls, shape, tokens, memory_format, dtype):
    inputs = _inputs(shape, tokens, memory_format, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    found, expected = larger_product(*inputs), _formula(*exact)
    assert (found.dtype, found.stride()) == (dtype, inputs[0].stride())
    _assert_close(found, expected, dtype)
    weights = torch.randn(shape, device=DEVICE).to(dtype)
    gradients = torch.autograd.grad(found, inputs, weights)
    # Autograd halves the gradient of a maximum between equal products. The gradients at x = 0 are tested below.
    x, *_ = exact
    tie = (x == 0).double()
    of_x, *others = torch.autograd.grad(expected, exact, weights.double())
    _assert_close(gradients[0] * (1 - tie), of_x * (1 - tie), dtype)
    for gradient, other in zip(gradients[1:], others, strict=True):
        _assert_close(gradient, other, dtype)
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize("tokens", [0, 3])
def test_gradients_at_0_are_those_of_the_second_product(calls, tokens):
    x, *others = _inputs((2, 5, 4, 3), tokens)
    x = torch.zeros_like(x, requires_grad=True)
    (found,) = torch.autograd.grad(larger_product(x, *others).sum(), x)
    slope2 = dynamic_relu._slopes_at_positions(others[0], others[1] if tokens else None)[1]
    torch.testing.assert_close(found, slope2.expand_as(x))
    assert calls == ["forward", "backward"]


def test_nan_and_infinity_give_what_pytorch_gives(calls):
    x, slopes = _inputs((1, 4, 3, 3), 0)
    with torch.no_grad():
        x[0, 0, 0], x[0, 1, 0], x[0, 2, 0] = torch.nan, torch.inf, -torch.inf
        slopes[0, 1] = 0
        torch.testing.assert_close(larger_product(x, slopes), _formula(x, slopes), equal_nan=True)
    assert calls == ["forward"]


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_a_part_of_a_map_is_computed_and_only_a_free_map_is_overwritten(calls, memory_format):
    x, slopes = (tensor.detach() for tensor in _inputs((2, 8, 6, 9), 0, memory_format))
    part = x[:, ::2, 1:].requires_grad_()
    found, expected = larger_product(part, slopes[:, ::2]), _formula(part, slopes[:, ::2])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), part) for each in (found, expected)))
    original, expected = x.clone(), _formula(x, slopes)
    larger_product(x, slopes)
    assert torch.equal(x, original)
    assert larger_product(x, slopes, overwrite=True).data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("programs", [1, 8, 10**6])  # an image's channels: one group, two, one per tile
def test_the_gradients_do_not_depend_on_the_number_of_programs(calls, monkeypatch, programs):
    inputs = _inputs((2, 70, 13, 11), 3)
    monkeypatch.setattr(dynamic_relu_triton, "PROGRAMS", programs)
    found, expected = (torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (larger_product, _formula))
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_dynamic_relu_trains_under_autocast(calls, half):
    relu, x, tokens = DynamicReLU(6, 16).to(DEVICE), *(torch.randn(2, *s, device=DEVICE) for s in ((6, 4, 5), (2, 16)))
    mixing = torch.randn(2, 2, 4, 5, device=DEVICE).softmax(1)  # stays float32 under autocast
    inputs = [x.requires_grad_(), *relu.parameters()]
    exact = torch.autograd.grad(relu(x, tokens, mixing).square().mean(), inputs)
    with torch.autocast(DEVICE, dtype=half):
        out = relu(x.to(half), tokens, mixing)
        assert out.dtype == half
        loss = out.square().mean()
    for gradient, expected in zip(torch.autograd.grad(loss, inputs), exact, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.05 * float(expected.detach().abs().max()))
    assert calls == ["forward", "backward"] * 2


def test_transforms_compilers_and_second_gradients_use_pytorch(calls):
    inputs = _inputs((2, 3, 4, 5), 2)
    torch.func.vmap(torch.func.grad(lambda *each: larger_product(*(e[None] for e in each)).sum()))(*inputs)
    program = torch.export.export(DynamicReLU(3, 16), (torch.randn(2, 3, 4, 5), torch.randn(2, 2, 16)))
    assert torch.ops.aten.maximum.default in {node.target for node in program.graph.nodes}
    assert calls == []
    second = []
    for function in (larger_product, _formula):
        gradients = torch.autograd.grad(function(*inputs).square().sum(), inputs[1:], create_graph=True)
        assert calls == ["forward"], "autograd cannot record a kernel"
        second.append(torch.autograd.grad(sum(each.square().sum() for each in gradients), inputs[1:]))
        calls[:] = ["forward"]
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-4)


def test_the_kernels_are_used_only_for_arguments_that_they_support():
    fits = dynamic_relu_triton.fits
    x, slopes, mixing = _inputs((2, 3, 4, 5), 6)
    assert fits(x, slopes, mixing)
    assert fits(x, slopes[:, 0].half(), None)
    assert not fits(x.double(), slopes, mixing)
    assert not fits(x, slopes, mixing.double())
    assert not fits(x[:0], slopes[:0], mixing[:0])
    assert not fits(x, slopes[:1], mixing), "slopes that are broadcast over the batch"
    assert not fits(x, slopes, mixing[..., :1]), "weights that are broadcast over the width"
    many = dynamic_relu_triton.MAX_TOKENS + 1
    assert not fits(*_inputs((2, 3, 4, 5), many))


def test_the_kernels_are_chosen_for_gpus_where_triton_is_installed(monkeypatch):
    assert dynamic_relu._agree(dynamic_relu_triton, DEVICE)
    monkeypatch.setattr(dynamic_relu, "_agree", lambda kernels, device: True)  # there may be no GPU
    choose = dynamic_relu._kernels_for.__wrapped__
    assert choose("cpu") is None
    assert choose("cuda") is dynamic_relu_triton
    monkeypatch.delitem(sys.modules, dynamic_relu_triton.__name__)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert choose("cuda") is None


def test_after_a_failure_pytorch_is_used_with_one_warning(calls, monkeypatch):
    class Broken:
        error = torch.OutOfMemoryError("full")

        def __getitem__(self, grid):
            raise self.error

    monkeypatch.setattr(dynamic_relu_triton, "_backward_kernel", Broken())
    inputs = _inputs((2, 3, 4, 5), 2)
    with pytest.raises(torch.OutOfMemoryError):  # not a failure of the kernel
        larger_product(*inputs).sum().backward()
    Broken.error = RuntimeError("no compiler")
    found = larger_product(*inputs)
    with pytest.warns(UserWarning, match="RuntimeError: no compiler"):
        gradients = torch.autograd.grad(found.sum(), inputs[1:])
    torch.testing.assert_close(gradients, torch.autograd.grad(_formula(*inputs).sum(), inputs[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        larger_product(*inputs).sum().backward()
    assert calls == ["forward", "backward"] * 2


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mobile_former.layers import dynamic_relu_triton as kernels

def compile(kernel, mixed, channels_last, kind):
    constants = {"mixed": mixed, "tokens": 6 if mixed else 1, "rows": 8, "channels_last": channels_last}
    constants = {n: v for n, v in (constants | {"tile_c": 16, "tile_p": 128}).items() if n in kernel.arg_names}
    integers = {"batch", "chunks", "steps", "channels", "positions"}
    types = {n: "i32" if n in integers else "*fp32" if n in ("of_slopes", "of_mixing") else "*" + kind
             for n in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, types, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"]

for kernel in (kernels._forward_kernel, kernels._backward_kernel):
    for case in ((False, True, "bf16"), (True, False, "fp16"), (True, True, "fp32")):
        compile(kernel, *case)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
