"""Classifying image files with a checkpoint."""

import csv
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import mobile_former
from classification.predict import load_classifier, predict
from tests.mobile_former.training.prediction.test_video import read_frames, write_video
from tests.test_start import TRAINING, run


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


def test_predict_loads_no_library_of_training(checkpoint, image_folder, tmp_path):
    image = image_folder / "val" / "red" / "0.jpg"
    status, loaded, output = run("classification.predict", image, "--ckpt_path", checkpoint, cwd=tmp_path)
    assert status == 0, output
    assert "torch" in loaded
    assert not loaded & (TRAINING | {"torch._dynamo"})


def test_the_inference_form_has_the_probabilities_of_the_model(checkpoint, image_folder):
    paths = sorted((image_folder / "val").rglob("*.jpg"))
    plain, fast = (predict(load_classifier(checkpoint, inference_form=form), paths, top_k=3) for form in (False, True))
    for expected, found in zip(plain, fast, strict=True):
        assert found["class"] == expected["class"]
        values = [{top["class"]: top["probability"] for top in each["top_k"]} for each in (found, expected)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_more_than_twenty_images_give_a_summary_unless_rows_are_wanted(checkpoint, command, image_folder, tmp_path):
    for number in range(21):
        shutil.copy(image_folder / "val" / "red" / "0.jpg", tmp_path / f"{number}.jpg")
    common = ("classification.predict", "*.jpg", "--ckpt_path", checkpoint)
    _, output, _ = command(*common)
    assert "20.jpg" not in output
    assert re.search(r"(red|blue|green)\W+21\W", output)
    assert "21 images in" in output
    assert "images a second" in output
    _, output, _ = command(*common, "--verbose")
    assert "20.jpg" in output
    status, output, errors = command(*common, "--quiet", "--output", "x.json")
    assert (status, output, errors) == (0, "", "")
    assert len(json.loads((tmp_path / "x.json").read_text())) == 21


def test_the_frames_of_a_video_are_classified_and_drawn(checkpoint, command, image_folder, tmp_path):
    write_video(tmp_path / "clip.mp4", [cv2.imread(str(image_folder / "val" / "red" / "0.jpg"))] * 7, rate=10)
    status, output, errors = command(
        "classification.predict", "clip.mp4", "--ckpt_path", checkpoint, "--output", "x.json", "--drawings", "drawn",
        "--batch_size", "3",
    )  # fmt: skip
    assert status == 0, errors
    predictions = json.loads((tmp_path / "x.json").read_text())
    assert [each["frame"] for each in predictions] == list(range(7))
    assert [each["seconds"] for each in predictions] == pytest.approx([0.1 * number for number in range(7)])
    assert {each["path"] for each in predictions} == {"clip.mp4"}
    frames = read_frames(tmp_path / "drawn" / "clip.mp4")
    assert len(frames) == 7
    assert frames[0].shape[0] > 64  # the classes are below the image
    assert "1 drawing in drawn/" in output
    status, _, errors = command("classification.predict", "clip.mp4", "--ckpt_path", checkpoint, "--output", "x.csv")
    assert status == 0, errors
    with (tmp_path / "x.csv").open() as file:
        assert [row["frame"] for row in csv.DictReader(file)] == list(map(str, range(7)))
