from types import SimpleNamespace

import pytest
import torch

from mobile_former.layers import dynamic_relu
from mobile_former.layers.dynamic_relu import LARGE, DynamicReLU, larger_product
from tests.conftest import kept_for_backward


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("spatial", [False, True])
def test_dynamic_relu_equals_a_computation_position_by_position(spatial):
    relu = DynamicReLU(3, 16).double()
    for parameter in relu.parameters():
        torch.nn.init.normal_(parameter)
    x, tokens = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 6, 16).double()
    mixing = torch.randn(2, 6, 4, 5).double().softmax(1) if spatial else None
    found = relu(x, tokens, mixing)
    w1, b1, w2, b2 = (p for layer in (relu.reduce, relu.slopes) for p in (layer.weight, layer.bias))
    for sample in range(2):
        theta = [((w2 @ (w1 @ token + b1).clamp(min=0) + b2 + 3) / 6).clamp(0, 1) for token in tokens[sample]]
        for row in range(4):
            for column in range(5):
                weights = mixing[sample, :, row, column] if spatial else [1.0, 0, 0, 0, 0, 0]
                mixed = sum(weight * each for weight, each in zip(weights, theta, strict=True))
                for channel in range(3):
                    value = x[sample, channel, row, column]
                    slopes = 2 * (mixed[channel] - 0.5) + 1, 2 * (mixed[3 + channel] - 0.5)
                    expected = max(slope * value for slope in slopes)
                    torch.testing.assert_close(found[sample, channel, row, column], expected)


def test_spatial_dynamic_relu_equals_the_shared_one_if_all_weight_is_on_the_first_token():
    relu = DynamicReLU(6, 16)
    torch.nn.init.normal_(relu.slopes.weight)
    x, tokens = torch.randn(2, 6, 4, 3), torch.randn(2, 3, 16)
    mixing = torch.zeros(2, 3, 4, 3)
    mixing[:, 0] = 1
    torch.testing.assert_close(relu(x, tokens), relu(x, tokens, mixing))
    torch.testing.assert_close(relu(x, tokens), relu(x, tokens[:, 0]))


def _formula(x, slopes, mixing=None):
    """Slopes and products of whole maps, whose gradients autograd derives."""
    slopes = slopes[:, :, None, None] if mixing is None else torch.einsum("bmc,bmhw->bchw", slopes, mixing)
    slope1, slope2 = slopes.chunk(2, dim=1)
    return torch.maximum(slope1 * x, slope2 * x)


def _inputs(shape, *, spatial, memory_format=torch.contiguous_format, dtype=torch.float64):
    batch, channels, height, width = shape
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=memory_format)
    slopes = torch.randn(batch, *([3] if spatial else []), 2 * channels, dtype=dtype)
    mixing = [torch.randn(batch, 3, height, width, dtype=dtype).softmax(1)] if spatial else []
    return [tensor.requires_grad_() for tensor in (x, slopes, *mixing)]


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("spatial", [False, True], ids=["shared", "spatial"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (9, 500, 7, 5), (1, 40, 70, 130), (2, 3, 301, 310)])
def test_values_and_gradients_are_those_of_the_larger_of_two_products(shape, spatial, memory_format):
    inputs = _inputs(shape, spatial=spatial, memory_format=memory_format)
    found, expected = larger_product(*inputs), _formula(*inputs)
    torch.testing.assert_close(found, expected)
    assert found.stride() == inputs[0].stride()
    weights = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad(each, inputs, weights) for each in (found, expected)))
    with torch.no_grad():
        torch.testing.assert_close(larger_product(*inputs), expected)


@pytest.mark.parametrize("spatial", [False, True], ids=["shared", "spatial"])
def test_a_map_without_dense_memory_gives_the_same_result(spatial):
    x, *others = _inputs((2, 8, 120, 160), spatial=spatial)
    for part in (x.transpose(2, 3), x[:, ::2, 1:], x[:1].expand(2, -1, -1, -1)):
        size = part.shape[1]
        if spatial:
            slopes, mixing = others[0][..., : 2 * size], torch.rand(2, 3, *part.shape[2:]).double()
            inputs = [part, slopes, mixing]
        else:
            inputs = [part, others[0][..., : 2 * size]]
        found, expected = larger_product(*inputs), _formula(*inputs)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(each.square().sum(), [x, others[0]]) for each in (found, expected))
        )


@pytest.mark.parametrize("size", [(4, 5), (400, 500)], ids=["small", "large"])
def test_equal_products_have_the_gradients_of_the_second_one(size):
    slopes = torch.tensor([[2.0, 0.5]], requires_grad=True)
    x = torch.zeros(1, 1, *size, requires_grad=True)
    (gradient,) = torch.autograd.grad(larger_product(x, slopes).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 0.5))


