import pytest
import torch

from mobile_former.layers.dynamic_relu import DynamicReLU, larger_product
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


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 4, 5)], ids=["shared", "spatial"])
def test_dynamic_relu_has_the_gradients_of_the_larger_of_two_products(shape):
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 3, 4, 5), shape, shape)]
    torch.autograd.gradcheck(larger_product, inputs)
    torch.autograd.gradgradcheck(larger_product, inputs)
    x, slope1, slope2 = inputs
    expected = torch.maximum(slope1 * x, slope2 * x)
    found = larger_product(*inputs)
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad(each, inputs, weights) for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_vmap_computes_the_gradients_of_each_sample():
    relu, x, tokens = DynamicReLU(6, 16), torch.randn(3, 6, 4, 5), torch.randn(3, 2, 16)
    parameters = dict(relu.named_parameters())

    def loss(parameters, x, tokens):
        return torch.func.functional_call(relu, parameters, (x[None], tokens[None])).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, tokens)
    for sample in range(3):
        relu.zero_grad()
        loss(parameters, x[sample], tokens[sample]).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(found[name][sample], parameter.grad)


def test_dynamic_relu_saves_only_its_input_map_for_the_backward_pass():
    relu, x, tokens = DynamicReLU(64, 16), torch.randn(2, 64, 32, 32).requires_grad_(), torch.randn(2, 2, 16)
    assert kept_for_backward(relu, x, tokens) < 1.1 * x.nbytes


def test_dynamic_relu_trains_in_bfloat16():
    relu, x, tokens = DynamicReLU(6, 16), torch.randn(2, 6, 4, 5).requires_grad_(), torch.randn(2, 2, 16)
    exact = torch.autograd.grad(relu(x, tokens).square().sum(), [x, *relu.parameters()])
    for half in (x, x.to(torch.bfloat16)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = relu(half, tokens).square().sum()
        found = torch.autograd.grad(loss, [x, *relu.parameters()])
        for gradient, expected in zip(found, exact, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
