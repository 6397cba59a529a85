"""Files with dynamic sizes and with preprocessing inside the graph."""

import re

import numpy as np
import pytest
import torch

from classification.data.transforms import eval_transform
from classification.export.exported_classifier import ClassifierGraph, resized_and_cropped
from classification.module import ClassificationModule
from mobile_former.training.export.onnx_file import OnnxModel, write_onnx
from mobile_former.weights.usage import IMAGENET_MEAN, IMAGENET_STD
from tests.classification.conftest import NAMES
from tests.classification.export.conftest import assert_same_predictions


def test_the_preprocessing_of_the_graph_equals_that_of_evaluation(photographs):
    transform = eval_transform(64, 0.875)
    sides = np.random.default_rng(0).integers(33, 200, (20, 2)).tolist()
    for height, width in [(64, 64), (73, 73), (73, 300), *sides]:
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        found = resized_and_cropped(torch.from_numpy(image).permute(2, 0, 1)[None], 64, 0.875)
        assert np.array_equal(found[0].permute(1, 2, 0).numpy(), transform(image=image)["image"]), (height, width)


@pytest.mark.slow
def test_openvino_needs_images_of_the_final_size_because_it_ignores_antialiasing(runtimes, tmp_path):
    """If this fails for large images, OpenVINO is repaired, and docs/export/runtimes.md needs a change."""
    openvino = pytest.importorskip("openvino")
    options = {"image_size": 32, "crop_fraction": 1.0, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    graph = ClassifierGraph(torch.nn.Flatten(), "resize_and_normalise", options)
    write_onnx(
        graph, [torch.zeros(1, 64, 96, 3, dtype=torch.uint8)], tmp_path / "x.onnx", input_names=["images"],
        output_names=["pixels"], dynamic_axes=[{1: "height", 2: "width"}], metadata={"task": "classification"},
    )  # fmt: skip
    network = openvino.Core().compile_model(tmp_path / "x.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    generator = np.random.default_rng(0)
    for shape, low, high in (((1, 32, 50, 3), 0, 1e-5), ((1, 90, 120, 3), 0.5, np.inf)):
        image = generator.integers(0, 256, shape, dtype=np.uint8)
        difference = np.abs(network(image)[0] - graph(torch.from_numpy(image)).numpy()).max()
        assert low <= difference < high


@pytest.mark.slow
def test_a_file_with_preprocessing_accepts_images_of_any_size(command, predictions, checkpoint, photographs, tmp_path):
    status, output, errors = command(
        "classification.export", "--ckpt_path", checkpoint, "--preprocessing", "true", "--dynamic_size", "true",
        "--dynamic_batch", "true", "--output", "new/x.onnx", "--images", photographs,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert "on 5 images: the images given" in output
    assert "top1" not in output
    assert float(re.search(r"where nothing is resized.*?│\s+│ (\S+)", output)[1]) < 1e-5
    model = OnnxModel(tmp_path / "new" / "x.onnx", "classification")
    assert model.inputs == {"images": ("batch", "height", "width", 3)}
    assert model.metadata["input"] == "uint8 (batch, height, width, 3), RGB of 0..255"
    expected = predictions("--ckpt_path", checkpoint)
    # ONNX's Resize rounds some values to a neighbouring level.
    assert_same_predictions(predictions("--onnx", tmp_path / "new" / "x.onnx"), expected, tolerance=5e-3)


@pytest.mark.slow
def test_a_dynamic_file_accepts_other_batches_and_sizes(command, predictions, checkpoint, tmp_path):
    arguments = ("--dynamic_batch", "true", "--dynamic_size", "true", "--output", "x.onnx")
    assert command("classification.export", "--ckpt_path", checkpoint, *arguments)[0] == 0
    model = OnnxModel(tmp_path / "x.onnx", "classification")
    assert model.inputs == {"images": ("batch", 3, "height", "width")}
    module = ClassificationModule(NAMES, "mobile_former_26m").eval()
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    for shape in ((1, 3, 32, 32), (3, 3, 65, 97), (2, 3, 128, 33)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = module(images).numpy()
        assert np.abs(model(images.numpy())["logits"] - expected).max() < 1e-5 * np.abs(expected).max()
    assert_same_predictions(predictions("--onnx", tmp_path / "x.onnx"), predictions("--ckpt_path", checkpoint))
