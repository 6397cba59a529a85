"""A model gives the same logits in every runtime that is installed."""

import numpy as np
import pytest
import torch

import mobile_former
from experiments.runtimes.digits import digit_images, spread_classifier
from experiments.runtimes.runtimes import NCNN, RUNTIMES, write_file
from tests.conftest import run_module

SIDE = 32
FLOAT32 = [name for name in RUNTIMES if name != "OpenVINO bf16"]


@pytest.fixture(scope="module")
def model():
    """A classifier with random weights."""
    return spread_classifier("mobile_former_26m")


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """Return a function that writes a file of the model, once for each suffix."""
    folder = tmp_path_factory.mktemp("files")

    def write(suffix):
        path = folder / f"model{suffix}"
        if not path.exists():
            write_file(mobile_former.deploy(model), torch.zeros(1, 3, SIDE, SIDE), path)
        return path

    return write


@pytest.mark.slow
@pytest.mark.parametrize("runtime", FLOAT32)
def test_a_runtime_gives_pytorch_s_logits(runtimes, model, written, runtime):
    pytest.importorskip(RUNTIMES[runtime].package)
    if RUNTIMES[runtime].suffix == NCNN:
        pytest.importorskip("pnnx")
    run = RUNTIMES[runtime].open(written(RUNTIMES[runtime].suffix))
    images = digit_images("val", SIDE)[:60]
    with torch.no_grad():
        expected = model(images).numpy()
    found = np.concatenate([run(image[None].numpy()) for image in images])
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
def test_the_command_prints_a_row_for_each_runtime(tmp_path):
    result = run_module(
        "experiments.runtimes", "--runtimes", "ONNX Runtime", "OpenCV", "--images", "8", "--rounds", "2", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines()]
    assert header == ["model", "runtime", "MB", "difference", "same class", "ms"]
    assert [row[1] for row in rows] == ["ONNX Runtime", "OpenCV"]
    for row in rows:
        assert float(row[3]) < 1e-4
        assert row[4] == "1.000"


def test_an_unknown_runtime_is_reported_in_one_line(tmp_path):
    result = run_module("experiments.runtimes", "--runtimes", "Caffe", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: --runtimes Caffe: give some of ONNX Runtime, ")
