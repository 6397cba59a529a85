import os
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import mobile_former
from mobile_former.errors import InputError
from mobile_former.training.export import onnx_file
from mobile_former.training.export.onnx_file import OnnxModel, count_nodes, quantise, relative_difference, write_onnx
from tests.mobile_former.test_reference import STEMS, load

METADATA = {"task": "classification", "class_names": ["Käse", "x"], "mean": [0.5, 0.25, 1.0]}


class Attention(nn.Module):
    """A convolution, and a softmax along every axis."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 4)

    def forward(self, images):
        x = self.conv(images).relu().softmax(2).softmax(-1)
        return self.linear(x.mean((2, 3))), x.softmax(1)


def write(path, *, dynamic=False, **options):
    model = Attention().eval()
    arguments = {"input_names": ["images"], "output_names": ["logits", "map"], "metadata": METADATA} | options
    axes = [{0: "batch", 2: "height", 3: "width"}] if dynamic else None
    write_onnx(model, [torch.zeros(2, 3, 8, 10)], path, dynamic_axes=axes, **arguments)
    return model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file with fixed sizes and a batch of 2, and its module."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return path, write(path)


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def assert_same(model, module, batch):
    found = model(batch.numpy())
    with torch.no_grad():
        expected = module(batch)
    assert list(found) == ["logits", "map"]
    for one, other in zip(found.values(), expected, strict=True):
        assert one.shape == other.shape
        assert relative_difference(one, other.numpy()) < 1e-6


def test_onnx_runtimes_dynamic_quantisation_accepts_a_classifier(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    torch.manual_seed(0)
    model, batch = mobile_former.create_model("mobile_former_26m", num_classes=10).eval(), images(2, 3, 64, 64)
    options = {"input_names": ["images"], "output_names": ["logits"], "metadata": {}}
    write_onnx(mobile_former.deploy(model), [batch], tmp_path / "float.onnx", **options)
    quantization.quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(None, {"images": batch.numpy()})
    with torch.no_grad():
        assert relative_difference(found, model(batch).numpy()) < 0.1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_file_with_a_fixed_batch_equals_the_module_for_any_number_of_images(written, count):
    path, module = written
    model = OnnxModel(path, "classification")
    assert model.batch == 2
    assert model.inputs == {"images": (2, 3, 8, 10)}
    assert_same(model, module, images(count, 3, 8, 10))


def test_a_dynamic_file_accepts_other_batches_and_sizes(tmp_path):
    module = write(tmp_path / "x.onnx", dynamic=True)
    model = OnnxModel(tmp_path / "x.onnx", "classification")
    assert model.batch is None
    assert model.inputs == {"images": ("batch", 3, "height", "width")}
    for shape in ((1, 3, 8, 10), (3, 3, 17, 5), (2, 3, 9, 9)):
        assert_same(model, module, images(*shape))


def test_the_metadata_is_read_back(written):
    assert OnnxModel(written[0], "classification").metadata.items() >= METADATA.items()


def test_only_a_softmax_along_the_last_axis_is_kept(written):
    operations = [node.op_type for node in onnx.load(written[0]).graph.node]
    assert operations.count("Softmax") == 1
    assert operations.count("Exp") == 2
    assert count_nodes(written[0]) == len(operations)


class Weights(nn.Module):
    """A product with a part of a weight, and a sum with a vector in the shape of a map."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 400))

    def forward(self, x):
        weight, _ = self.weight.split(200, dim=1)
        return (x[:, :, None] * weight).mean((2,))[:, :, None, None]


def test_operations_on_weights_are_computed_before_the_file_is_written(tmp_path):
    module, x = Weights(), torch.randn(2, 3)
    write_onnx(
        module, [x], tmp_path / "x.onnx", input_names=["x"], output_names=["y"], metadata=METADATA,
        dynamic_axes=[{0: "batch"}],
    )  # fmt: skip
    graph = onnx.load(tmp_path / "x.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    assert not [node for node in graph.node if constants.issuperset(node.input)]
    assert len(constants) == len({name for node in graph.node for name in node.input} & constants)
    assert [node.op_type for node in graph.node].count("Reshape") == 1  # OpenCV 4 has no Unsqueeze of two axes
    for batch in (x, x[:1]):
        found = OnnxModel(tmp_path / "x.onnx", "classification")(batch.numpy())["y"]
        assert relative_difference(found, module(batch).detach().numpy()) < 1e-6


def test_a_file_is_valid_self_contained_and_without_paths_of_this_machine(written, capfd):
    path, _ = written
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(path, full_check=True)
    assert str(onnx_file.__file__).encode() not in path.read_bytes()
    assert b"stack_trace" not in path.read_bytes()


def test_the_exporter_prints_and_warns_nothing(tmp_path, capfd, recwarn):
    write(tmp_path / "x.onnx")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    (tmp_path / "x.onnx").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*x\.onnx: No space left on device"):
        write(tmp_path / "x.onnx")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"x.onnx": b"before"}


def test_a_module_that_cannot_be_exported_is_an_error(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="Odd cannot be exported"):
        write_onnx(
            Odd(), [torch.ones(2, 2)], tmp_path / "x.onnx", input_names=["x"], output_names=["y"], metadata=METADATA
        )
    assert not list(tmp_path.iterdir())


# Errors


