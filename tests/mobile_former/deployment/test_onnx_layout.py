"""What graphs for ONNX Runtime have of their own: the same numbers, and maps and groups that suit that runtime."""

import functools

import onnx
import pytest
import torch

import mobile_former
from mobile_former.deployment import backbone as deployed_backbone
from mobile_former.deployment import mobile as deployed_mobile
from mobile_former.deployment.onnx_layout import filled, with_zeros
from mobile_former.training.export.onnx_file import OnnxModel, write_onnx
from tests.mobile_former.deployment.test_deploy import error, trained


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Write a model's inference form once; returns the model in float64 and the path of its file."""

    @functools.cache
    def export(name, is_open=False, spatial=False):
        model = trained(name, spatial_dynamic_relu=spatial)
        path = tmp_path_factory.mktemp("file") / f"{name}.onnx"
        write_onnx(
            mobile_former.deploy(model).float(), [torch.zeros(2 if is_open else 1, 3, 64, 96)], path,
            input_names=["images"], output_names=["logits"], metadata={"task": "classification"},
            dynamic_axes=[{0: "batch", 2: "height", 3: "width"}] if is_open else None,
        )  # fmt: skip
        return model, path

    return export


def worst(model, path, images):
    """How far the file's logits are from the model's, as a share of the largest."""
    with torch.no_grad():
        expected = model(images.double())
    return error(torch.from_numpy(OnnxModel(path, "classification")(images.numpy())["logits"]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", mobile_former.list_models())
def test_a_graph_of_open_sizes_gives_what_the_model_gives(exported, name):
    model, path = exported(name, is_open=True)
    for shape in ((1, 3, 224, 224), (3, 3, 71, 45)):
        assert worst(model, path, torch.randn(shape)) < 2e-5


@pytest.mark.parametrize(("name", "spatial"), [("mobile_former_26m", False), ("mobile_former_96m", True)])
def test_a_graph_of_fixed_sizes_gives_what_the_model_gives(exported, name, spatial):
    model, path = exported(name, spatial=spatial)
    assert worst(model, path, torch.randn(1, 3, 64, 96)) < 2e-5


@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_96m"])
def test_what_goes_into_a_graph_is_the_model_to_the_last_digits(monkeypatch, name):
    """In float64 and by PyTorch, as ONNX Runtime has few kernels for that type."""
    for module in (deployed_backbone, deployed_mobile):
        monkeypatch.setattr(module, "makes_onnx", lambda: True)
    model, images = trained(name), torch.randn(2, 3, 71, 45, dtype=torch.float64)
    program = torch.export.export(mobile_former.deploy(model), (images,))
    convolutions = [node for node in program.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    groups = {node.args[6] for node in convolutions if len(node.args) > 6}
    assert (4 in groups) == (name == "mobile_former_26m")
    with torch.no_grad():
        assert error(program.module()(images), model(images)) < 1e-12


@pytest.mark.slow
def test_without_its_last_linear_a_graph_gives_features(tmp_path):
    deployed = mobile_former.deploy(trained("mobile_former_26m")).float()
    deployed.classifier.logits = torch.nn.Identity()
    images, path = torch.randn(1, 3, 64, 64), tmp_path / "features.onnx"
    write_onnx(
        deployed, [images], path, input_names=["images"], output_names=["features"],
        metadata={"task": "classification"},
    )  # fmt: skip
    found = torch.from_numpy(OnnxModel(path, "classification")(images.numpy())["features"])
    assert error(found, deployed(images)) < 2e-5


def test_coarse_maps_of_26m_have_convolutions_in_groups_and_the_finest_none(exported):
    _, path = exported("mobile_former_26m")
    shapes = output_shapes(path)
    groups = {name: group for name, group in groups_of_convolutions(path).items() if group == 4}
    assert {64 // shapes[name][2] for name in groups} == {8, 16, 32}


@pytest.mark.parametrize(("name", "spatial"), [("mobile_former_26m", False), ("mobile_former_96m", True)])
def test_maps_of_few_channels_are_filled_up_to_a_block(exported, name, spatial):
    _, path = exported(name, spatial=spatial)
    stem = next(iter(groups_of_convolutions(path)))
    assert output_shapes(path)[stem][1] == 16


def groups_of_convolutions(path):
    """The groups of each convolution in turn, by the name of its output."""
    convolutions = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    return {node.output[0]: next(a.i for a in node.attribute if a.name == "group") for node in convolutions}


def output_shapes(path):
    """The shape of everything that is computed between inputs and outputs, by name."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    return {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in graph.value_info}


def test_a_filled_tensor_has_whole_copies_then_zeros():
    assert filled(torch.tensor([1, 2, 3, 4, 5]), 16).tolist() == [1, 2, 3, 4, 5] * 3 + [0]
    assert filled(torch.ones(12, 2)).sum(1).tolist() == [2] * 12 + [0] * 4
    assert filled(torch.ones(16)).tolist() == [1] * 16


def test_zeros_come_behind_along_the_axis_that_is_asked_for():
    tensor = torch.ones(2, 3, 1, 1)
    assert with_zeros(tensor, 1, 5).sum((0, 2, 3)).tolist() == [2, 2, 2, 0, 0]
    assert with_zeros(tensor, 0, 3).sum((1, 2, 3)).tolist() == [3, 3, 0]
    assert with_zeros(tensor, 0, 2) is tensor
