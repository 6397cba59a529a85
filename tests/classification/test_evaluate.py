"""Scoring a checkpoint."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
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


def test_all_mistakes_are_listed_and_the_most_confident_ones_drawn(checkpoint, image_folder, command, tmp_path):
    out = tmp_path / "out"
    status, printed, errors = command("classification.test", "--ckpt_path", checkpoint, "--output", out)
    assert status == 0, errors
    assert "per_class.csv, confusion_matrix.png, mistakes.csv, mistakes.png" in printed
    arguments = (image_folder / "val", "--ckpt_path", checkpoint, "--output", tmp_path / "all.csv")
    assert command("classification.predict", *arguments)[0] == 0
    with (tmp_path / "all.csv").open() as file:
        predicted = {Path(row["path"]): (row["class"], float(row["probability"])) for row in csv.DictReader(file)}
    with (out / "mistakes.csv").open() as file:
        mistakes = list(csv.DictReader(file))
    found = {Path(row["path"]): (row["predicted"], float(row["probability"])) for row in mistakes}
    wrong = {path: answer for path, answer in predicted.items() if path.parent.name != answer[0]}
    assert 0 < len(wrong) < len(predicted)
    assert {path: answer[0] for path, answer in found.items()} == {path: answer[0] for path, answer in wrong.items()}
    assert [answer[1] for answer in found.values()] == pytest.approx([wrong[path][1] for path in found], abs=1e-4)
    scores = [answer[1] for answer in found.values()]
    assert scores == sorted(scores, reverse=True)
    assert all(row["true"] == Path(row["path"]).parent.name for row in mistakes)
    # The picture shows the images: the mean colour of a cell is that of the image.
    picture = cv2.imread(str(out / "mistakes.png"))
    for path in list(found)[:6]:
        colour = cv2.imread(str(path)).mean((0, 1))
        assert (np.abs(picture - colour).max(2) < 60).mean() > 0.02


def test_precision_recall_f1_and_roc_auc_of_each_class_are_in_the_table(checkpoint, command, tmp_path):
    out = tmp_path / "out"
    assert command("classification.test", "--ckpt_path", checkpoint, "--output", out)[0] == 0
    with (out / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(rows[0]) == ["class", "images", "precision", "recall", "f1", "roc_auc"]
    for name in ("precision", "recall", "f1", "roc_auc"):
        assert metrics[f"test/{name}"] == pytest.approx(np.mean([float(row[name]) for row in rows]), abs=1e-5)
    assert metrics["test/balanced_accuracy"] == metrics["test/recall"]
    assert "test/top5" not in metrics  # of three classes


def test_a_file_that_is_not_a_checkpoint_is_refused(failing, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"hello")
    for module in ("classification.validate", "classification.test"):
        assert "not a weights file" in failing(module, "--ckpt_path", path)
    torch.save({"state_dict": {}}, path)
    assert "not a checkpoint of classification.fit" in failing("classification.validate", "--ckpt_path", path)
    assert str(path) in failing("classification.predict", path, "--ckpt_path", path)
