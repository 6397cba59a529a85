"""Scoring a checkpoint."""

import csv
import shutil

import torch

from tests.conftest import write_image_folder


def test_other_images_are_scored_by_the_names_of_the_classes(checkpoint, command, tmp_path):
    # One class has no images: the labels of the others must not shift.
    other = write_image_folder(tmp_path / "other", ("blue", "green", "red"), train=1, val=3)
    shutil.rmtree(other / "train")
    shutil.rmtree(other / "val" / "blue")
    arguments = ("--ckpt_path", checkpoint, "--data.root", other, "--output", tmp_path / "out")
    status, _, errors = command("classification.test", *arguments)
    assert status == 0, errors
    with (tmp_path / "out" / "per_class.csv").open() as file:
        counts = {row["class"]: int(row["images"]) for row in csv.DictReader(file)}
    assert counts == {"blue": 0, "green": 3, "red": 3}


def test_a_file_that_is_not_a_checkpoint_is_refused(failing, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"hello")
    for module in ("classification.validate", "classification.test"):
        assert "not a weights file" in failing(module, "--ckpt_path", path)
    torch.save({"state_dict": {}}, path)
    assert "not a checkpoint of classification.fit" in failing("classification.validate", "--ckpt_path", path)
    assert str(path) in failing("classification.predict", path, "--ckpt_path", path)
