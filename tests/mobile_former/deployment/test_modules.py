"""Basic modules of the inference form: PyTorch's values with current weights, and fallbacks for special cases."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mobile_former.deployment.modules import (
    InferenceConv,
    InferenceLinear,
    InferenceModule,
    InferenceNorm,
    exported_forward,
    gelu,
)

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN")

CONVOLUTIONS = [  # kernel, stride, padding, groups, relu6
    (1, 1, 0, 1, False),
    (1, 1, 0, 1, True),
    (1, 1, 0, 4, False),
    (3, 1, 1, 8, True),
    (3, 2, 1, 1, True),
]


class Part(InferenceModule):
    """A module with a submodule, a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = InferenceLinear(torch.randn(3, 4), torch.randn(3))
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("offset", torch.tensor(1.0))

    def forward(self, x):
        return self.gain * self.linear(x) + self.offset


class Operations(TorchDispatchMode):
    """Records the names of the operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(str(operation))
        return operation(*args, **(kwargs or {}))

    @property
    def use_onednn(self):
        return any(name.startswith("mkldnn.") for name in self.names)


def convolution(kernel=3, stride=1, padding=1, groups=1, relu6=False):
    """Return a convolution from 8 to 16 channels."""
    weight, bias = torch.randn(16, 8 // groups, kernel, kernel), torch.randn(16)
    return InferenceConv(weight, bias, stride=stride, padding=padding, groups=groups, relu6=relu6).requires_grad_(False)


def reference(conv, x):
    """Compute the convolution by PyTorch's own operations."""
    out = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, 1, conv.groups)
    return F.relu6(out) if conv.relu6 else out


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_linear_and_a_norm_give_the_values_of_torch():
    x, weight, bias = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3)
    for inputs in (x, x[None]):
        torch.testing.assert_close(InferenceLinear(weight, bias)(inputs), F.linear(inputs, weight, bias))
    norm = InferenceNorm(torch.rand(4), torch.randn(4), 1e-3)
    torch.testing.assert_close(norm(x), F.layer_norm(x, (4,), norm.weight, norm.bias, 1e-3))


def test_the_weight_of_a_linear_is_by_input_in_memory():
    linear = InferenceLinear(torch.randn(3, 4), torch.randn(3))
    for form in (linear, copy.deepcopy(linear).double(), pickle.loads(pickle.dumps(linear))):
        assert form.weight.shape == (4, 3)
        assert form.weight.is_contiguous()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolution_gives_the_values_of_torch_at_any_size(options, memory_format):
    conv = convolution(*options)
    with torch.no_grad():
        for shape in ((1, 8, 7, 5), (3, 8, 4, 4), (2, 8, 1, 1)):
            x = torch.randn(shape).contiguous(memory_format=memory_format)
            assert_same(conv(x), reference(conv, x))
            assert_same(conv(x), reference(conv, x))  # with the weight that the first call packed


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_packed_weight_follows_every_change(options):
    conv, x = convolution(*options), torch.randn(1, 8, 6, 6)
    other = convolution(*options)
    with torch.no_grad():
        conv(x)
        conv.weight.mul_(2)
        assert_same(conv(x), reference(conv, x))
        conv.weight = nn.Parameter(torch.randn_like(conv.weight))
        assert_same(conv(x), reference(conv, x))
        conv.load_state_dict(other.state_dict())
        assert_same(conv(x), reference(other, x))
        conv.half().float()
        assert_same(conv(x), reference(conv, x))
        doubled = {"weight": 2 * conv.weight, "bias": conv.bias}
        expected = F.conv2d(x, 2 * conv.weight, conv.bias, conv.stride, conv.padding, 1, conv.groups)
        assert_same(torch.func.functional_call(conv, doubled, (x,)), F.relu6(expected) if conv.relu6 else expected)
        assert_same(conv(x), reference(conv, x))


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolution_is_copied_and_pickled_after_a_call(options):
    conv, x = convolution(*options), torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        expected = conv(x)
        for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
            assert torch.equal(twin(x), expected)
            twin.weight.zero_()
            assert_same(twin(x), reference(twin, x))
        assert torch.equal(conv(x), expected)


