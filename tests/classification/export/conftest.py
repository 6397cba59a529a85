"""Photographs and their predictions, shared by the tests of export."""

import json

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of images of several sizes, none of which is the size of the model."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for number, (height, width) in enumerate(((90, 120), (151, 77), (40, 300), (73, 74), (33, 33))):
        small = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.fixture
def predictions(command, photographs, tmp_path):
    """Run predict on the photographs, with a checkpoint or an ONNX file; return its JSON."""

    def predict(*arguments):
        status, _, errors = command(
            "classification.predict", photographs, "--output", "x.json", "--batch_size", 3, *arguments
        )
        assert (status, errors) == (0, "")
        return json.loads((tmp_path / "x.json").read_text())

    return predict


def assert_same_predictions(found, expected, tolerance=2e-6):
    assert len(found) == len(expected) == 5
    for one, other in zip(found, expected, strict=True):
        assert (one["path"], one["class"]) == (other["path"], other["class"])
        probabilities = [{top["class"]: top["probability"] for top in each["top_k"]} for each in (one, other)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=tolerance)
