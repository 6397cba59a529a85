import copy

import pytest
import torch
from torch import nn

from mobile_former.layers.pointwise import batch_for_onednn, convolve, divide_positions


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def image(batch=1, height=8, width=10, channels=24):
    return torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)


def divided_into(x):
    return batch_for_onednn(x, torch.zeros(16, 24, 1, 1), (1, 1), (0, 0), 1)


def backend(x, conv):
    options = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups)
    return torch._C._select_conv_backend(x, conv.weight, None, *options)


def test_pytorch_chooses_onednn_only_for_the_divided_map():
    conv, x = nn.Conv2d(24, 16, 1, bias=False), image()
    assert "Slow" in str(backend(x, conv))
    divided = divide_positions(x, divided_into(x))
    assert "Mkldnn" in str(backend(divided, conv))
    assert divided.data_ptr() == x.data_ptr()  # a view


@pytest.mark.parametrize("shape", [(1, 8, 10), (3, 16, 7), (2, 17, 5)])
def test_result_and_gradients_are_those_of_the_convolution(shape):
    conv, x = nn.Conv2d(24, 16, 1), image(*shape).requires_grad_()
    exact, exact_x = copy.deepcopy(conv).double(), x.detach().double().requires_grad_()
    out, expected = convolve(conv, x), exact(exact_x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn(expected.shape)
    out.backward(gradient)
    expected.backward(gradient.double())
    for own, other in ((x, exact_x), (conv.weight, exact.weight), (conv.bias, exact.bias)):
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


def test_only_small_batches_of_float32_maps_in_channels_last_are_divided():
    assert divided_into(image(1, 8, 10)) == 16
    assert divided_into(image(1, 25, 34)) == 17
    assert divided_into(image(1, 7, 11)) is None  # 77 positions have no divisor from 16 to 64
    assert divided_into(image(16)) is None
    assert divided_into(image().double()) is None
    assert divided_into(image().contiguous()) is None
    with torch.autocast("cpu"):
        assert divided_into(image()) is None
    torch.set_num_threads(2)
    assert divided_into(image()) is None


@pytest.mark.parametrize("options", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 1, "stride": 2}, {"groups": 2}])
def test_other_convolutions_are_computed_as_they_are(options):
    conv, x = nn.Conv2d(24, 16, **{"kernel_size": 1, **options}), image()
    torch.testing.assert_close(convolve(conv, x), conv(x), rtol=0, atol=0)


def test_hooks_get_the_whole_map():
    conv, x, shapes = nn.Conv2d(24, 16, 1), image(), []
    conv.register_forward_hook(lambda module, inputs, output: shapes.extend([inputs[0].shape, output.shape]))
    convolve(conv, x)
    assert shapes == [(1, 24, 8, 10), (1, 16, 8, 10)]


def test_function_transforms_and_export_work():
    conv, x = nn.Conv2d(24, 16, 1), image(4)
    mapped = torch.vmap(lambda each: convolve(conv, each[None])[0])(x)
    torch.testing.assert_close(mapped, conv(x))
    program = torch.export.export(_Module(conv), (x,))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.conv2d.default
    ]


class _Module(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return convolve(self.conv, x)


def test_a_compiler_sees_the_convolution_alone():
    torch.set_num_threads(1)
    explained = torch._dynamo.explain(_Module(nn.Conv2d(24, 16, 1)))(image(4))
    assert explained.graph_break_count == 0
    (program,) = explained.graphs
    operations = [node for node in program.graph.nodes if node.op in {"call_function", "call_method"}]
    assert [node.target for node in operations if node.users] == [torch.conv2d]