@needs_onednn
@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolution_uses_onednn_for_float32_without_gradients(options):
    conv, x = convolution(*options), torch.randn(1, 8, 6, 6)
    conv(x)  # packs the weight
    with Operations() as operations:
        conv(x)
    assert operations.use_onednn


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolution_falls_back_to_torch_for_gradients_other_types_autocast_and_without_onednn(options):
    conv, x = convolution(*options), torch.randn(1, 8, 6, 6)
    double = copy.deepcopy(conv).double()
    with Operations() as operations:
        image = x.clone().requires_grad_()
        conv(image).sum().backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
        with torch.backends.mkldnn.flags(enabled=False):
            assert_same(conv(x), reference(conv, x))
        assert_same(double(x.double()), reference(double, x.double()))
    assert not operations.use_onednn
    expected = x.clone().requires_grad_()
    reference(conv, expected).sum().backward()
    assert_same(image.grad, expected.grad)


def test_a_convolution_falls_back_to_torch_for_fake_tensors_compilers_and_exporters():
    conv, x = convolution(relu6=True), torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert conv(mode.from_tensor(x)).shape == (2, 16, 6, 6)
        assert_same(torch.compile(nn.Sequential(conv), backend="aot_eager", fullgraph=True)(x), reference(conv, x))
        program = torch.export.export(nn.Sequential(conv), (x,))
        assert torch.ops.aten.conv2d.default in {node.target for node in program.graph.nodes}
        assert_same(program.module()(x), reference(conv, x))


def test_gelu_gives_the_values_of_torch():
    x = torch.randn(6, 5)
    torch.testing.assert_close(gelu(x), F.gelu(x))


def test_parts_parameters_and_buffers_are_found_under_their_names():
    part = Part()
    assert [name for name, _ in part.named_parameters()] == ["gain", "linear.weight", "linear.bias"]
    assert list(part.state_dict()) == ["gain", "offset", "linear.weight", "linear.bias"]
    assert part.get_submodule("linear") is part.linear is part.__dict__["linear"]
    assert not {"gain", "offset"} & part.__dict__.keys()


def test_replaced_and_deleted_parts_and_parameters_are_followed():
    part, x = Part(), torch.randn(2, 4)
    part.gain = nn.Parameter(torch.tensor(3.0))
    torch.testing.assert_close(part(x), 3 * part.linear(x) + 1)
    replaced = torch.func.functional_call(part, {"linear.weight": torch.zeros(4, 3), "offset": torch.tensor(5.0)}, (x,))
    torch.testing.assert_close(replaced, (3 * part.linear.bias + 5).expand(2, 3))
    part.linear = nn.Identity()
    torch.testing.assert_close(part(x), 3 * x + 1)
    part.linear = None
    assert part.linear is None
    del part.linear
    assert not hasattr(part, "linear")
    assert "linear" not in part._modules


def test_copies_have_their_own_parts():
    part, x = Part(), torch.randn(2, 4)
    for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert twin.linear is twin._modules["linear"] is not part.linear
        torch.testing.assert_close(twin(x), part(x))


def test_hooks_do_not_run_on_parts_but_on_the_module_around_them():
    part, calls = Part(), []
    around = nn.Sequential(part)
    part.register_forward_hook(lambda *_: calls.append("part"))
    around.register_forward_hook(lambda *_: calls.append("around"))
    around(torch.randn(2, 4))
    assert calls == ["around"]


def test_exported_graphs_have_the_registered_forward_passes(monkeypatch):
    class Eager(InferenceModule):
        def forward(self, x):
            return x + 1

    class Inheriting(Eager):
        pass

    class Overriding(Eager):
        def forward(self, x):
            return x + 2

    @exported_forward(Eager)
    def exported(self, x):
        return x * 2

    x = torch.tensor([5.0])
    values = {}
    for stage in ("export", "onnx"):
        if stage == "onnx":
            exported_forward(Eager, onnx_only=True)(lambda self, x: x - 3)
        for kind in (Eager, Inheriting, Overriding):
            module = nn.Sequential(kind())
            values[stage, kind] = module(x).item(), torch.export.export(module, (x,)).module()(x).item()
    assert values["export", Eager] == values["onnx", Eager] == (6, 10)
    assert values["export", Overriding] == values["onnx", Overriding] == (7, 7)
    assert values["export", Inheriting] == values["onnx", Inheriting] == (6, 10)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    module = nn.Sequential(Eager())
    assert module(x).item() == 6
    assert torch.export.export(module, (x,)).module()(x).item() == 2
