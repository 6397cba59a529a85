"""The commands as a user types them."""

import csv
import io
import json
import shutil
from collections import Counter
from contextlib import redirect_stdout

import cv2
import numpy as np
import pytest
import torch
import yaml
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.evaluation import NUMBERS
from tests.conftest import run_module
from tests.detection.conftest import CATEGORIES, write_shapes

SMALL = (
    "--model.name", "e2e_mf_26m", "--data.short_sides", "[64]", "--data.short_side", "64", "--data.longest", "128",
    "--data.crop", "0", "--data.batch_size", "2", "--data.num_workers", "0",
)  # fmt: skip


def finetune(root, *arguments):
    return ("--config", "finetune.yaml", "--data.root", root, *SMALL, *arguments)


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    """A finished run of three epochs on the shapes, from weights too poor to detect well: its folder and output."""
    cwd = tmp_path_factory.mktemp("run")
    arguments = map(str, finetune(shapes, "--trainer.max_epochs", "3", "--name", "shapes"))
    result = run_module("detection.fit", *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd / "runs" / "detection" / "shapes", result


@pytest.fixture(scope="module")
def best(run):
    return run[0] / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A checkpoint of a classifier, as ``classification.fit`` writes it."""
    cwd = tmp_path_factory.mktemp("classifier")
    result = run_module(
        "classification.fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1",
        "--trainer.limit_val_batches", "1", "--name", "digits", "--data.image_size", "32", cwd=cwd,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return cwd / "runs" / "classification" / "digits" / "checkpoints" / "last.ckpt"


@pytest.fixture
def failing(call):
    """Run a command that must end with an error, not a traceback, and return its message."""

    def fail(module, *arguments, status=1):
        result = call(module, *arguments)
        assert result.status == status, result.out + result.err
        assert "Traceback" not in result.err
        assert "error: " in result.err
        return result.err

    return fail


@pytest.fixture
def working(call):
    """Run a command that must end well, and return what it tells."""

    def work(module, *arguments):
        result = call(module, *arguments)
        assert result.status == 0, result.err
        return result

    return work


@pytest.fixture
def folder(shapes, tmp_path):
    """A copy of the shapes, to damage."""
    return shutil.copytree(shapes, tmp_path / "mine")


def change(folder, split, edit):
    """Edit the content of an annotation file."""
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def by_pycocotools(annotations, results):
    """The twelve numbers that pycocotools computes from a results file."""
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NUMBERS, evaluation.stats.tolist(), strict=True))


def scores(path):
    """The twelve numbers in an ``ap.json``."""
    content = json.loads(path.read_text())
    return {name: content[name] for name in NUMBERS}


# What a run leaves


def test_without_a_config_a_run_trains_on_the_embedded_scenes(tmp_path):
    result = run_module(
        "detection.fit", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1",
        "--trainer.max_epochs", "1", "--model.name", "e2e_mf_26m", "--data.batch_size", "4", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    folder = tmp_path / "runs" / "detection" / "e2e_mf_26m-scenes"
    assert set(json.loads((folder / "ap.json").read_text())["per_class"]) == set("0123456789")
    assert "4000 training images" in result.stdout
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert type(config["trainer"]["limit_val_batches"]) is int, "1.0 would be all batches"


def test_a_run_prints_no_warning_and_tells_terms_of_the_loss_and_ap(run):
    result = run[1]
    assert result.stderr == ""
    for epoch in (1, 2, 3):
        (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"epoch {epoch}/3"))
        for figure in ("loss ", "loss_ce ", "loss_bbox ", "loss_giou ", "val/loss ", "val/AP ", "images/s"):
            assert figure in line
    assert "6 training images with 12 objects and 3 validation images, of 2 classes" in result.stdout
    assert "AP by class" in result.stdout
    assert "disc" in result.stdout


def test_a_runs_folder_holds_what_the_layout_promises(run):
    folder = run[0]
    pictures = {"curves.png", "augmented.png", "predictions.png"}
    files = {"checkpoints", "config.yaml", "metrics.csv", "metrics.json", "ap.json"}
    assert pictures | files <= {path.name for path in folder.iterdir()}
    assert {"best.ckpt", "last.ckpt", "previous.ckpt"} == {path.name for path in (folder / "checkpoints").iterdir()}
    for picture in pictures:
        assert cv2.imread(str(folder / picture)).std() > 5  # not blank
    ap = json.loads((folder / "ap.json").read_text())
    assert set(ap) == {*NUMBERS, "per_class"}
    assert set(ap["per_class"]) == {"bar", "disc"}
    assert ap["AP"] == pytest.approx(np.mean(list(ap["per_class"].values())))


def test_the_final_figures_are_those_of_the_best_checkpoint(run):
    folder = run[0]
    metrics = json.loads((folder / "metrics.json").read_text())
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    validated = [row for row in rows if row["val/AP"]]
    assert len(validated) == 3
    top = max(validated, key=lambda row: float(row["val/AP"]))
    assert metrics["best_epoch"] == float(top["epoch"]) + 1
    ap = scores(folder / "ap.json")
    for name in NUMBERS:
        assert metrics[f"val/{name}"] == pytest.approx(float(top[f"val/{name}"]), abs=1e-5)
        assert metrics[f"val/{name}"] == pytest.approx(ap[name], abs=1e-6)
    assert metrics["val/loss"] == pytest.approx(float(top["val/loss"]), rel=1e-4)
    assert metrics["epochs"] == 3
    assert metrics["skipped_images"] == 0
    assert metrics["seconds"] > 0
    assert {"train/loss", "train/loss_ce", "train/loss_bbox", "train/loss_giou", "val/AP50"} <= rows[0].keys()
    terms = [float(row["train/loss_bbox"]) for row in rows if row["train/loss_bbox"]]
    assert len(terms) == 3
    assert terms[-1] < terms[0]


def test_the_checkpoint_holds_plain_types_and_what_prediction_needs(best):
    content = torch.load(best, weights_only=True)
    assert content["hyper_parameters"]["class_names"] == ["bar", "disc"]
    data = content["datamodule_hyper_parameters"]
    assert (data["short_side"], data["longest"], data["dataset"]) == (64, 128, "coco")
    assert data["mean"] == [0.485, 0.456, 0.406]


# Going on and starting anew


def test_a_stopped_run_ends_with_the_weights_of_one_left_alone(run, shapes, call, working, tmp_path):
    options = finetune(shapes, "--trainer.max_epochs", "3", "--name", "stopped")
    stop = "trainer: {callbacks: [{class_path: tests.classification.explode.StopAtThirdEpoch}]}"
    (tmp_path / "stop.yaml").write_text(stop)
    stopped = call("detection.fit", *options, "--config", "stop.yaml")
    assert stopped.status != 0
    assert "--name stopped --ckpt_path last" in stopped.err
    folder = tmp_path / "runs" / "detection" / "stopped"
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    resumed = working("detection.fit", *options, "--ckpt_path", "last")
    assert "epoch 3/3" in resumed.out
    assert "epoch 2/3" not in resumed.out
    assert [path.name for path in folder.parent.iterdir()] == ["stopped"]
    with (folder / "metrics.csv").open() as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file) if row["val/AP"]] == [0, 1, 2]
    whole, again = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (run[0], folder)
    )
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


def test_going_on_with_other_classes_or_another_detector_is_refused(run, shapes, failing, folder):
    resume = ("--name", "shapes", "--runs_folder", run[0].parents[1], "--ckpt_path", "last")
    message = failing("detection.fit", *finetune(shapes), *resume, "--model.name", "e2e_mf_52m")
    assert "e2e_mf_26m" in message
    assert "e2e_mf_52m" in message
    for split in ("train", "val"):
        change(folder, split, lambda content: content["categories"][0].update(name="ball"))
    message = failing("detection.fit", *finetune(folder), *resume)
    for name in ("'disc'", "'ball'", "--model.pretrained"):
        assert name in message


# Scoring


def test_validate_scores_a_checkpoint_from_anywhere_as_the_run_did(shapes, working, tmp_path):
    options = (
        "--model.learning_rate",
        "1e-3",
        "--model.ema_decay",
        "0.5",
        "--trainer.max_epochs",
        "3",
        "--name",
        "run",
    )
    working("detection.fit", *finetune(shapes, *options))  # detects more than the other runs of these tests
    folder = tmp_path / "runs" / "detection" / "run"
    best = folder / "checkpoints" / "best.ckpt"
    result = run_module(
        "detection.validate", "--ckpt_path", str(best), "--results", "new/results.json", cwd=tmp_path
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    expected = scores(folder / "ap.json")
    for name, value in expected.items():
        (line,) = (line for line in result.stdout.splitlines() if f"│ {name} " in line)
        assert ("none to find" if value < 0 else f"{value:.4f}") in line
    assert "e2e_mf_26m on val of shapes: 3 images" in result.stdout
    counted = by_pycocotools(shapes / "annotations" / "instances_val.json", tmp_path / "new" / "results.json")
    assert counted == pytest.approx(expected, abs=1e-6)
    assert counted["AP"] > 0, "too poor a detector to tell a mistake by"


def test_test_scores_the_test_images_and_writes_what_it_found(run, best, shapes, working, tmp_path):
    result = working("detection.test", "--ckpt_path", best, "--results", "results.json")
    assert "on test of shapes: 2 images" in result.out
    assert result.err == ""
    written = run[0] / "test"
    ap = scores(written / "ap.json")
    metrics = json.loads((written / "metrics.json").read_text())
    assert metrics == pytest.approx({f"test/{name}": value for name, value in ap.items()} | metrics, abs=1e-6)
    assert metrics["test/loss"] > 0
    rows = list(csv.DictReader((written / "per_class.csv").open()))
    per_class = json.loads((written / "ap.json").read_text())["per_class"]
    assert {row["class"]: float(row["AP"]) for row in rows} == pytest.approx(per_class, abs=1e-6)
    truth = json.loads((shapes / "annotations" / "instances_test.json").read_text())["annotations"]
    assert sum(int(row["objects"]) for row in rows) == len(truth)
    mistakes = list(csv.DictReader((written / "mistakes.csv").open()))
    missed = sum(row["mistake"] == "missed" for row in mistakes)
    found = sum(int(row["objects"]) * float(row["recall"] or 0) for row in rows)
    assert missed == len(truth) - round(found, 3)
    if mistakes:
        assert cv2.imread(str(written / "mistakes.png")).std() > 5
    assert by_pycocotools(shapes / "annotations" / "instances_test.json", tmp_path / "results.json") == pytest.approx(
        ap, abs=1e-6
    )


def test_a_split_by_option_is_the_one_that_is_scored(best, working, tmp_path):
    result = working("detection.validate", "--ckpt_path", best, "--data.split", "train", "--results", "train.json")
    assert "on train of shapes: 6 images" in result.out
    assert len({row["image_id"] for row in json.loads((tmp_path / "train.json").read_text())}) == 6
    assert "on test of shapes: 2" in working("detection.validate", "--ckpt_path", best, "--data.split", "test").out
    output = ("--output", tmp_path / "out")
    result = working("detection.test", "--ckpt_path", best, "--data.split", "val", *output)
    assert "on val of shapes: 3" in result.out
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["ap.json", "metrics.json"]


def test_a_checkpoint_is_scored_on_another_folder_by_the_names_of_its_classes(run, best, working, tmp_path):
    # The same images under other ids of the categories: the same numbers.
    other = [{"id": 1, "name": "disc"}, {"id": 2, "name": "bar"}]
    root = write_shapes(tmp_path / "elsewhere", other, train=6, val=3)
    result = working("detection.test", "--ckpt_path", best, "--data.root", root, "--output", tmp_path / "out")
    assert "on val of elsewhere: 3 images" in result.out  # it has no test split
    assert scores(tmp_path / "out" / "ap.json") == pytest.approx(scores(run[0] / "ap.json"), abs=1e-6)


def test_single_paths_are_given_by_option(best, shapes, working, failing, tmp_path):
    (tmp_path / "boxes.json").write_bytes((shapes / "annotations" / "instances_test.json").read_bytes())
    (shapes / "images").rename(tmp_path / "pictures")
    try:
        result = working(
            "detection.validate", "--ckpt_path", best, "--data.annotations.val", "boxes.json", "--data.images.val",
            "pictures",
        )  # fmt: skip
        assert "on val of boxes: 2 images" in result.out
        assert "--data.images" in failing(
            "detection.validate", "--ckpt_path", best, "--data.annotations.val", "boxes.json"
        )
    finally:
        (tmp_path / "pictures").rename(shapes / "images")


def test_other_categories_than_the_checkpoints_are_an_error_that_lists_both(best, failing, folder):
    change(folder, "val", lambda content: content["categories"][0].update(name="ball"))
    message = failing("detection.validate", "--ckpt_path", best, "--data.root", folder)
    for told in ("'ball'", "'disc'", str(folder / "annotations" / "instances_val.json")):
        assert told in message


def test_what_is_no_checkpoint_of_a_detector_is_told_as_such(failing, classifier, tmp_path):
    for module in ("detection.validate", "detection.test"):
        message = failing(module, "--ckpt_path", classifier)
        assert str(classifier) in message
        assert "another task" in message
    assert "nowhere.ckpt" in failing("detection.validate", "--ckpt_path", "nowhere.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    assert "not a weights file" in failing("detection.validate", "--ckpt_path", "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    assert "not a checkpoint of detection.fit" in failing("detection.validate", "--ckpt_path", "empty.ckpt")


def test_results_that_cannot_be_written_are_told_before_the_work(best, failing, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "results.json"):
        assert str(path) in failing("detection.validate", "--ckpt_path", best, "--results", path)


# Starting from weights


def test_a_classifiers_checkpoint_gives_the_backbone(classifier, shapes, working, tmp_path):
    working(
        "detection.fit", *finetune(shapes, "--name", "started", "--model.pretrained", classifier),
        "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "0",
        "--model.backbone_learning_rate", "1e-12",
    )  # fmt: skip
    folder = tmp_path / "runs" / "detection" / "started"
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    source = torch.load(classifier, weights_only=True)["state_dict"]
    taken = [name for name in source if name.startswith("model.backbone.") and name.endswith(("weight", "bias"))]
    assert len(taken) > 100
    for name in taken:
        torch.testing.assert_close(state[name], source[name], atol=1e-6, rtol=0)


def test_weights_of_another_backbone_name_both(classifier, shapes, failing):
    message = failing(
        "detection.fit", *finetune(shapes, "--model.pretrained", classifier), "--model.name", "e2e_mf_52m"
    )
    for told in (str(classifier), "mobile_former_26m", "mobile_former_52m"):
        assert told in message


def test_a_detectors_checkpoint_starts_a_run_on_other_classes_and_says_so(best, folder, working):
    for split in ("train", "val"):
        change(folder, split, lambda content: content["categories"].append({"id": 99, "name": "star"}))
    result = working(
        "detection.fit", *finetune(folder, "--model.pretrained", best), "--trainer.max_epochs", "1",
        "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", "--data.keep_empty_classes", "true",
    )  # fmt: skip
    assert f"{best} has another number of classes" in result.err
    assert "of 3 classes" in result.out


# Options


@pytest.mark.parametrize(
    "config",
    [
        *("bccd", "coco_short", "finetune", "scenes"),
        *(f"coco_{head}_mf_{size}m" for head in ("e2e", "retinanet") for size in (151, 214, 294, 508)),
    ],
)
def test_every_config_parses_by_its_name_alone(config, working):
    result = working("detection.fit", "--config", f"{config}.yaml", "--print_config", "--data.batch_size", "3")
    values = yaml.safe_load(result.out)
    assert values["data"]["batch_size"] == 3
    assert values["data"]["dataset"] == ("scenes" if config == "scenes" else "coco")
    if config.startswith(("coco_e2e", "coco_retinanet")):
        assert values["model"]["name"] == config.removeprefix("coco_")
        # Section 4.2 of the paper.
        rates = [values["model"][name] for name in ("learning_rate", "backbone_learning_rate", "weight_decay")]
        length = values["model"]["milestones"], values["trainer"]["max_epochs"]
        if "e2e" in config:
            assert rates == [1e-4, 1e-5, 1e-4]
            assert length == ([200], 300)
            assert values["data"]["short_sides"] == list(range(480, 801, 32))
        else:
            assert length == ([8, 11], 12)
            assert (values["data"]["short_sides"], values["data"]["crop"]) == ([800], 0)
        assert (values["data"]["short_side"], values["data"]["longest"]) == (800, 1333)


def test_help_tells_the_options_of_each_command(working):
    told = working("detection.fit", "--help").out
    for option in ("--model.focal", "--model.backbone_learning_rate", "--data.root", "--data.annotations", "--name"):
        assert option in told
    for module in ("detection.validate", "detection.test"):
        told = working(module, "--help").out
        for option in ("--ckpt_path", "--data.split", "--results", "--data.annotations"):
            assert option in told


def test_a_pipeline_in_yaml_replaces_the_augmentations(shapes, working, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "data: {short_sides: [9999], train_transforms: [{class_path: albumentations.VerticalFlip}, "
        "{class_path: detection.transforms.ResizeShortSide, init_args: {sizes: [48], longest: 96}}]}"
    )
    options = finetune(shapes, "--name", "mine")[:-2]
    # short_sides, which the pipeline replaces, are not looked at.
    kept = [part for part in options if part not in {"--data.short_sides", "[64]"}]
    result = working(
        "detection.fit", *kept, "--config", "mine.yaml", "--name", "mine", "--trainer.max_epochs", "1",
        "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1",
    )  # fmt: skip
    assert result.err == ""
    config = yaml.safe_load((tmp_path / "runs" / "detection" / "mine" / "config.yaml").read_text())
    steps = [step["class_path"] for step in config["data"]["train_transforms"]]
    assert steps == ["albumentations.VerticalFlip", "detection.transforms.ResizeShortSide"]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--data.batch_size", "0"), "batch_size"),
        (("--data.batch_size", "abc"), "batch_size"),
        (("--data.num_workers", "-1"), "num_workers"),
        (("--data.short_sides", "[16]"), "from 32 pixels"),
        (("--data.short_sides", "[]"), "short_sides"),
        (("--data.short_side", "31"), "from 32 pixels"),
        (("--data.longest", "100", "--data.short_side", "128"), "longest is 100"),
        (("--data.flip", "1.5"), "flip is 1.5"),
        (("--data.crop", "-0.1"), "crop is -0.1"),
        (("--data.std", "[0, 1, 1]"), "std"),
        (("--data.annotations.training", "x.json"), "training"),
        (("--data.images.validation", "x"), "validation"),
        (("--data.split", "vall"), "split"),
        (("--data.split", "train"), "split"),  # of validate and test; training always validates on val
        (("--model.name", "e2e_mf_293m"), "e2e_mf_294m"),
        (("--model.learning_rate", "0"), "learning_rate is 0"),
        (("--model.backbone_learning_rate", "-1"), "backbone_learning_rate is -1"),
        (("--model.weight_decay", "-1"), "weight_decay is -1"),
        (("--model.warmup_epochs", "-1"), "warmup_epochs is -1"),
        (("--model.milestones", "[3,2]"), "milestones is [3, 2]"),
        (("--model.milestones", "[0]"), "milestones is [0]"),
        (("--model.ema_decay", "1"), "ema_decay is 1"),
        (("--model.dense_head", "false"), "dense_head"),  # choose_queries needs it
        (("--model.pretrained", "nowhere.pth"), "nowhere.pth"),
        (("--ckpt_path", "nowhere.ckpt"), "nowhere.ckpt"),
        (("--trainer.limit_train_batches", "0"), "limit_train_batches"),
        (("--data.train_transforms=[{class_path: albumentations.HorizontalFlop}]",), "HorizontalFlop"),
    ],
)
def test_values_that_cannot_be_used_are_named(arguments, expected, shapes, failing, tmp_path):
    status = 2 if any(word in str(arguments) for word in ("abc", "Flop", "vall")) else 1
    assert expected in failing("detection.fit", *finetune(shapes), *arguments, status=status)
    assert not list((tmp_path / "runs").glob("*/*"))  # nothing was trained, so no name is taken


def test_options_that_do_not_exist_are_told_with_the_nearest(failing):
    assert "--data.short_sides" in failing("detection.fit", "--data.short_size", 3, status=2)
    assert "--model.learning_rate" in failing("detection.fit", "--model.lr", 3, status=2)
    assert "--results" in failing("detection.validate", "--ckpt_path", "x", "--result", "x", status=2)


def test_a_config_without_data_names_what_is_missing(failing):
    assert "--data.root DIR" in failing("detection.fit", "--config", "finetune.yaml")
    assert "finetune.yaml" in failing("detection.fit", "--config", "finetun.yaml")


def missing_folder(folder):
    shutil.rmtree(folder)


def missing_file(folder):
    (folder / "annotations" / "instances_train.json").rename(folder / "annotations" / "boxes.json")


def missing_images(folder):
    shutil.rmtree(folder / "images")


def missing_image(folder):
    (folder / "images" / "train_2.png").unlink()


def no_json(folder):
    (folder / "annotations" / "instances_train.json").write_text("{")


def a_list(folder):
    (folder / "annotations" / "instances_train.json").write_text("[]")


def no_annotations(folder):
    change(folder, "train", lambda content: content.pop("annotations"))


def stray_annotation(folder):
    change(folder, "train", lambda content: content["annotations"][2].update(image_id=77))


def strange_category(folder):
    change(folder, "val", lambda content: content["annotations"][2].update(category_id=77))


def twice_the_image(folder):
    change(folder, "train", lambda content: content["images"][1].update(id=5))


def twice_the_annotation(folder):
    change(folder, "train", lambda content: content["annotations"][1].update(id=1))


def twice_the_category(folder):
    change(folder, "train", lambda content: content["categories"][1].update(id=40))


def other_validation_categories(folder):
    change(folder, "val", lambda content: content["categories"][0].update(name="ball"))


def wrong_size(folder):
    for index in range(6):  # whichever comes first
        cv2.imwrite(str(folder / "images" / f"train_{index}.png"), np.zeros((50, 40, 3), np.uint8))


def wrong_validation_size(folder):
    cv2.imwrite(str(folder / "images" / "val_2.png"), np.zeros((50, 40, 3), np.uint8))


def turned(folder):
    path = str(folder / "images" / "val_0.png")
    cv2.imwrite(path, cv2.rotate(cv2.imread(path), cv2.ROTATE_90_CLOCKWISE))


def corrupt_validation(folder):
    path = folder / "images" / "val_1.png"
    path.write_bytes(path.read_bytes()[:1000])


def boxes_in_shares(folder):
    def shrink(content):
        for row in content["annotations"]:
            row["bbox"] = [0.2, 0.3, 0.1, 0.4]

    change(folder, "train", shrink)


def crowds_alone(folder):
    def spoil(content):
        for row in content["annotations"]:
            row["iscrowd"] = 1

    change(folder, "train", spoil)


def tiny_objects(folder):
    def spoil(content):
        for row in content["annotations"]:
            row["bbox"][2:] = [0.9, 0.9]

    change(folder, "train", spoil)


def nothing_to_learn(folder):
    change(folder, "train", lambda content: content["annotations"].clear())


def no_image_is_whole(folder):
    for path in (folder / "images").glob("train_*"):
        path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "where", "told"),
    [
        (missing_folder, "mine", "no folder"),
        (missing_file, "mine", "no 'train' data"),
        (missing_images, "mine/images", "no folder of images"),
        (missing_image, "train_2.png", "put it there"),
        (no_json, "instances_train.json", "not JSON"),
        (a_list, "instances_train.json", "a COCO annotation file holds"),
        (no_annotations, "instances_train.json", "no list 'annotations'"),
        (stray_annotation, "instances_train.json", "annotation 3 belongs to image 77"),
        (strange_category, "instances_val.json", "annotation 3 (of image 15) has category 77"),
        (twice_the_image, "instances_train.json", "two of 'images' have the id 5"),
        (twice_the_annotation, "instances_train.json", "two of 'annotations' have the id 1"),
        (twice_the_category, "instances_train.json", "two of 'categories' have the id 40"),
        (
            other_validation_categories,
            "instances_val.json",
            "the file has 'ball', which the model does not have; the model has 'bar', 'disc'",
        ),
        (wrong_size, "train_", "is 40x50 pixels, but image"),
        (wrong_validation_size, "val_2.png", "is recorded as 80x72"),
        (turned, "val_0.png", "EXIF"),
        (corrupt_validation, "val_1.png", "would change the score"),
        (boxes_in_shares, "instances_train.json", "pixels: multiply"),
        (nothing_to_learn, "mine", "no image of the training data has an object to learn"),
        (tiny_objects, "mine", "training objects are less than a pixel wide or high in images with a shorter side of"),
        (crowds_alone, "mine", "has an object to learn; left out are crowd regions with iscrowd 1 ("),
        (no_image_is_whole, "train_", "none of the 6 training images can be read"),
    ],
)
def test_data_that_cannot_be_trained_on_are_told_with_the_place(damage, where, told, folder, failing, tmp_path):
    damage(folder)
    message = failing("detection.fit", *finetune(folder, "--trainer.max_epochs", "1"))
    assert where in message
    assert told in message
    assert not list((tmp_path / "runs").glob("*/*"))  # nothing was trained, so no name is taken


@pytest.mark.parametrize("damage", [wrong_validation_size, corrupt_validation])
def test_damaged_images_are_told_where_a_checkpoint_is_scored_too(damage, best, folder, failing):
    damage(folder)
    message = failing("detection.validate", "--ckpt_path", best, "--data.root", folder)
    assert str(folder / "images" / "val_") in message


@pytest.mark.parametrize(("damage", "name"), [(wrong_size, "train_"), (wrong_validation_size, "val_2.png")])
def test_an_image_of_another_size_is_told_by_loading_processes_too(damage, name, folder, failing):
    damage(folder)
    message = failing("detection.fit", *finetune(folder, "--data.num_workers", "1", "--trainer.max_epochs", "1"))
    assert name in message
    assert "is 40x50 pixels" in message


def test_a_corrupt_training_image_is_left_out_told_once_and_counted(folder, working, tmp_path):
    bad = folder / "images" / "train_3.png"
    bad.write_bytes(bad.read_bytes()[:1000])
    result = working("detection.fit", *finetune(folder, "--trainer.max_epochs", "2", "--name", "x"))
    assert result.err.count(str(bad)) == 1
    assert "training continues without it" in result.err
    metrics = json.loads((tmp_path / "runs" / "detection" / "x" / "metrics.json").read_text())
    assert metrics["skipped_images"] == 1


def test_boxes_without_area_or_out_of_their_image_are_told_once_with_their_number(folder, working):
    def spoil(content):
        content["annotations"][0]["bbox"][2:] = [0, 0]
        content["annotations"][3]["bbox"][2] = -4
        content["annotations"][4]["bbox"][:2] = [-7, -3]

    path, other = change(folder, "train", spoil), change(folder, "val", spoil)
    result = working(
        "detection.fit", *finetune(folder, "--trainer.max_epochs", "1"), "--trainer.limit_val_batches", "1"
    )  # fmt: skip
    assert result.err.count(str(path)) == result.err.count(str(other)) == 1
    assert result.err.count("clipped to their image (1)") == 2
    assert result.err.count("no area in their image (2)") == 2
    assert "with 10 objects" in result.out


def test_categories_without_boxes_are_classes_if_asked_for(folder, working):
    for split in ("train", "val"):
        change(folder, split, lambda content: content["categories"].append({"id": 2, "name": "no box"}))
    few = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1")
    result = working("detection.fit", *finetune(folder, *few))
    assert "of 2 classes" in result.out
    assert "empty  no object of 'no box': left out of the classes" in result.out
    result = working("detection.fit", *finetune(folder, *few, "--data.keep_empty_classes", "true"))
    assert "of 3 classes" in result.out
    (line,) = (line for line in result.out.splitlines() if "no box" in line)
    assert "none to find" in line


# Two processes


@pytest.mark.slow
def test_two_processes_train_together_and_score_as_one_does(tmp_path):
    root = write_shapes(tmp_path / "shapes", CATEGORIES, train=7, val=5)
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")
    # Which of an untrained head's all but equal positions become queries would depend on the last digits.
    plain = ("--model.choose_queries", "false")
    arguments = map(str, finetune(root, "--trainer.max_epochs", "2", "--name", "two", *plain, *two))
    result = run_module("detection.fit", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "detection" / "two"
    assert sum(line.startswith("epoch ") for line in result.stdout.splitlines()) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["two"]
    best = str(folder / "checkpoints" / "best.ckpt")
    common = ("--ckpt_path", best, "--data.num_workers", "0")
    for name, options in (("alone", ("--trainer.accelerator", "cpu")), ("both", two)):
        result = run_module(
            "detection.test", *common, *options, "--output", name, "--results", f"{name}.json", cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
    alone, both, trained = (scores(path / "ap.json") for path in (tmp_path / "alone", tmp_path / "both", folder))
    assert alone["AP"] > 0, "too poor a detector to tell a mistake by"
    assert both == pytest.approx(alone, abs=1e-5)
    assert trained == pytest.approx(alone, abs=1e-5)
    losses = [json.loads((tmp_path / name / "metrics.json").read_text())["test/loss"] for name in ("alone", "both")]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)  # batches of other images normalise by other counts
    rows = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "both")]
    assert len(rows[0]) == len(rows[1])
    assert {row["image_id"] for row in rows[1]} == {5, 15, 25, 35, 45}


def test_a_transform_that_fails_is_told_with_its_image(folder, failing, tmp_path):
    (tmp_path / "crop.yaml").write_text(
        "data: {train_transforms: [{class_path: albumentations.RandomCrop, init_args: {height: 500, width: 500}}]}"
    )
    message = failing("detection.fit", *finetune(folder), "--config", "crop.yaml")
    assert "train_transforms failed on" in message
    assert "train_" in message


def test_a_run_is_not_resumed_with_another_architecture(run, shapes, failing):
    resume = ("--name", "shapes", "--runs_folder", run[0].parents[1], "--ckpt_path", "last")
    message = failing(
        "detection.fit", *finetune(shapes, "--trainer.max_epochs", "4"), *resume, "--model.focal", "false"
    )
    assert "was trained with focal True, but this run has False" in message


def test_scenes_take_no_folder(shapes, failing):
    message = failing("detection.fit", "--config", "scenes.yaml", "--data.root", shapes)
    assert "embedded" in message
    assert "finetune.yaml" in message


def test_results_are_json(best, shapes, failing):
    assert ".json" in failing("detection.validate", "--ckpt_path", best, "--data.root", shapes, "--results", "a.csv")


def test_retinanet_trains_and_is_scored_by_the_same_commands(shapes, working, tmp_path):
    options = ("--model.name", "retinanet_mf_26m", "--model.freeze_batch_norm", "true", "--trainer.max_epochs", "1")
    options += ("--model.checkpoint_gradients", "true")
    result = working("detection.fit", *finetune(shapes, *options, "--name", "retina"))
    assert "retinanet_mf_26m" in result.out
    assert result.err == ""
    folder = tmp_path / "runs" / "detection" / "retina"
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    counted = {value.item() for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert counted == {0}  # frozen statistics; only the backbone has BatchNorms
    result = working("detection.validate", "--ckpt_path", folder / "checkpoints" / "last.ckpt")
    assert "retinanet_mf_26m on val" in result.out


def test_without_validation_objects_the_run_says_so_and_keeps_its_last_epoch(folder, working, tmp_path):
    change(folder, "val", lambda content: content["annotations"].clear())
    result = working("detection.fit", *finetune(folder, "--trainer.max_epochs", "2", "--name", "blind"))
    assert "no validation image has an object, so AP cannot be measured" in result.err
    assert "best_epoch" in result.out
    metrics = json.loads((tmp_path / "runs" / "detection" / "blind" / "metrics.json").read_text())
    assert metrics["best_epoch"] == 2


def test_training_objects_that_resizing_loses_are_counted(folder, working):
    def shrink(content):
        content["annotations"][0]["bbox"][2:] = [0.9, 3]

    change(folder, "train", shrink)
    result = working("detection.fit", *finetune(folder, "--trainer.max_epochs", "1"))
    assert "training objects, 1 are less than a pixel wide or high in images with a shorter side of" in result.err


def test_images_with_more_objects_than_queries_are_counted(folder, working):
    def crowd(content):
        row = content["annotations"][0]
        content["annotations"] += [row | {"id": 1000 + number} for number in range(60)]

    change(folder, "train", crowd)
    result = working("detection.fit", *finetune(folder, "--trainer.max_epochs", "1"))
    assert "1 of 6 training images have more than 50 objects" in result.err
    assert "detects at most 50 objects in an image: recall can be 0.83 at most; raise --model.num_queries" in result.err
    result = working("detection.fit", *finetune(folder, "--trainer.max_epochs", "1"), "--model.num_queries", "90")
    assert "more than" not in result.err


def test_as_many_detections_are_scored_as_the_model_makes(folder, working, tmp_path):
    """With 130 objects in an image, the scores of 100 and of 130 detections differ."""

    def crowd(content):
        row = content["annotations"][0] | {"image_id": content["images"][0]["id"]}
        boxes = [[column, line, 2, 2] for line in range(0, 20, 2) for column in range(0, 26, 2)]
        content["annotations"] = [row | {"id": number, "bbox": box} for number, box in enumerate(boxes, 1)]

    change(folder, "val", crowd)
    arguments = finetune(folder, "--trainer.max_epochs", "1", "--name", "many", "--model.num_queries", "130")
    working("detection.fit", *arguments)
    best = tmp_path / "runs" / "detection" / "many" / "checkpoints" / "best.ckpt"
    working("detection.test", "--ckpt_path", best, "--results", "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert Counter(row["image_id"] for row in results).most_common(1)[0][1] == 130


@pytest.mark.parametrize(("option", "value"), [("val_check_interval", "1000"), ("profiler", "nope")])
def test_an_option_that_lightning_refuses_is_one_line_and_leaves_no_folder(shapes, failing, tmp_path, option, value):
    message = failing("detection.fit", *finetune(shapes), f"--trainer.{option}", value)
    assert message.startswith("error: ")
    assert f"`{option}`" in message
    assert not [*tmp_path.glob("runs/*/*")]


# Images without annotations


def test_images_without_annotations_are_detected_and_not_scored(best, folder, working, failing, tmp_path):
    content = json.loads((folder / "annotations" / "instances_val.json").read_text())
    del content["annotations"]
    (folder / "annotations" / "instances_test.json").unlink()
    path = folder / "annotations" / "image_info_test-dev.json"
    path.write_text(json.dumps(content))
    options = ("--ckpt_path", best, "--data.root", folder, "--data.split", "test", "--output", "scores")
    result = working("detection.test", *options, "--results", "results.json")
    assert f"no scores, because {path} has no list 'annotations'" in result.out
    found = json.loads((tmp_path / "results.json").read_text())
    assert {row["image_id"] for row in found} == {image["id"] for image in content["images"]}
    assert not (tmp_path / "scores" / "ap.json").exists()
    assert "test/loss" not in json.loads((tmp_path / "scores" / "metrics.json").read_text())
    working("detection.test", "--ckpt_path", best, "--data.root", folder, "--results", "val.json")
    assert found == json.loads((tmp_path / "val.json").read_text())  # of the same images
    message = failing("detection.test", *options)
    assert f"{path} has no list 'annotations', but scores need it" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_needs_annotations(folder, split, failing, tmp_path):
    change(folder, split, lambda content: content.pop("annotations"))
    message = failing("detection.fit", *finetune(folder))
    assert f"instances_{split}.json has no list 'annotations', but training" in message
    assert not [*tmp_path.glob("runs/*/*")]
