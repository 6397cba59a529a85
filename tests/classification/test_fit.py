"""Training runs from the command line."""

import csv
import json
import shutil

import cv2
import pytest
import torch
import yaml
from pytorch_lightning import Callback

from classification.module import ClassificationModule
from mobile_former.ablation import AttentionAlone
from mobile_former.training.run.checkpoint import load_checkpoint
from tests.conftest import run_module, write_image_folder

SMALL = ("--model.name", "mobile_former_26m", "--data.image_size", "32", "--data.batch_size", "8")


def fit(*arguments, cwd, **options):
    return run_module("classification.fit", *arguments, cwd=cwd, **options)


def finetune(root, *arguments, cwd):
    return fit("--config", "finetune.yaml", "--data.root", str(root), *SMALL, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def run(image_folder, tmp_path_factory):
    """Train two epochs on the colours; return the working directory, the folder of the run and the process."""
    cwd = tmp_path_factory.mktemp("run")
    result = finetune(image_folder, "--trainer.max_epochs", "2", "--name", "colours", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd, cwd / "runs" / "classification" / "colours", result


# Results of a run


def test_a_run_prints_no_warning_and_one_line_per_epoch(run):
    result = run[2]
    assert result.stderr == ""
    assert "epoch 1/2" in result.stdout
    assert "images/s" in result.stdout


def test_the_folder_of_a_run_contains_the_documented_files(run):
    folder = run[1]
    pictures = {"curves.png", "confusion_matrix.png", "augmented.png", "predictions.png"}
    assert pictures | {"checkpoints", "config.yaml", "metrics.csv", "metrics.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert {"best.ckpt", "last.ckpt", "previous.ckpt"} == {path.name for path in (folder / "checkpoints").iterdir()}
    for picture in pictures:
        assert cv2.imread(str(folder / picture)).std() > 5  # not blank
    assert list((folder / "tensorboard").glob("events*"))


def test_the_final_scores_are_those_of_the_best_checkpoint(run):
    cwd, folder, _ = run
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["val/top1"] <= 1
    assert "val/top5" not in metrics  # of three classes
    assert metrics["seconds"] > 0
    assert metrics["epochs"] == 2
    assert (cwd / metrics["best_checkpoint"]).is_file()
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(float(row["val/top1"]) for row in rows if row["val/top1"])
    assert metrics["val/top1"] == pytest.approx(best, abs=1e-6)
    assert {"train/loss", "val/loss", "train/top1", "train/cross_entropy"} <= rows[0].keys()
    assert metrics["images/s"] > 0


def test_the_checkpoint_contains_plain_types_and_the_options_for_prediction(run):
    content = torch.load(run[1] / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["hyper_parameters"]["class_names"] == ["blue", "green", "red"]
    assert content["datamodule_hyper_parameters"]["image_size"] == 32


def test_the_saved_config_repeats_the_run(run):
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
    # The same seed gives bitwise equal weights.
    assert all(torch.equal(first[name], second[name]) for name in first)


# Names and resuming


def test_a_taken_name_gets_a_number_and_a_stopped_run_resumes_in_its_folder(image_folder, tmp_path):
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
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one_even_if_moved(image_folder, tmp_path):
    options = ("--trainer.max_epochs", "4", "--model.dropout", "0")  # the random state of dropout is not resumed
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


def test_a_resumed_run_follows_its_own_options(image_folder, tmp_path):
    options = ("--name", "x", "--trainer.log_every_n_steps", "1")
    finetune(image_folder, *options, "--trainer.max_epochs", "1", cwd=tmp_path)
    changed = ("--data.batch_size", "4", "--model.learning_rate", "2e-5", "--model.weight_decay", "0")
    result = finetune(
        image_folder, *options, *changed, "--trainer.max_epochs", "3", "--ckpt_path", "last", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert "batch_size 4 (was 8), learning_rate 2e-05 (was " in result.stdout
    folder = tmp_path / "runs" / "classification" / "x"
    with (folder / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"] and float(row["epoch"]) >= 1]
    assert max(rates) <= 2e-5
    assert min(rates) > 0
    groups = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]


def test_resuming_without_a_checkpoint_names_the_runs_that_have_one(run, failing):
    runs = run[0] / "runs"
    message = failing("classification.fit", "--ckpt_path", "last", "--name", "other", "--runs_folder", runs)
    assert "no checkpoint to resume from" in message
    assert "colours" in message


def test_resuming_with_another_model_is_refused(run, image_folder, failing):
    message = failing(
        "classification.fit", "--config", "finetune.yaml", "--data.root", image_folder, "--model.name",
        "mobile_former_52m", "--name", "colours", "--runs_folder", run[0] / "runs", "--ckpt_path", "last",
    )  # fmt: skip
    assert "mobile_former_26m" in message
    assert "mobile_former_52m" in message


# Callbacks of Lightning


def test_early_stopping_profiler_summary_and_rates_are_reported(image_folder, tmp_path):
    result = finetune(
        image_folder, "--name", "x", "--trainer.max_epochs", "5", "--trainer.log_every_n_steps", "1",
        "--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val/top1", "--trainer.callbacks.mode",
        "max", "--trainer.callbacks.min_delta", "2", "--trainer.callbacks.patience", "1",
        "--trainer.callbacks+", "LearningRateMonitor", "--trainer.profiler", "simple",
        "--trainer.enable_model_summary", "true", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "epoch 2/5" in result.stdout
    assert "epoch 3/5" not in result.stdout
    ended = "ended  EarlyStopping: Monitored metric val/top1 did not improve in the last 1 records. Best score: "
    assert result.stdout.count(ended) == 1
    assert "Signaling" not in result.stdout
    assert result.stderr.count("Profiler Report") == 1  # of the training, not of the final scores
    assert "optimizer_step" in result.stderr
    assert "Total params" in result.stdout
    with (tmp_path / "runs" / "classification" / "x" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["lr/model"]]
    assert len(rows) == 6
    assert all(row["lr/model"] == row["lr/model_no_decay"] for row in rows)


def test_a_time_limit_is_named_as_the_reason(image_folder, tmp_path):
    result = finetune(image_folder, "--trainer.max_epochs", "500", "--trainer.max_time", "00:00:00:02", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "ended  --trainer.max_time: the time is over" in result.stdout


# Scoring


def test_validate_and_test_need_only_the_checkpoint_and_repeat_its_score(run):
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
    assert sum(float(row["recall"]) * int(row["images"]) for row in rows.values()) / 12 == pytest.approx(top1, abs=1e-6)


# Options


def test_help_and_print_config_work_from_anywhere(tmp_path):
    result = fit("--help", cwd=tmp_path)
    assert result.returncode == 0
    for option in ("--model.learning_rate", "--data.root", "--name", "--help.trainer"):
        assert option in result.stdout
    result = fit("--config", "finetune.yaml", "--print_config", "--data.root", "x", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["data"]["dataset"] == "folder"
    # Another config replaces the embedded default completely.
    assert config["data"]["train_transforms"] is None
    assert config["data"]["crop_fraction"] == 0.875


def test_digits_are_the_default_and_transforms_in_yaml_replace_the_augmentation(tmp_path):
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
def test_the_configs_are_the_published_recipes(variant, command):
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
    status, output, _ = command("classification.fit", "--config", f"imagenet_{variant}.yaml", "--print_config")
    assert status == 0
    config = yaml.safe_load(output)
    model, data, trainer = config["model"], config["data"], config["trainer"]
    assert model["name"] == f"mobile_former_{variant}"
    recipe = (*(model[key] for key in ("learning_rate", "weight_decay", "dropout", "mixup_alpha")),)
    assert (*recipe, data["rand_augment"], data["random_erasing"]) == published
    assert (model["label_smoothing"], model["warmup_epochs"], model["drop_path"]) == (0.1, 3, 0)
    assert (data["image_size"], data["crop_fraction"], data["crop_scale"]) == (224, 0.875, [0.08, 1.0])
    assert trainer["max_epochs"] == 450
    assert data["batch_size"] * trainer["devices"] == 1024


def test_weights_with_another_number_of_classes_are_fine_tuned(image_folder, tmp_path):
    import mobile_former

    mobile_former.save_weights(mobile_former.mobile_former_26m(num_classes=7), tmp_path / "w.safetensors")
    result = finetune(
        image_folder, "--trainer.max_epochs", "1", "--model.pretrained", "w.safetensors",
        "--model.checkpoint_gradients", "true", "--model.freeze_backbone", "true", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "7 classes, the model 3" in result.stderr


# Ablations


@pytest.mark.slow
def test_an_ablated_classifier_is_trained_scored_exported_and_predicts(image_folder, tmp_path):
    options = ("--model.name", "mobile_former_26m", "--model.ablation", "no_ffn", "--data.image_size", "32")
    short = ("--data.batch_size", "4", "--trainer.max_epochs", "1", "--data.num_workers", "0")
    data = ("--config", "finetune.yaml", "--data.root", str(image_folder))
    result = run_module("classification.fit", *data, *options, *short, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    checkpoint = tmp_path / "runs/classification/mobile_former_26m-no_ffn-colours/checkpoints/best.ckpt"
    module, _ = load_checkpoint(checkpoint, ClassificationModule, "classification")
    assert any(isinstance(part, AttentionAlone) for part in module.modules())
    other = (*options[:3], "relu", *options[4:], "--name", "mobile_former_26m-no_ffn-colours", "--ckpt_path", "last")
    result = run_module("classification.fit", *data, *other, *short, cwd=tmp_path)
    assert result.returncode == 1
    assert "was trained with ablation no_ffn, but this run has relu" in result.stderr
    for command in (
        ("classification.validate", "--ckpt_path", str(checkpoint)),
        ("classification.predict", str(image_folder / "val"), "--ckpt_path", str(checkpoint)),
        ("classification.export", "--ckpt_path", str(checkpoint), "--output", "ablated.onnx", "--check_images", "4"),
    ):
        result = run_module(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr


# Invalid input


def test_unknown_options_are_reported_with_the_nearest_one(failing):
    assert "did you mean '--trainer.max_epochs'" in failing("classification.fit", "--trainer.max_epoch", 3, status=2)
    assert "--trainer.max_epochs" in failing("classification.fit", "--max_epochs", 3, status=2)
    assert "--ckpt_path" in failing("classification.validate", "--ckpt", "x", status=2)
    assert "--model.learning_rate" in failing("classification.fit", "--model.lr", 3, status=2)


def test_an_unknown_key_of_a_config_is_reported_with_the_nearest_one(failing, tmp_path):
    (tmp_path / "bad.yaml").write_text("model: {learning_rat: 1}")
    assert "--model.learning_rate" in failing("classification.fit", "--config", tmp_path / "bad.yaml", status=2)
    (tmp_path / "broken.yaml").write_text("model: [")
    assert "config" in failing("classification.fit", "--config", tmp_path / "broken.yaml", status=2)


def test_an_unknown_config_is_reported_with_the_nearest_one(failing):
    assert "finetune.yaml" in failing("classification.fit", "--config", "finetun.yaml")


def test_an_unknown_model_is_reported_with_the_nearest_one(failing):
    assert "mobile_former_26m" in failing("classification.fit", "--model.name", "mobile_former_25m")


def test_a_folder_without_a_config_is_trained_on_with_the_config_for_fine_tuning(image_folder, tmp_path):
    for argument in (("--data.root", str(image_folder)), (f"--data.root={image_folder}",)):
        result = run_module("classification.fit", *argument, "--print_config", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert yaml.safe_load(result.stdout)["data"]["dataset"] == "folder"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: shutil.rmtree(root), "does not exist"),
        (lambda root: [shutil.rmtree(p) for p in (root / "train").iterdir()], "no class folders"),
        (lambda root: [p.unlink() for p in (root / "train").rglob("*.jpg")], "contains no images"),
        (lambda root: shutil.copytree(root / "val" / "a", root / "val" / "zebra"), "zebra"),
    ],
)
def test_missing_parts_of_an_image_folder_are_named(make, expected, failing, tmp_path):
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
        (("--runs_folder", __file__), "test_fit.py"),
        (
            ("--ckpt_path", "nowhere.ckpt"),
            "--ckpt_path nowhere.ckpt: no such file. Give a checkpoint of a run, or 'last'",
        ),
        (("--model.pretrained", "nowhere.pth"), "nowhere.pth"),
        (("--data.train_transforms=[{class_path: albumentations.HorizontalFlop}]",), "HorizontalFlop"),
        (("--data.train_transforms=[{class_path: albumentations.Affine, init_args: {rotat: 3}}]",), "rotat"),
        (("--data.train_transforms=[{class_path: albumentations.Affine, init_args: {p: 3}}]",), "p"),
        (("--data.train_transforms=[{class_path: albumentations.ToFloat}]",), "leave out Normalize"),
    ],
)
def test_invalid_values_are_named(arguments, expected, failing):
    status = 2 if any(word in str(arguments) for word in ("abc", "Flop", "rotat:")) else 1
    assert expected in failing("classification.fit", *arguments, status=status)


def test_weights_of_another_variant_name_the_variant(failing, tmp_path):
    import mobile_former

    mobile_former.save_weights(mobile_former.mobile_former_52m(), tmp_path / "w.safetensors")
    message = failing("classification.fit", "--model.pretrained", tmp_path / "w.safetensors")
    assert "mobile_former_52m" in message


def test_a_corrupt_training_image_is_skipped_reported_once_and_counted(image_folder, tmp_path):
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
    assert not list((tmp_path / "runs" / "classification").iterdir())  # nothing was trained, so the name stays free


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("val_check_interval", "1000", "training cannot begin with these options: `val_check_interval` (1000) must be"),
        ("profiler", "nope", "`profiler`"),
    ],
)
def test_an_option_that_lightning_refuses_is_one_line_and_leaves_no_folder(
    image_folder, tmp_path, option, value, message
):
    result = finetune(image_folder, f"--trainer.{option}", value, cwd=tmp_path)
    assert result.returncode == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in error
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "runs" / "classification").iterdir())


class Faulty(Callback):
    """A callback of a user, with a mistake that torch reports in the validation before training."""

    def on_validation_batch_start(self, trainer, pl_module, *_):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_a_mistake_in_the_code_of_a_user_keeps_its_traceback(image_folder, tmp_path):
    result = finetune(image_folder, "--trainer.callbacks+", "tests.classification.test_fit.Faulty", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "on_validation_batch_start" in result.stderr


def test_an_infinite_loss_stops_the_run_and_keeps_the_previous_checkpoint(image_folder, tmp_path):
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


@pytest.mark.slow
def test_held_out_images_stay_the_same_when_a_run_is_resumed_and_scored(image_folder, tmp_path):
    root = shutil.copytree(image_folder / "train", tmp_path / "classes")
    options = ("--data.root", str(root), *SMALL, "--name", "one")
    first = run_module("classification.fit", *options, "--trainer.max_epochs", "1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "layout one folder of classes\nsplit  " in first.stdout
    folder = tmp_path / "runs" / "classification" / "one"
    split = json.loads((folder / "split.json").read_text())
    assert len(split["train"]) + len(split["val"]) == 24
    more = ("--trainer.max_epochs", "2", "--ckpt_path", "last", "--seed_everything", "7")
    resumed = run_module("classification.fit", *options, *more, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{len(split['val'])} validation images: as in runs/" in resumed.stdout
    assert json.loads((folder / "split.json").read_text()) == split
    moved = shutil.copytree(root, tmp_path / "elsewhere" / "classes")
    other = shutil.copytree(image_folder / "val", tmp_path / "other")
    checkpoint = ("--ckpt_path", str(folder / "checkpoints" / "best.ckpt"))
    for arguments, count in (
        ((), len(split["val"])), (("--data.root", str(moved)), len(split["val"])), (("--data.root", str(other)), 12)
    ):  # fmt: skip
        result = run_module("classification.validate", *checkpoint, *arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f": {count} images" in result.stdout
