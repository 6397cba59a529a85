"""The inference form of classifiers and backbones: the outputs of the trained model from fewer operations."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mobile_former


def trained(name, **options):
    """Return a model whose norms, biases and gates differ from their initial values."""
    torch.manual_seed(0)
    model = mobile_former.create_model(name, **options).double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d | torch.nn.LayerNorm):
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.1)
        if isinstance(module, torch.nn.Linear):  # large enough for slopes and gates to reach their limits
            module.weight.data.mul_(8)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


def error(actual, expected):
    """Return the largest difference relative to the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("name", mobile_former.list_models())
def test_logits_maps_and_tokens_are_the_same_at_odd_sizes_and_with_padding(name, spatial):
    model = trained(name, spatial_dynamic_relu=spatial)
    deployed = mobile_former.deploy(model)
    images = torch.randn(2, 3, 71, 45, dtype=torch.float64)
    mask = torch.zeros(2, 71, 45, dtype=torch.bool)
    mask[1, 40:] = True
    with torch.inference_mode():
        assert error(deployed(images), model(images)) < 1e-12
        (maps, tokens), (expected, expected_tokens) = (m.forward_features(images, mask) for m in (deployed, model))
    assert maps.keys() == expected.keys()
    assert max(error(maps[stride], expected[stride]) for stride in maps) < 1e-12
    assert error(tokens, expected_tokens) < 1e-12


def test_the_trained_model_is_unchanged_and_shares_no_tensors():
    model = trained("mobile_former_26m").train()
    before = copy.deepcopy(model.state_dict())
    deployed = mobile_former.deploy(model)
    for parameter in deployed.parameters():
        parameter.zero_()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_images_are_unchanged():
    images = torch.rand(1, 3, 64, 64)
    before = images.clone()
    with torch.inference_mode():
        mobile_former.deploy(mobile_former.create_model("mobile_former_26m"))(images)
    assert torch.equal(images, before)


class Pair(torch.nn.Module):
    """A module with one model under two names."""

    def __init__(self, model):
        super().__init__()
        self.left = self.right = model

    def forward(self, images):
        return self.left(images), self.right(images)


class Halved(mobile_former.MobileFormer):
    """A user's subclass with another forward pass."""

    def forward(self, images):
        return super().forward(images) / 2


def test_compiled_shared_and_derived_models_give_their_own_outputs():
    model = trained("mobile_former_26m")
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    halved = Halved("mobile_former_26m").double().eval()
    halved.load_state_dict(model.state_dict())
    with torch.inference_mode():
        expected = model(images)
        assert error(mobile_former.deploy(torch.compile(model))(images), expected) < 1e-12
        for logits in mobile_former.deploy(Pair(model))(images):
            assert error(logits, expected) < 1e-12
        assert error(mobile_former.deploy(halved)(images), expected / 2) < 1e-12


@pytest.mark.parametrize("enabled", [True, False])
def test_it_follows_autocast_and_the_onednn_flag(enabled):
    model = mobile_former.create_model("mobile_former_26m").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        deployed = mobile_former.deploy(model)
        with torch.backends.mkldnn.flags(enabled=enabled):
            assert error(deployed(images), expected) < 1e-5
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            assert error(deployed(images).float(), expected) < 0.05


@pytest.mark.parametrize("threads", [1, 2])
def test_packed_weights_serve_images_of_any_size_and_number(threads):
    model = trained("mobile_former_52m").float()
    deployed = mobile_former.deploy(model)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape in ((1, 3, 64, 64), (3, 3, 96, 64), (1, 3, 33, 47)):
            images = torch.randn(shape)
            with torch.no_grad():
                assert error(deployed(images), model(images)) < 1e-4
    finally:
        torch.set_num_threads(before)


def test_copies_conversions_and_changed_weights_are_followed_after_the_first_call():
    model = trained("mobile_former_26m").float()
    deployed = mobile_former.deploy(model)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = deployed(images)
        for twin in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
            assert torch.equal(twin(images), expected)
            for parameter in twin.parameters():
                parameter.mul_(0.9)
            changed = twin(images)
            with torch.backends.mkldnn.flags(enabled=False):
                assert error(changed, twin(images)) < 1e-5
        assert torch.equal(deployed(images), expected)
        halved = deployed.half().float()
        with torch.backends.mkldnn.flags(enabled=False):
            without = halved(images)
        assert error(halved(images), without) < 1e-5
        assert not torch.equal(halved(images), expected)


def test_without_no_grad_it_runs_the_same_number_of_operations():
    deployed = mobile_former.deploy(mobile_former.create_model("mobile_former_26m").eval())
    images = torch.randn(1, 3, 64, 64)
    logits = deployed(images)
    assert not logits.requires_grad
    with torch.no_grad():
        assert torch.equal(deployed(images), logits)
    counts = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), Count() as count:
            deployed(images)
        counts.append(count.operations)
    assert counts[0] == counts[1]