@pytest.mark.parametrize("spatial", [False, True], ids=["shared", "spatial"])
def test_gradients_of_gradients_are_right_for_small_and_large_maps(spatial):
    small = _inputs((2, 3, 4, 5), spatial=spatial)
    torch.autograd.gradcheck(larger_product, small)
    torch.autograd.gradgradcheck(larger_product, small)
    large = _inputs((1, 4, 200, 200), spatial=spatial)
    assert large[0].numel() > LARGE
    second = []
    for function in (larger_product, _formula):
        gradients = torch.autograd.grad(function(*large).square().sum(), large, create_graph=True)
        second.append(torch.autograd.grad(sum(each.square().sum() for each in gradients), large))
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("spatial", [False, True], ids=["shared", "spatial"])
@pytest.mark.parametrize("size", [(4, 5), (200, 250)], ids=["small", "large"])
def test_the_input_is_only_overwritten_where_allowed(size, spatial):
    inputs = _inputs((1, 4, *size), spatial=spatial)
    expected, original = _formula(*inputs), inputs[0].detach().clone()
    larger_product(*inputs, overwrite=True)  # autograd records it
    with torch.no_grad():
        larger_product(*inputs)
        assert torch.equal(inputs[0], original)
        torch.testing.assert_close(larger_product(*inputs, overwrite=True), expected)


@pytest.mark.parametrize("spatial", [False, True], ids=["shared", "spatial"])
def test_tracers_and_compilers_get_whole_maps(spatial):
    x, *others = (tensor.detach().float() for tensor in _inputs((1, 4, 200, 200), spatial=spatial))

    class Activation(torch.nn.Module):
        def forward(self, x):
            return larger_product(x, *others)

    expected = _formula(x, *others)
    program = torch.export.export(Activation(), (x,))
    torch.testing.assert_close(program.module()(x), expected)
    assert torch.ops.aten.maximum.default in {node.target for node in program.graph.nodes}
    traced = torch.jit.trace(Activation(), x)
    torch.testing.assert_close(traced(2 * x), 2 * expected)
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        torch.testing.assert_close(larger_product(x, *others), expected)


@pytest.mark.parametrize("size", [(4, 5), (150, 160)], ids=["small", "large"])
@pytest.mark.parametrize("spatial", [False, True], ids=["shared", "spatial"])
def test_vmap_computes_the_gradients_of_each_sample(spatial, size):
    relu, x, tokens = DynamicReLU(6, 16), torch.randn(3, 6, *size), torch.randn(3, 2, 16)
    mixing = torch.randn(3, 2, *size).softmax(1) if spatial else None
    parameters = dict(relu.named_parameters())

    def loss(parameters, x, tokens, mixing):
        inputs = (x[None], tokens[None], None if mixing is None else mixing[None])
        return torch.func.functional_call(relu, parameters, inputs).square().mean()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0 if spatial else None))(
        parameters, x, tokens, mixing
    )
    for sample in range(3):
        relu.zero_grad()
        loss(parameters, x[sample], tokens[sample], mixing[sample] if spatial else None).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(found[name][sample], parameter.grad)


@pytest.mark.parametrize("spatial", [False, True], ids=["shared", "spatial"])
def test_dynamic_relu_saves_only_its_input_map_for_the_backward_pass(spatial):
    relu, x, tokens = DynamicReLU(64, 16), torch.randn(2, 64, 32, 32).requires_grad_(), torch.randn(2, 2, 16)
    mixing = torch.randn(2, 2, 32, 32).softmax(1) if spatial else None
    assert kept_for_backward(relu, x, tokens, mixing) < 1.1 * x.nbytes


@pytest.mark.parametrize("spatial", [False, True], ids=["shared", "spatial"])
@pytest.mark.parametrize("size", [(4, 5), (150, 160)], ids=["small", "large"])
def test_dynamic_relu_trains_in_bfloat16(size, spatial):
    relu, x, tokens = DynamicReLU(6, 16), torch.randn(2, 6, *size).requires_grad_(), torch.randn(2, 2, 16)
    mixing = torch.randn(2, 2, *size).softmax(1) if spatial else None
    exact = torch.autograd.grad(relu(x, tokens, mixing).square().mean(), [x, *relu.parameters()])
    for half in (x, x.to(torch.bfloat16)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = relu(half, tokens, mixing)
            loss = out.square().mean()
        assert out.dtype == half.dtype
        found = torch.autograd.grad(loss, [x, *relu.parameters()])
        for gradient, expected in zip(found, exact, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def _kernels(forward=dynamic_relu._whole_forward, backward=dynamic_relu._whole_backward):
    """Stand in for the module of GPU kernels."""
    return SimpleNamespace(forward=forward, backward=backward)


def test_gpu_kernels_that_compute_something_else_are_not_used():
    assert dynamic_relu._agree(_kernels(), "cpu")
    assert not dynamic_relu._agree(_kernels(forward=lambda *inputs: None, backward=lambda *inputs: None), "cpu")
    for wrong in (
        _kernels(forward=lambda x, slopes, mixing: -dynamic_relu._whole_forward(x, slopes, mixing)),
        _kernels(backward=lambda *inputs: (2 * inputs[0], *dynamic_relu._whole_backward(*inputs)[1:])),
    ):
        with pytest.warns(
            UserWarning, match="compute wrong values on this GPU, so slower operations of PyTorch are used"
        ):
            assert not dynamic_relu._agree(wrong, "cpu")
