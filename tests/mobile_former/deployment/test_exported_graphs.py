"""Exported graphs of the inference form: the outputs of the trained model, in ONNX Runtime and in other runtimes."""

import functools
import os
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch

import mobile_former
from mobile_former.training.export.onnx_file import OnnxModel, write_onnx
from tests.conftest import OPENCV_4
from tests.mobile_former.deployment.test_deploy import error, trained


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that exports a model once, and returns the model in float64 and the path of its ONNX file."""

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


def graph_error(model, path, images):
    """Return the largest difference between the logits of the file and of the model, relative to the largest logit."""
    with torch.no_grad():
        expected = model(images.double())
    return error(torch.from_numpy(OnnxModel(path, "classification")(images.numpy())["logits"]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_294m"])
def test_a_graph_of_open_sizes_gives_the_outputs_of_the_model(exported, name):
    model, path = exported(name, is_open=True)
    for shape in ((1, 3, 224, 224), (3, 3, 71, 45)):
        assert graph_error(model, path, torch.randn(shape)) < 2e-5


@pytest.mark.parametrize(("name", "spatial"), [("mobile_former_26m", False), ("mobile_former_96m", True)])
def test_a_graph_of_fixed_sizes_gives_the_outputs_of_the_model(exported, name, spatial):
    model, path = exported(name, spatial=spatial)
    assert graph_error(model, path, torch.randn(1, 3, 64, 96)) < 2e-5


@pytest.mark.parametrize(("name", "spatial"), [("mobile_former_26m", False), ("mobile_former_96m", True)])
def test_opencv_gives_the_outputs_of_the_model(exported, name, spatial):
    model, path = exported(name, spatial=spatial)
    images = torch.randn(1, 3, 64, 96)
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(images.numpy())
    with torch.no_grad():
        assert error(torch.from_numpy(network.forward()), model(images.double())) < 2e-5


@pytest.mark.parametrize(("name", "spatial"), [("mobile_former_26m", False), ("mobile_former_96m", True)])
def test_opencv_4_gives_the_outputs_of_the_model(exported, name, spatial, tmp_path):
    if not OPENCV_4.is_dir():
        pytest.skip("make runtimes installs OpenCV 4.14")
    model, path = exported(name, spatial=spatial)
    images = torch.randn(1, 3, 64, 96)
    np.save(tmp_path / "images.npy", images.numpy())
    # In a process of its own, because cv2 is OpenCV 5 here.
    program = (
        "import sys, cv2, numpy; assert cv2.__version__.startswith('4.'), cv2.__version__\n"
        "network = cv2.dnn.readNetFromONNX(sys.argv[1])\n"
        "network.setInput(numpy.load('images.npy'))\n"
        "numpy.save('logits.npy', network.forward())"
    )
    environment = os.environ | {"PYTHONPATH": str(OPENCV_4)}
    subprocess.run([sys.executable, "-c", program, path], cwd=tmp_path, env=environment, check=True)
    with torch.no_grad():
        assert error(torch.from_numpy(np.load(tmp_path / "logits.npy")), model(images.double())) < 2e-5


@pytest.mark.parametrize(("name", "spatial"), [("mobile_former_26m", False), ("mobile_former_96m", True)])
def test_a_trace_gives_the_outputs_of_the_model_without_operations_that_ncnn_lacks(name, spatial):
    model = trained(name, spatial_dynamic_relu=spatial)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    trace = torch.jit.trace(mobile_former.deploy(model), images, check_trace=False)
    with torch.no_grad():
        assert error(trace(images), model(images)) < 1e-12
    operations = {node.kind() for node in trace.inlined_graph.nodes()}
    assert not operations & {f"aten::{name}" for name in ("mT", "addmm", "addcmul", "baddbmm")}
    slices = [node for node in trace.inlined_graph.nodes() if node.kind() == "aten::slice"]
    assert {list(node.inputs())[4].toIValue() for node in slices} <= {1}  # steps


@pytest.mark.slow
def test_ncnn_gives_the_outputs_of_the_model(runtimes, tmp_path, monkeypatch):
    """tests/experiments/runtimes has the 26M model."""
    pnnx, ncnn = pytest.importorskip("pnnx"), pytest.importorskip("ncnn")
    monkeypatch.chdir(tmp_path)
    model = trained("mobile_former_96m", spatial_dynamic_relu=True)
    images = torch.randn(1, 3, 64, 96)
    pnnx.export(mobile_former.deploy(model).float(), "model.pt", images, check_trace=False, fp16=False)
    network = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, option, False)
    network.load_param("model.ncnn.param")
    network.load_model("model.ncnn.bin")
    extractor = network.create_extractor()
    extractor.input("in0", ncnn.Mat(images[0].numpy()))
    _, logits = extractor.extract("out0")
    with torch.no_grad():
        assert error(torch.tensor(np.array(logits)), model(images.double())[0]) < 2e-5


@pytest.mark.slow
def test_core_ml_converts_the_model(runtimes):
    """Core ML runs on Apple's systems only."""
    coremltools = pytest.importorskip("coremltools")
    model, images = trained("mobile_former_96m"), torch.randn(1, 3, 64, 96)
    program = torch.export.export(mobile_former.deploy(model).float(), (images,)).run_decompositions({})
    inputs = [coremltools.TensorType(name="images", shape=images.shape)]
    converted = coremltools.convert(program, inputs=inputs, skip_model_load=True)
    (output,) = converted.get_spec().description.output
    assert list(output.type.multiArrayType.shape) == [1, 1000]


@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_96m"])
def test_the_exported_program_equals_the_model_to_the_last_digits(monkeypatch, name):
    """Run the program by PyTorch in float64: ONNX Runtime has few kernels for that type."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
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
    features = torch.from_numpy(OnnxModel(path, "classification")(images.numpy())["features"])
    assert error(features, deployed(images)) < 2e-5


@pytest.mark.slow
def test_coarse_maps_of_26m_have_grouped_convolutions_and_the_finest_have_none(exported):
    _, path = exported("mobile_former_26m")
    shapes = output_shapes(path)
    groups = {name: group for name, group in groups_of_convolutions(path).items() if group == 4}
    assert {64 // shapes[name][2] for name in groups} == {8, 16, 32}


@pytest.mark.parametrize(("name", "spatial"), [("mobile_former_26m", False), ("mobile_former_96m", True)])
def test_maps_with_few_channels_are_padded_to_a_block(exported, name, spatial):
    _, path = exported(name, spatial=spatial)
    stem = next(iter(groups_of_convolutions(path)))
    assert output_shapes(path)[stem][1] == 16


def groups_of_convolutions(path):
    """Return the number of groups of each convolution in order, by the name of its output."""
    convolutions = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    return {node.output[0]: next(a.i for a in node.attribute if a.name == "group") for node in convolutions}


def output_shapes(path):
    """Return the shape of each intermediate tensor of a graph, by name."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    return {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in graph.value_info}
