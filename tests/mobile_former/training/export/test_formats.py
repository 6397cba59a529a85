"""Files for phones: their outputs, metadata and errors, with the real libraries where they are installed."""

import json
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from mobile_former import InputError
from mobile_former.training.export.formats import IMPLEMENTATIONS

METADATA = {
    "task": "classification", "model": "tiny", "class_names": ["Katze", "čéz"],
    "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4],
}  # fmt: skip
PACKAGES = {".pte": "executorch", ".tflite": "litert_torch", ".mlpackage": "coremltools"}
WRITTEN = [".pt2", *(pytest.param(suffix, marks=pytest.mark.slow) for suffix in PACKAGES)]


class Tiny(nn.Module):
    """A classifier of two classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 2)

    def forward(self, images):
        return self.linear(self.conv(images).relu().mean((2, 3)))


class TinyDetector(nn.Module):
    """A detector of two classes that uses the size of the image, and operations that Core ML Tools do not know."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, stride=4)

    def forward(self, images, sizes):
        values = self.conv(images).flatten(2).transpose(1, 2)
        boxes = values[..., 2:].sigmoid().clamp(1e-4, 1 - 1e-4).logit().sigmoid().detach()
        return values[..., :2], boxes / sizes.repeat(1, 2)[:, None]


def write(path):
    names = {"input_names": ["images"], "output_names": ["logits"]}
    IMPLEMENTATIONS[path.suffix].write(Tiny().eval(), [torch.zeros(1, 3, 16, 16)], path, **names, metadata=METADATA)
    return IMPLEMENTATIONS[path.suffix].read(path, "classification")


@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_file_gives_the_outputs_of_the_module_and_has_the_metadata(runtimes, tmp_path, suffix):
    if suffix in PACKAGES:
        pytest.importorskip(PACKAGES[suffix])
    model = write(tmp_path / f"x{suffix}")
    assert model.metadata.items() >= METADATA.items()
    assert model.batch == 1
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16)).astype(np.float32)  # three batches
    mean, std = (np.float32(METADATA[name])[:, None, None] for name in ("mean", "std"))
    images = (pixels / 255 - mean) / std
    expected = Tiny()(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(model(images)["logits"], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_core_ml_package_takes_an_image_and_has_the_class_labels(runtimes, tmp_path):
    coremltools = pytest.importorskip("coremltools")
    write(tmp_path / "x.mlpackage")
    description = coremltools.models.MLModel(str(tmp_path / "x.mlpackage"), skip_model_load=True).get_spec().description
    (image,) = description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", 16, 16)
    assert image.type.imageType.colorSpace == image.type.imageType.RGB
    assert {output.name for output in description.output} == {"classLabel", "classLabel_probs"}
    assert json.loads(description.metadata.userDefined["mobile_former"]).items() >= METADATA.items()


@pytest.mark.slow
def test_a_core_ml_package_of_a_detector_takes_an_image_with_its_size_and_computes_in_float32(runtimes, tmp_path):
    coremltools = pytest.importorskip("coremltools")
    path, (height, width) = tmp_path / "x.mlpackage", (32, 48)
    names = {"input_names": ["images", "sizes"], "output_names": ["logits", "boxes"]}
    inputs, metadata = (
        [torch.zeros(1, 3, height, width), torch.tensor([[height, width]])],
        METADATA | {"task": "detection"},
    )
    IMPLEMENTATIONS[".mlpackage"].write(TinyDetector().eval(), inputs, path, **names, metadata=metadata)
    specification = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    image, sizes = specification.description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", width, height)
    assert (sizes.name, list(sizes.type.multiArrayType.shape)) == ("sizes", [1, 2])
    assert [output.name for output in specification.description.output] == ["logits", "boxes"]
    assert json.loads(specification.description.metadata.userDefined["mobile_former"]).items() >= metadata.items()
    types = {
        output.type.tensorType.dataType
        for function in specification.mlProgram.functions.values()
        for block in function.block_specializations.values()
        for operation in block.operations
        for output in operation.outputs
    }
    assert coremltools.proto.MIL_pb2.FLOAT32 in types
    assert coremltools.proto.MIL_pb2.FLOAT16 not in types

    model = IMPLEMENTATIONS[".mlpackage"].read(path, "detection")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, height, width)).astype(np.float32)
    mean, std = (np.float32(METADATA[name])[:, None, None] for name in ("mean", "std"))
    images, sizes = (pixels / 255 - mean) / std, np.array([[32, 48], [20, 40]])
    with torch.no_grad():
        expected = TinyDetector()(torch.from_numpy(images), torch.from_numpy(sizes))
    for name, values in zip(names["output_names"], expected, strict=True):
        np.testing.assert_allclose(model(images, sizes)[name], values, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_litert_file_has_its_labels_in_an_archive(tmp_path):
    pytest.importorskip("litert_torch")
    write(tmp_path / "x.tflite")
    assert zipfile.ZipFile(tmp_path / "x.tflite").read("labels.txt").decode().split("\n") == METADATA["class_names"]


@pytest.mark.parametrize(("suffix", "extra"), [(".pte", "executorch"), (".tflite", "litert"), (".mlpackage", "coreml")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path, suffix, extra):
    monkeypatch.setitem(sys.modules, {".pte": "executorch.exir"}.get(suffix, PACKAGES[suffix]), None)
    with pytest.raises(InputError, match=rf"pip install -c constraints\.txt -e '\.\[{extra}\]'$"):
        write(tmp_path / f"x{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK", b"\0" * 100])
def test_a_damaged_file_is_reported(tmp_path, content):
    path = tmp_path / "x.pt2"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged or not a file of this project's export"):
        IMPLEMENTATIONS[".pt2"].read(path, "classification")
    with pytest.raises(FileNotFoundError, match="no file"):
        IMPLEMENTATIONS[".pt2"].read(tmp_path / "none.pt2", "classification")
    model = tmp_path / "y.pt2"
    write(model)
    with pytest.raises(InputError, match=r"classification\.export"):
        IMPLEMENTATIONS[".pt2"].read(model, "detection")
