"""The commands as a user types them."""

import csv
import json
import runpy
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.conftest import run_module, write_image_folder

SMALL = ("--model.name", "mobile_former_26m", "--data.image_size", "32", "--data.batch_size", "8")


def fit(*arguments, cwd, **options):
    return run_module("classification.fit", *arguments, cwd=cwd, **options)


def finetune(root, *arguments, cwd):
    return fit("--config", "finetune.yaml", "--data.root", str(root), *SMALL, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def run(image_folder, tmp_path_factory):
    """A finished run of two epochs on the colours: its working directory, folder and output."""
    cwd = tmp_path_factory.mktemp("run")
    result = finetune(image_folder, "--trainer.max_epochs", "2", "--name", "colours", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd, cwd / "runs" / "classification" / "colours", result


@pytest.fixture
def failing(monkeypatch, capsys, tmp_path):
    """Run a command in this process and return its message; the command must end with an error, not a traceback."""

    def call(module, *arguments, status=1):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        assert end.value.code == status
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return output.err

    return call


# What a run leaves


def test_a_run_prints_no_warning_and_a_line_an_epoch(run):
    result = run[2]
    assert result.stderr == ""
    assert "epoch 1/2" in result.stdout
    assert "images/s" in result.stdout


def test_a_runs_folder_holds_what_the_layout_promises(run):
    folder = run[1]
    pictures = {"curves.png", "confusion_matrix.png", "augmented.png", "predictions.png"}
    assert pictures | {"checkpoints", "config.yaml", "metrics.csv", "metrics.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert {"best.ckpt", "last.ckpt", "previous.ckpt"} == {path.name for path in (folder / "checkpoints").iterdir()}
    for picture in pictures:
        assert cv2.imread(str(folder / picture)).std() > 5  # not blank
    assert list((folder / "tensorboard").glob("events*"))


def test_the_final_figures_are_those_of_the_best_checkpoint(run):
    cwd, folder, _ = run
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["val/top1"] <= metrics["val/top5"] <= 1
    assert metrics["seconds"] > 0
    assert metrics["epochs"] == 2
    assert (cwd / metrics["best_checkpoint"]).is_file()
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(float(row["val/top1"]) for row in rows if row["val/top1"])
    assert metrics["val/top1"] == pytest.approx(best, abs=1e-6)
    assert {"train/loss", "val/loss", "train/top1", "val/top5"} <= rows[0].keys()
    assert metrics["images/s"] > 0


def test_the_checkpoint_holds_plain_types_and_what_prediction_needs(run):
    content = torch.load(run[1] / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["hyper_parameters"]["class_names"] == ["blue", "green", "red"]
    assert content["datamodule_hyper_parameters"]["image_size"] == 32


def test_the_resolved_config_repeats_the_run(run):
    cwd, folder, _ = run
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["name"] == "mobile_former_26m"
    assert config["data"]["image_size"] == 32
    again = fit("--config", str(folder / "config.yaml"), "--name", "again", cwd=cwd)
    assert again.returncode == 0, again.stderr
    first, second = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for path in (folder, folder.parent / "again")
    )
    # The same seed, the same weights, bit for bit.
    assert all(torch.equal(first[name], second[name]) for name in first)


# Going on and starting anew


def test_a_taken_name_gets_a_number_and_a_stopped_run_goes_on_in_its_folder(image_folder, tmp_path):
    for expected in ("colours", "colours-2"):
        result = finetune(image_folder, "--name", "colours", "--trainer.max_epochs", "1", cwd=tmp_path)
        assert f"runs/classification/{expected}/" in result.stdout, result.stderr
    result = finetune(
        image_folder, "--name", "colours-2", "--trainer.max_epochs", "2", "--ckpt_path", "last", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "from   runs/classification/colours-2/checkpoints/last.ckpt, step " in result.stdout
    assert "epoch 2/2" in result.stdout
    assert "epoch 1/2" not in result.stdout
    folder = tmp_path / "runs" / "classification"
    assert sorted(path.name for path in folder.iterdir()) == ["colours", "colours-2"]
    with (folder / "colours-2" / "metrics.csv").open() as file:
        epochs = [float(row["epoch"]) for row in csv.DictReader(file) if row["val/top1"]]
    assert epochs == [0, 1]


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_weights_of_one_left_alone_even_if_moved(image_folder, tmp_path):
    options = ("--trainer.max_epochs", "4", "--model.dropout", "0")  # dropout draws from a stream that is not resumed
    whole = finetune(image_folder, "--name", "whole", *options, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    stop = "trainer: {callbacks: [{class_path: tests.classification.explode.StopAtThirdEpoch}]}"
    (tmp_path / "stop.yaml").write_text(stop)
    stopped = finetune(image_folder, "--name", "stopped", *options, "--config", "stop.yaml", cwd=tmp_path)
    assert stopped.returncode != 0
    assert "--name stopped --ckpt_path last" in stopped.stderr
    runs = tmp_path / "runs" / "classification"
    (runs / "stopped").rename(runs / "moved")
    resumed = finetune(image_folder, "--name", "moved", *options, "--ckpt_path", "last", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr == ""
    for file in ("last.ckpt", "best.ckpt"):
        ends = [torch.load(runs / name / "checkpoints" / file, weights_only=True) for name in ("whole", "moved")]
        assert ends[0]["epoch"] == ends[1]["epoch"]
        assert all(torch.equal(ends[0]["state_dict"][name], value) for name, value in ends[1]["state_dict"].items())


def test_going_on_without_a_checkpoint_names_the_runs_that_have_one(run, failing, monkeypatch):
    runs = run[0] / "runs"
    message = failing("classification.fit", "--ckpt_path", "last", "--name", "other", "--runs_folder", runs)
    assert "nothing to go on from" in message
    assert "colours" in message


def test_going_on_with_another_model_is_refused(run, image_folder, failing):
    message = failing(
        "classification.fit", "--config", "finetune.yaml", "--data.root", image_folder, "--model.name",
        "mobile_former_52m", "--name", "colours", "--runs_folder", run[0] / "runs", "--ckpt_path", "last",
    )  # fmt: skip
    assert "mobile_former_26m" in message
    assert "mobile_former_52m" in message


# Scoring and predicting


def test_validate_and_test_need_the_checkpoint_alone(run):
    cwd, folder, _ = run
    checkpoint = str(folder / "checkpoints" / "best.ckpt")
    top1 = json.loads((folder / "metrics.json").read_text())["val/top1"]
    result = run_module("classification.validate", "--ckpt_path", checkpoint, cwd=cwd)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert f"{top1:.4f}" in result.stdout
    result = run_module("classification.test", "--ckpt_path", checkpoint, cwd=cwd)
    assert result.returncode == 0, result.stderr
    assert "green" in result.stdout
    assert json.loads((folder / "test" / "metrics.json").read_text())["test/top1"] == pytest.approx(top1, abs=1e-6)
    with (folder / "test" / "per_class.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["blue", "green", "red"]
    assert sum(float(row["accuracy"]) * int(row["images"]) for row in rows.values()) / 12 == pytest.approx(
        top1, abs=1e-6
    )


def test_a_checkpoint_is_scored_on_other_images_by_the_names_of_its_classes(run, tmp_path):
    # In another folder, with a class fewer: labels must not shift.
    other = write_image_folder(tmp_path / "other", ("green", "red"), train=1, val=3)
    for split in ("train", "val"):  # green and red as they were among three classes
        shutil.rmtree(other / split)
    source = write_image_folder(tmp_path / "source", ("blue", "green", "red"), train=1, val=3)
    for name in ("green", "red"):
        shutil.copytree(source / "val" / name, other / "val" / name)
    checkpoint = str(run[1] / "checkpoints" / "best.ckpt")
    arguments = ("--ckpt_path", checkpoint, "--data.root", str(other), "--output", str(tmp_path / "out"))
    result = run_module("classification.test", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "out" / "per_class.csv").open() as file:
        counts = {row["class"]: int(row["images"]) for row in csv.DictReader(file)}
    assert counts == {"blue": 0, "green": 3, "red": 3}


def test_predict_writes_table_csv_json_and_sheet_for_images_folders_and_globs(run, image_folder, tmp_path):
    checkpoint = str(run[1] / "checkpoints" / "best.ckpt")
    red = image_folder / "val" / "red"
    images = (str(red / "0.jpg"), str(image_folder / "val" / "blue"), str(image_folder / "val" / "g*" / "*.jpg"))
    common = (*images, "--ckpt_path", checkpoint, "--top_k", "2")
    result = run_module(
        "classification.predict", *common, "--output", "new/out.csv", "--sheet", "new/sheet.png", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "0.jpg" in result.stdout
    with (tmp_path / "new" / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 4 + 4
    assert rows[0]["path"] == images[0]
    assert all(float(row["probability"]) >= float(row["probability_2"]) for row in rows)
    assert cv2.imread(str(tmp_path / "new" / "sheet.png")).std() > 5
    result = run_module("classification.predict", *common, "--output", "out.json", cwd=tmp_path)
    predictions = json.loads((tmp_path / "out.json").read_text())
    for row, prediction in zip(rows, predictions, strict=True):
        assert prediction["path"] == row["path"]
        assert prediction["class"] == row["class"] == prediction["top_k"][0]["class"]
        assert prediction["probability"] == pytest.approx(float(row["probability"]), abs=1e-5)
        assert len(prediction["top_k"]) == 2


def test_predict_agrees_with_the_model_called_by_hand(run, image_folder, tmp_path):
    import mobile_former

    checkpoint = run[1] / "checkpoints" / "best.ckpt"
    path = image_folder / "val" / "red" / "1.jpg"
    result = run_module(
        "classification.predict", str(path), "--ckpt_path", str(checkpoint), "--output", "x.json", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    prediction = json.loads((tmp_path / "x.json").read_text())[0]
    model = mobile_former.mobile_former_26m(num_classes=3, pretrained=checkpoint).eval()
    # 64 pixels: the shorter side becomes floor(32 / 0.875) = 36, of which the middle 32 are seen.
    from PIL import Image

    image = np.asarray(Image.open(path).resize((36, 36), Image.Resampling.BILINEAR))[2:34, 2:34] / 255
    image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        probabilities = model(torch.from_numpy(image).permute(2, 0, 1)[None].float()).softmax(1)[0]
    expected = dict(zip(["blue", "green", "red"], probabilities.tolist(), strict=True))
    for top in prediction["top_k"]:
        assert top["probability"] == pytest.approx(expected[top["class"]], abs=2e-2)


def test_predict_goes_on_past_an_unreadable_image_and_ends_with_an_error(run, image_folder, tmp_path):
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    shutil.copy(image_folder / "val" / "red" / "0.jpg", good)
    bad.write_bytes(good.read_bytes()[:400])
    checkpoint = str(run[1] / "checkpoints" / "best.ckpt")
    result = run_module(
        "classification.predict", str(bad), str(good), "--ckpt_path", checkpoint, "--output", "x.csv", cwd=tmp_path
    )
    assert result.returncode == 1
    assert "bad.jpg" in result.stderr
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["error"]
    assert not rows[0]["class"]
    assert rows[1]["class"] in {"blue", "green", "red"}


# Options


def test_help_and_print_config_work_from_anywhere(tmp_path):
    result = fit("--help", cwd=tmp_path)
    assert result.returncode == 0
    for option in ("--model.learning_rate", "--data.root", "--trainer.max_epochs", "--name"):
        assert option in result.stdout
    result = fit("--config", "finetune.yaml", "--print_config", "--data.root", "x", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["data"]["dataset"] == "folder"
    # Nothing of the embedded default is left in another config.
    assert config["data"]["train_transforms"] is None
    assert config["data"]["crop_fraction"] == 0.875


def test_digits_are_the_default_and_a_pipeline_in_yaml_replaces_the_augmentations(tmp_path):
    (tmp_path / "flip.yaml").write_text(
        "data: {train_transforms: [{class_path: albumentations.OneOf, init_args: {transforms: "
        "[{class_path: albumentations.VerticalFlip}, {class_path: albumentations.RandomCrop, "
        "init_args: {height: 48, width: 48}}]}}]}"
    )
    embedded = fit("--print_config", cwd=tmp_path)
    assert yaml.safe_load(embedded.stdout)["data"]["dataset"] == "digits"
    result = fit(
        "--config", "digits.yaml", "--config", "flip.yaml", "--trainer.max_epochs", "1",
        "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    folder = tmp_path / "runs" / "classification" / "mobile_former_26m-digits"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert [step["class_path"] for step in config["data"]["train_transforms"]] == ["albumentations.OneOf"]


@pytest.mark.parametrize("variant", ["26m", "52m", "96m", "151m", "214m", "294m", "508m"])
def test_published_recipes_are_the_documents(variant, tmp_path, monkeypatch, capsys):
    # learning rate, weight decay, dropout, mixup, RandAugment, random erasing
    published = {
        "508m": (1e-3, 0.20, 0.3, 0.2, True, 0.2),
        "294m": (1e-3, 0.20, 0.3, 0.2, True, 0.2),
        "214m": (9e-4, 0.15, 0.2, 0.2, True, 0.2),
        "151m": (9e-4, 0.10, 0.2, 0.2, True, 0.2),
        "96m": (8e-4, 0.10, 0.2, 0.0, True, 0.0),
        "52m": (8e-4, 0.10, 0.2, 0.2, False, 0.0),
        "26m": (8e-4, 0.08, 0.1, 0.2, True, 0.0),
    }[variant]
    monkeypatch.setattr(sys, "argv", ["fit", "--config", f"imagenet_{variant}.yaml", "--print_config"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("classification.fit", run_name="__main__")
    assert end.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    model, data, trainer = config["model"], config["data"], config["trainer"]
    assert model["name"] == f"mobile_former_{variant}"
    recipe = (*(model[key] for key in ("learning_rate", "weight_decay", "dropout", "mixup_alpha")),)
    assert (*recipe, data["rand_augment"], data["random_erasing"]) == published
    assert (model["label_smoothing"], model["warmup_epochs"], model["drop_path"]) == (0.1, 3, 0)
    assert (data["image_size"], data["crop_fraction"], data["crop_scale"]) == (224, 0.875, [0.08, 1.0])
    assert trainer["max_epochs"] == 450
    assert data["batch_size"] * trainer["devices"] == 1024


def test_weights_of_another_number_of_classes_start_a_fine_tuning(image_folder, tmp_path):
    import mobile_former

    mobile_former.save_weights(mobile_former.mobile_former_26m(num_classes=7), tmp_path / "w.safetensors")
    result = finetune(
        image_folder, "--trainer.max_epochs", "1", "--model.pretrained", "w.safetensors",
        "--model.checkpoint_gradients", "true", "--model.freeze_backbone", "true", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "7 classes, the model 3" in result.stderr


# Bad input


def test_options_that_do_not_exist_are_told_with_the_nearest(failing):
    assert "did you mean '--trainer.max_epochs'" in failing("classification.fit", "--trainer.max_epoch", 3, status=2)
    assert "--trainer.max_epochs" in failing("classification.fit", "--max_epochs", 3, status=2)
    assert "--ckpt_path" in failing("classification.validate", "--ckpt", "x", status=2)
    assert "--model.learning_rate" in failing("classification.fit", "--model.lr", 3, status=2)


def test_a_config_key_that_does_not_exist_is_told_with_the_nearest(failing, tmp_path):
    (tmp_path / "bad.yaml").write_text("model: {learning_rat: 1}")
    assert "--model.learning_rate" in failing("classification.fit", "--config", tmp_path / "bad.yaml", status=2)
    (tmp_path / "broken.yaml").write_text("model: [")
    assert "config" in failing("classification.fit", "--config", tmp_path / "broken.yaml", status=2)


def test_a_config_that_does_not_exist_is_told_with_the_nearest(failing):
    assert "finetune.yaml" in failing("classification.fit", "--config", "finetun.yaml")


def test_a_model_that_does_not_exist_is_told_with_the_nearest(failing):
    assert "mobile_former_26m" in failing("classification.fit", "--model.name", "mobile_former_25m")


def test_a_folder_without_a_config_names_finetune(failing, image_folder):
    for argument in (("--data.root", image_folder), (f"--data.root={image_folder}",)):
        assert "finetune.yaml" in failing("classification.fit", *argument)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: shutil.rmtree(root), "no folder"),
        (lambda root: shutil.rmtree(root / "val"), "'val'"),
        (lambda root: [shutil.rmtree(p) for p in (root / "train").iterdir()], "no class folders"),
        (lambda root: [p.unlink() for p in (root / "train" / "a").iterdir()], "holds no images"),
        (lambda root: shutil.copytree(root / "val" / "a", root / "val" / "zebra"), "zebra"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_told_what_it_lacks(make, expected, failing, tmp_path):
    root = write_image_folder(tmp_path / "data", ("a", "b"), train=2, val=1)
    make(root)
    message = failing("classification.fit", "--config", "finetune.yaml", "--data.root", root, *SMALL)
    assert expected in message
    assert str(root) in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--data.image_size", "16"), "32 pixels"),
        (("--data.image_size", "abc"), "image_size"),
        (("--data.batch_size", "0"), "batch_size"),
        (("--model.label_smoothing", "1"), "label_smoothing"),
        (("--name", "a/b"), "one folder"),
        (("--model.learning_rate", "-1"), "learning_rate"),
        (("--model.warmup_epochs", "-1"), "warmup_epochs"),
        (("--data.num_workers", "-1"), "num_workers"),
        (("--data.crop_scale", "[2,1]"), "crop_scale"),
        (("--data.flip", "2"), "flip"),
        (("--data.std", "[0,0,0]"), "std"),
        (("--trainer.limit_train_batches", "0"), "limit_train_batches"),
        (("--trainer.max_epochs", "-3"), "max_epochs"),
        (("--trainer.max_epochs", "0"), "max_epochs"),
        (("--trainer.accelerator", "abacus"), "abacus"),
        (("--runs_folder", __file__), "test_commands.py"),
        (("--ckpt_path", "nowhere.ckpt"), "nowhere.ckpt"),
        (("--model.pretrained", "nowhere.pth"), "nowhere.pth"),
        (("--data.train_transforms=[{class_path: albumentations.HorizontalFlop}]",), "HorizontalFlop"),
        (("--data.train_transforms=[{class_path: albumentations.Affine, init_args: {rotat: 3}}]",), "rotat"),
        (("--data.train_transforms=[{class_path: albumentations.Affine, init_args: {p: 3}}]",), "p"),
        (("--data.train_transforms=[{class_path: albumentations.ToFloat}]",), "leave Normalize"),
    ],
)
def test_values_that_cannot_be_used_are_named(arguments, expected, failing):
    status = 2 if any(word in str(arguments) for word in ("abc", "Flop", "rotat:")) else 1
    assert expected in failing("classification.fit", *arguments, status=status)


def test_weights_of_another_variant_name_the_variant(failing, tmp_path):
    import mobile_former

    mobile_former.save_weights(mobile_former.mobile_former_52m(), tmp_path / "w.safetensors")
    message = failing("classification.fit", "--model.pretrained", tmp_path / "w.safetensors")
    assert "mobile_former_52m" in message


def test_a_corrupt_training_image_is_left_out_told_once_and_counted(image_folder, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(image_folder, root)
    bad = root / "train" / "red" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    result = finetune(root, "--trainer.max_epochs", "3", "--name", "x", "--data.num_workers", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(str(bad)) == 1
    metrics = json.loads((tmp_path / "runs" / "classification" / "x" / "metrics.json").read_text())
    assert metrics["skipped_images"] == 1


def test_a_corrupt_validation_image_stops_the_run_with_its_name(image_folder, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(image_folder, root)
    bad = root / "val" / "red" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:500])
    result = finetune(root, "--trainer.max_epochs", "1", cwd=tmp_path)
    assert result.returncode == 1
    assert str(bad) in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "runs" / "classification").iterdir())  # nothing was trained, so no name is taken


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint_of_before(image_folder, tmp_path):
    (tmp_path / "explode.yaml").write_text("trainer: {callbacks: [{class_path: tests.classification.explode.Explode}]}")
    result = finetune(image_folder, "--config", "explode.yaml", "--name", "x", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "step 3 " in result.stderr
    kept = tmp_path / "runs" / "classification" / "x" / "checkpoints" / "last.ckpt"
    assert str(kept.relative_to(tmp_path)) in result.stderr
    content = torch.load(kept, weights_only=True)
    assert content["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in content["state_dict"].values())


def test_a_checkpoint_that_is_none_is_told_as_such(failing, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"hello")
    for module in ("classification.validate", "classification.test"):
        assert "not a weights file" in failing(module, "--ckpt_path", path)
    torch.save({"state_dict": {}}, path)
    assert "no checkpoint of classification.fit" in failing("classification.validate", "--ckpt_path", path)
    assert str(path) in failing("classification.predict", path, "--ckpt_path", path)


def test_predict_refuses_what_it_cannot_find_or_write(failing, tmp_path):
    assert "nowhere" in failing("classification.predict", "nowhere/*.jpg", "--ckpt_path", "x")
    assert ".csv or .json" in failing("classification.predict", "x", "--ckpt_path", "x", "--output", "x.txt")
    (tmp_path / "empty").mkdir()
    assert "no images" in failing("classification.predict", tmp_path / "empty", "--ckpt_path", "x")
    image = tmp_path / "x.png"
    image.touch()
    for output in (tmp_path / "folder.csv", image / "out.csv"):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        assert str(output) in failing("classification.predict", image, "--ckpt_path", "x", "--output", output)