def test_gradients_of_the_image_are_the_same():
    model = trained("mobile_former_26m")
    gradients = []
    for form in (model, mobile_former.deploy(model)):
        torch.manual_seed(1)
        images = torch.randn(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
        form(images)[0, 5].backward()
        gradients.append(images.grad)
    assert error(gradients[1], gradients[0]) < 1e-7  # PyTorch's gradient of hardsigmoid rounds 1/6 to float32


class Count(TorchDispatchMode):
    """Counts the operations that are not views."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.operations += not operation.is_view
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_294m"])
def test_at_least_a_third_of_the_operations_is_saved(name):
    model = mobile_former.create_model(name).eval()
    counts = []
    for form in (model, mobile_former.deploy(model)):
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            form(images)  # the first call packs the weights
            with Count() as count:
                form(images)
        counts.append(count.operations)
    assert counts[1] < 2 / 3 * counts[0], counts


def test_it_compiles_and_exports_with_open_sizes():
    model = trained("mobile_former_26m")
    deployed = mobile_former.deploy(model)
    images = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    compiled = torch.compile(deployed, backend="aot_eager", fullgraph=True)
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(deployed, (torch.randn(2, 3, 70, 80).double(),), dynamic_shapes=(sizes,))
    with torch.no_grad():
        for form in (compiled, exported.module()):
            assert error(form(images), model(images)) < 1e-12
    # Kernels for phones need two-dimensional convolutions with constant weights.
    convolutions = [node for node in exported.graph.nodes if "conv" in str(node.target)]
    assert len(convolutions) > 20
    assert all(node.target is torch.ops.aten.conv2d.default for node in convolutions)
    assert all(node.args[1].op == "placeholder" for node in convolutions)


def test_bad_images_raise_the_errors_of_the_trained_model():
    deployed = mobile_former.deploy(mobile_former.create_model("mobile_former_26m"))
    with pytest.raises(mobile_former.InputError, match="at least 32"):
        deployed(torch.rand(1, 3, 16, 64))
    with pytest.raises(mobile_former.InputError, match="the batch is empty"):
        deployed(torch.rand(0, 3, 64, 64))


def test_an_argument_that_is_not_a_module_raises_an_error_with_a_remedy():
    with pytest.raises(mobile_former.InputError, match="was given 'mobile_former_26m': build it first"):
        mobile_former.deploy("mobile_former_26m")


def test_weights_can_be_converted_to_channels_last():
    model = mobile_former.create_model("mobile_former_26m").eval()
    deployed = mobile_former.deploy(model).to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(deployed(images), model(images), rtol=0, atol=1e-5)


def test_it_can_be_converted_to_another_type_after_a_call():
    deployed = mobile_former.deploy(mobile_former.create_model("mobile_former_26m").eval())
    images = torch.rand(1, 3, 64, 64)
    expected = deployed(images)
    torch.testing.assert_close(copy.deepcopy(deployed).double()(images.double()).float(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_96m"])
def test_all_tensors_are_contiguous_also_in_copies_and_other_types(name):
    """Some exporters ignore the strides of parameters."""
    deployed = mobile_former.deploy(mobile_former.create_model(name).eval())
    for form in (deployed, copy.deepcopy(deployed).double(), pickle.loads(pickle.dumps(deployed))):
        assert all(tensor.is_contiguous() for tensor in form.state_dict().values())


def test_replaced_parts_and_parameters_are_used():
    deployed = mobile_former.deploy(mobile_former.create_model("mobile_former_26m", num_classes=5).eval())
    images = torch.rand(1, 3, 64, 64)
    expected = deployed(images)
    doubled = {"classifier.logits.weight": 2 * deployed.classifier.logits.weight}
    without_bias = {"classifier.logits.bias": torch.zeros(5)}
    logits = torch.func.functional_call(deployed, doubled | without_bias, images)
    torch.testing.assert_close(logits, 2 * (expected - deployed.classifier.logits.bias))
    torch.testing.assert_close(deployed(images), expected)
    deployed.classifier.logits = torch.nn.Identity()
    assert deployed(images).shape == (1, 1024)
    part = deployed.backbone.blocks[1].former
    part.output = None
    assert part.output is None
    del part.query
    assert not hasattr(part, "query")


def test_hooks_on_the_whole_model_run():
    deployed = mobile_former.deploy(mobile_former.create_model("mobile_former_26m"))
    calls = []
    deployed.register_forward_hook(lambda *_: calls.append(True))
    deployed(torch.rand(1, 3, 64, 64))
    assert calls
