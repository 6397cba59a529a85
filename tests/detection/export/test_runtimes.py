"""Detectors of open sizes give PyTorch's outputs in other runtimes than ONNX Runtime."""

import cv2
import numpy as np
import pytest
import torch

import detection
import mobile_former
from detection.boxes.anchors import cell_centres
from detection.export.onnx_graph import DECODED_OUTPUTS, RAW_OUTPUTS, DetectionGraph, translations
from detection.models.retinanet import STRIDES
from mobile_former.layers.padding import padding_pyramid
from mobile_former.training.export.onnx_file import write_onnx

SHAPES = ((128, 160), (96, 64), (64, 64))  # the last with padding: fewer positions than queries


class Centres(torch.nn.Module):
    """The centres of the positions of a map."""

    def forward(self, x):
        return cell_centres(x.shape[2:], 8, x.device) + 0 * x.sum()


def open_sizes():
    return [{2: 32 * torch.export.Dim("height_in_32s"), 3: 32 * torch.export.Dim("width_in_32s")}]


def test_opencv_gives_the_centres_of_maps_of_any_size(tmp_path):
    write_onnx(
        Centres(), [torch.zeros(1, 3, 64, 96)], tmp_path / "x.onnx",
        input_names=["x"], output_names=["centres"], dynamic_axes=open_sizes(), metadata={"task": "detection"},
    )  # fmt: skip
    network = cv2.dnn.readNetFromONNX(str(tmp_path / "x.onnx"))
    for height, width in SHAPES:
        network.setInput(np.zeros((1, 3, height, width), np.float32))
        expected = cell_centres((height, width), 8, torch.device("cpu")).numpy()
        np.testing.assert_array_equal(network.forward(), expected)


class Masks(torch.nn.Module):
    """The padding masks of a RetinaNet's maps."""

    def forward(self, x):
        return tuple(mask.float() for mask in padding_pyramid(x[:, 0] > 0, STRIDES).values())


def test_openvino_gives_the_masks_of_small_images_after_those_of_large_ones(runtimes, tmp_path):
    openvino = pytest.importorskip("openvino")
    names = [f"mask{stride}" for stride in STRIDES]
    write_onnx(
        Masks(), [torch.zeros(1, 3, 256, 320)], tmp_path / "x.onnx",
        input_names=["x"], output_names=names, dynamic_axes=open_sizes(), metadata={"task": "detection"},
    )  # fmt: skip
    model = openvino.Core().compile_model(tmp_path / "x.onnx", "CPU")
    for height, width in ((416, 576), *SHAPES, (32, 32)):
        x = torch.zeros(1, 3, height, width)
        x[..., 20:] = x[:, :, 25:] = 1
        found = model({"x": x.numpy()})
        for name, expected in zip(names, Masks()(x), strict=True):
            np.testing.assert_array_equal(found[name], expected)


def outputs_of_opencv(path, images, sizes):
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(images, "images")
    network.setInput(sizes, "sizes")
    return network.forward(list(RAW_OUTPUTS))


def outputs_of_openvino(path, images, sizes):
    openvino = pytest.importorskip("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    found = openvino.Core().compile_model(path, "CPU", options)({"images": images, "sizes": sizes})
    return [found[name] for name in RAW_OUTPUTS]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An E2E-MF that chooses its queries, as a module and as an ONNX file of open sizes."""
    torch.manual_seed(0)
    options = {"focal": True, "refine_boxes": True, "dense_head": True, "choose_queries": True}
    model = detection.create_detector("e2e_mf_26m", 3, **options)
    torch.nn.init.normal_(model.dense.classify.weight)  # distinct logits
    with torch.no_grad():  # BatchNorm's statistics are those of its inputs
        for _ in range(20):
            model.train()(torch.randn(2, 3, 96, 128))
    path = tmp_path_factory.mktemp("file") / "detector.onnx"
    write_onnx(
        DetectionGraph(mobile_former.deploy(model.eval()), decode=False).eval(),
        [torch.zeros(1, 3, 128, 160), torch.tensor([[128, 160]])], path,
        input_names=["images", "sizes"], output_names=RAW_OUTPUTS, dynamic_axes=[*open_sizes(), {}],
        metadata={"task": "detection"},
    )  # fmt: skip
    return DetectionGraph(model, decode=False).eval(), path


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("run", [outputs_of_opencv, outputs_of_openvino])
def test_e2e_mf_of_open_sizes_gives_the_outputs_of_the_model(runtimes, exported, run):
    module, path = exported
    for height, width in SHAPES:
        images, sizes = torch.randn(1, 3, height, width), torch.tensor([[height - 30, width - 20]])
        with torch.no_grad():
            expected = [values.numpy() for values in module(images, sizes)]
        for found, values in zip(run(path, images.numpy(), sizes.numpy()), expected, strict=True):
            np.testing.assert_allclose(found, values, rtol=0, atol=1e-4 * np.abs(values).max())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tract_runs_classifiers_and_decoded_retinanets(runtimes, tmp_path):
    tract = pytest.importorskip("tract")
    onnxruntime = pytest.importorskip("onnxruntime")

    def outputs(path, inputs):
        """Outputs of ONNX Runtime and of tract. The interface of tract has no counts and labels."""
        expected = onnxruntime.InferenceSession(path).run(None, inputs)
        found = tract.onnx().load(str(path)).into_model().into_runnable().run(list(inputs.values()))
        return [(values, result.to_numpy()) for values, result in zip(expected[:2], found, strict=False)]

    torch.manual_seed(0)
    images = torch.randn(1, 3, 128, 160)
    classifier = mobile_former.deploy(mobile_former.create_model("mobile_former_26m", num_classes=10).eval())
    options = {"input_names": ["images"], "output_names": ["logits"], "metadata": {"task": "classification"}}
    write_onnx(classifier, [images], tmp_path / "classifier.onnx", **options)
    ((expected, found),) = outputs(tmp_path / "classifier.onnx", {"images": images.numpy()})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    detector = detection.create_detector("retinanet_mf_26m", 3)
    torch.nn.init.normal_(detector.classify.bias, std=2)  # distinct scores
    sizes = torch.tensor([[128, 160]])
    write_onnx(
        DetectionGraph(mobile_former.deploy(detector.eval()), decode=True).eval(), [images, sizes],
        tmp_path / "detector.onnx", input_names=["images", "sizes"], output_names=DECODED_OUTPUTS,
        metadata={"task": "detection"}, translations=translations(),
    )  # fmt: skip
    inputs = {"images": images.numpy(), "sizes": sizes.numpy()}
    (boxes, found_boxes), (scores, found_scores) = outputs(tmp_path / "detector.onnx", inputs)
    assert (scores > 0.05).sum() > 10
    np.testing.assert_allclose(found_scores, scores, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found_boxes, boxes, rtol=0, atol=1e-2)
