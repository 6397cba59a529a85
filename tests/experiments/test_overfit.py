"""``python -m experiments.overfit``: training and scoring on the same few images."""

import json

import pytest

from detection.data.scenes import write_coco
from tests.conftest import run_module


@pytest.mark.slow
def test_the_first_images_are_trained_on_and_scored(tmp_path):
    write_coco(tmp_path / "coco", "train", 5)
    result = run_module("experiments.overfit", "--root", "coco", "--images", "3", "--epochs", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "detection" / "overfit"
    assert "3 training images" in result.stdout
    assert "3 validation images" in result.stdout
    assert "val/AP" in json.loads((folder / "metrics.json").read_text())
