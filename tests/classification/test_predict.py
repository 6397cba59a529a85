"""Classifying image files with a checkpoint."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import mobile_former


def test_predict_writes_table_csv_json_and_sheet_for_images_folders_and_globs(
    checkpoint, command, image_folder, tmp_path
):
    red = image_folder / "val" / "red"
    images = (str(red / "0.jpg"), str(image_folder / "val" / "blue"), str(image_folder / "val" / "g*" / "*.jpg"))
    common = ("classification.predict", *images, "--ckpt_path", checkpoint, "--top_k", "2")
    status, output, errors = command(*common, "--output", "new/out.csv", "--sheet", "new/sheet.png")
    assert status == 0, errors
    assert "0.jpg" in output
    with (tmp_path / "new" / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 4 + 4
    assert rows[0]["path"] == images[0]
    assert all(float(row["probability"]) >= float(row["probability_2"]) for row in rows)
    assert cv2.imread(str(tmp_path / "new" / "sheet.png")).std() > 5
    assert command(*common, "--output", "out.json")[0] == 0
    predictions = json.loads((tmp_path / "out.json").read_text())
    for row, prediction in zip(rows, predictions, strict=True):
        assert prediction["path"] == row["path"]
        assert prediction["class"] == row["class"] == prediction["top_k"][0]["class"]
        assert prediction["probability"] == pytest.approx(float(row["probability"]), abs=1e-5)
        assert len(prediction["top_k"]) == 2


def test_predict_agrees_with_a_direct_call_of_the_model(checkpoint, command, image_folder, tmp_path):
    path = image_folder / "val" / "red" / "1.jpg"
    status, _, errors = command("classification.predict", path, "--ckpt_path", checkpoint, "--output", "x.json")
    assert status == 0, errors
    prediction = json.loads((tmp_path / "x.json").read_text())[0]
    model = mobile_former.mobile_former_26m(num_classes=3, pretrained=checkpoint).eval()
    # The image has 64 pixels. The shorter side becomes floor(64 / 0.875) = 73, whose middle 64 are cropped.
    image = np.asarray(Image.open(path).resize((73, 73), Image.Resampling.BILINEAR))[4:68, 4:68] / 255
    image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        probabilities = model(torch.from_numpy(image).permute(2, 0, 1)[None].float()).softmax(1)[0]
    expected = dict(zip(["blue", "green", "red"], probabilities.tolist(), strict=True))
    for top in prediction["top_k"]:
        assert top["probability"] == pytest.approx(expected[top["class"]], abs=2e-2)


def test_predict_continues_after_an_unreadable_image_and_ends_with_an_error(
    checkpoint, command, image_folder, tmp_path
):
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    shutil.copy(image_folder / "val" / "red" / "0.jpg", good)
    bad.write_bytes(good.read_bytes()[:400])
    status, _, errors = command("classification.predict", bad, good, "--ckpt_path", checkpoint, "--output", "x.csv")
    assert status == 1
    assert "bad.jpg" in errors
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["error"]
    assert not rows[0]["class"]
    assert rows[1]["class"] in {"blue", "green", "red"}


def test_predict_refuses_missing_images_and_unwritable_outputs(failing, tmp_path):
    assert "nowhere" in failing("classification.predict", "nowhere/*.jpg", "--ckpt_path", "x")
    assert ".csv or .json" in failing("classification.predict", "x", "--ckpt_path", "x", "--output", "x.txt")
    (tmp_path / "empty").mkdir()
    assert "no images" in failing("classification.predict", tmp_path / "empty", "--ckpt_path", "x")
    image = tmp_path / "x.png"
    image.touch()
    for output in (tmp_path / "folder.csv", image / "out.csv"):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        assert str(output) in failing("classification.predict", image, "--ckpt_path", "x", "--output", output)


def test_predict_takes_either_a_checkpoint_or_an_onnx_file(failing, checkpoint, image_folder, tmp_path):
    for arguments in ((), ("--ckpt_path", checkpoint, "--onnx", "x.onnx")):
        assert "either --ckpt_path" in failing("classification.predict", image_folder, *arguments)
    for content in (b"", b"no ONNX"):
        (tmp_path / "x.onnx").write_bytes(content)
        message = failing("classification.predict", image_folder, "--onnx", "x.onnx")
        assert "x.onnx is damaged or not an ONNX file" in message