def test_the_error_for_a_damaged_file_names_it(written, tmp_path):
    content = written[0].read_bytes()
    for damaged in (b"", b"not ONNX at all", content[:-200], content[:100]):
        (tmp_path / "x.onnx").write_bytes(damaged)
        with pytest.raises(InputError, match=r"x\.onnx"):
            OnnxModel(tmp_path / "x.onnx", "classification")
    with pytest.raises(FileNotFoundError, match=r"y\.onnx"):
        OnnxModel(tmp_path / "y.onnx", "classification")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "not written by this project's export"),
        ({"mobile_former_format": "1"}, "not written by this project's export"),
        ({"mobile_former_format": "one", "task": "x"}, "not written by this project's export"),
        ({"mobile_former_format": "2", "task": '"classification"'}, "has format 2, but this version reads 1"),
        ({"mobile_former_format": "1", "task": '"detection"'}, r"a file of detection\.export"),
    ],
)
def test_a_file_of_another_project_task_or_version_is_an_error(written, tmp_path, metadata, message):
    model = onnx.load(written[0])
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(InputError, match=message):
        OnnxModel(tmp_path / "x.onnx", "classification")


def test_an_input_that_does_not_fit_the_file_is_an_error(written):
    model = OnnxModel(written[0], "classification")
    with pytest.raises(InputError, match=re.escape("(2, 3, 8, 10), but (1, 3, 9, 10) was given")):
        model(np.zeros((1, 3, 9, 10), np.float32))
    with pytest.raises(InputError, match="cannot be run"):
        model(np.zeros((1, 3, 8, 10), np.uint8))
    with pytest.raises(InputError, match="takes images: 2 inputs were given"):
        model(images(2, 3, 8, 10).numpy(), images(2, 3, 8, 10).numpy())


def test_without_onnx_the_error_names_the_extra(written, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"\[export\]"):
        OnnxModel(written[0], "classification")


# Int8


class Sums(nn.Module):
    """Convolutions, and linears with an added constant, activation and bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
        self.constant = nn.Parameter(torch.randn(1, 64))
        self.linears = nn.ModuleList([nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False), nn.Linear(64, 4)])

    def forward(self, images):
        x = self.convs(images).mean((2, 3))
        x = torch.addmm(self.constant, x, self.linears[0].weight.t())
        x = torch.addmm(x, x, self.linears[1].weight.t())
        return self.linears[2](x)


@pytest.mark.parametrize("batch", [1, None])
def test_an_int8_file_is_smaller_and_close_to_the_module(tmp_path, capfd, batch):
    module = Sums().eval()
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    write_onnx(
        module, [torch.zeros(batch or 2, 3, 8, 8)], plain, input_names=["images"], output_names=["logits"],
        dynamic_axes=None if batch else [{0: "batch"}], metadata=METADATA,
    )  # fmt: skip
    calibration = images(16, 3, 8, 8).numpy()
    quantise(plain, small, ([image[None]] for image in calibration), len(calibration))
    assert small.stat().st_size < plain.stat().st_size / 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["plain.onnx", "small.onnx"]
    model = OnnxModel(small, "classification")
    assert model.metadata.items() >= (METADATA | {"precision": "int8"}).items()
    difference = relative_difference(model(calibration)["logits"], module(images(16, 3, 8, 8)).detach().numpy())
    assert 1e-4 < difference < 0.05
    assert capfd.readouterr() == ("", "")


class Grouped(nn.Module):
    """A grouped and a depthwise convolution, and a grouped one of one dimension."""

    def __init__(self):
        super().__init__()
        self.pointwise, self.depthwise = nn.Conv2d(8, 12, 1, groups=4), nn.Conv2d(12, 12, 3, groups=12)
        self.flat = nn.Conv1d(12, 6, 1, groups=2)

    def forward(self, images):
        return self.flat(self.depthwise(self.pointwise(images)).flatten(2)).mean(2)


def test_an_int8_file_has_no_grouped_pointwise_convolutions(tmp_path, capfd):
    module, inputs = Grouped().eval(), torch.randn(16, 8, 6, 6)
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    write_onnx(module, [inputs[:1]], plain, input_names=["images"], output_names=["logits"], metadata=METADATA)
    quantise(plain, small, ([image[None].numpy()] for image in inputs), len(inputs))
    groups = [
        attribute.i
        for node in onnx.load(small).graph.node
        for attribute in node.attribute
        if node.op_type == "Conv" and attribute.name == "group"
    ]
    assert sorted(groups) == [1, 1, 12]
    onnxruntime.InferenceSession(small)  # at its usual level of messages, it warns of weights that are not read
    assert capfd.readouterr() == ("", "")
    found = OnnxModel(small, "classification")(inputs.numpy())["logits"]
    assert relative_difference(found, module(inputs).detach().numpy()) < 0.05


# The reference


@pytest.mark.slow
@pytest.mark.parametrize("stem", STEMS)
def test_onnx_equals_the_reference_up_to_the_error_of_float32(stem, tmp_path):
    """The error is at most ten times that of the trainable model in float32."""
    model, image, expected = load(stem, tmp_path)
    write_onnx(
        mobile_former.deploy(model), [image], tmp_path / "x.onnx", input_names=["images"], output_names=["logits"],
        metadata=METADATA,
    )  # fmt: skip
    with torch.no_grad():
        error = np.abs(model(image).numpy() - expected["logits"]).max()
    found = OnnxModel(tmp_path / "x.onnx", "classification")(image.numpy())["logits"]
    assert np.abs(found - expected["logits"]).max() <= 10 * error
