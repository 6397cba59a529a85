"""Classifiers of other libraries, and the commands that train them."""

import json
import logging

import pytest
import torch
import yaml
from torch import nn

import mobile_former
from classification.baselines import create_baseline
from classification.module import ClassificationModule
from mobile_former import InputError
from mobile_former.training.run.checkpoint import load_checkpoint
from tests.conftest import ROOT, TIMM_PATHS, run_module

transformers = pytest.importorskip("transformers")


# the counts of torchvision and the papers, for 1000 classes and images of 224×224
@pytest.mark.parametrize(
    ("name", "params", "madds"),
    [
        ("transformers/mobilenet_v2_1.0", 3_504_872, 300.8e6),
        ("transformers/resnet18", 11_689_512, 1.814e9),
        ("transformers/resnet50", 25_557_032, 4.089e9),
    ],
)
def test_parameters_and_multiply_adds_are_the_published_ones(name, params, madds):
    cost = mobile_former.cost(create_baseline(name, 1000))
    assert cost.params == params
    assert cost.madds == pytest.approx(madds, rel=1e-3)


@pytest.mark.parametrize("name", ["mobilenet_v2_0.35", "resnet18"])
@pytest.mark.parametrize("num_classes", [4, 6])
def test_weights_of_the_library_give_the_logits_of_the_library(name, num_classes, tmp_path, caplog):
    torch.manual_seed(0)
    if name == "resnet18":
        config = transformers.ResNetConfig(
            layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], num_labels=4
        )
        theirs = transformers.ResNetForImageClassification(config).eval()
    else:
        config = transformers.MobileNetV2Config(depth_multiplier=0.35, tf_padding=False, num_labels=4)
        theirs = transformers.MobileNetV2ForImageClassification(config).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = create_baseline(f"transformers/{name}", num_classes, pretrained=tmp_path / "weights.pth").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = theirs(images).logits, ours(images)
        features = ours.backbone(images).pooler_output.flatten(1)
    if num_classes == 4:
        torch.testing.assert_close(found, expected)
        assert not [record for record in caplog.records if record.levelno > logging.INFO]
    else:
        assert found.shape == (2, 6)
        base = theirs.resnet if name == "resnet18" else theirs.mobilenet_v2
        torch.testing.assert_close(features, base(images).pooler_output.flatten(1))
        assert "all layers except the last linear one" in caplog.text


def test_dropout_precedes_the_linear_layer_and_running_statistics_are_averages():
    model = create_baseline("transformers/mobilenet_v2_0.35", 3, dropout=0.4)
    assert model.dropout.p == 0.4
    assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformers/resnet17", {}, "no model transformers/resnet17: did you mean 'resnet18'"),
        ("transformers/mobilenet_v2_1", {}, "did you mean 'mobilenet_v2_1.0'"),
        ("transformers/resnet18", {"drop_path": 0.1}, "no stochastic depth"),
    ],
)
def test_models_that_cannot_be_built_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        create_baseline(name, 3, **options)


def test_with_a_frozen_backbone_only_the_linear_layer_learns():
    module = ClassificationModule(["a", "b"], name="transformers/mobilenet_v2_0.35", freeze_backbone=True)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {"model.classifier.weight", "model.classifier.bias"}


@pytest.mark.slow
def test_the_commands_accept_the_name_of_a_baseline(image_folder, tmp_path):
    options = ("--data.root", str(image_folder), "--data.image_size", "64", "--data.batch_size", "8")
    result = run_module(
        "classification.fit", "--config", "finetune.yaml", *options, "--model.name", "transformers/mobilenet_v2_0.35",
        "--trainer.max_epochs", "1", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "classification" / "transformers-mobilenet_v2_0.35-colours"
    assert json.loads((folder / "metrics.json").read_text())["model"] == "transformers/mobilenet_v2_0.35"
    checkpoint = ("--ckpt_path", str(folder / "checkpoints" / "best.ckpt"))
    result = run_module("classification.predict", str(image_folder / "val"), *checkpoint, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sum(name in result.stdout for name in ("blue", "green", "red")) == 3


CLOTHING = yaml.safe_load((ROOT / "experiments" / "configs" / "clothing.yaml").read_text())


@pytest.mark.parametrize(
    "name", [own["model.name"] for own in CLOTHING["models"].values() if own["model.name"].startswith("timm/")]
)
def test_classifiers_of_timm_learn(timm, name):
    module = ClassificationModule(["a", "b", "c"], name=name, image_size=CLOTHING["options"]["data.image_size"])
    nn.functional.cross_entropy(module(torch.randn(2, 3, 128, 128)), torch.tensor([0, 2])).backward()
    assert not [
        name for name, parameter in module.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]


@pytest.mark.slow
def test_fit_builds_a_model_of_timm_for_the_image_size_of_the_data(timm, image_folder, tmp_path):
    options = ("--data.root", str(image_folder), "--data.image_size", "64", "--data.batch_size", "8")
    result = run_module(
        "classification.fit", "--config", "finetune.yaml", *options, "--model.name", "timm/levit_128s",
        "--trainer.max_epochs", "1", "--name", "levit", cwd=tmp_path, paths=TIMM_PATHS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    checkpoint = tmp_path / "runs" / "classification" / "levit" / "checkpoints" / "best.ckpt"
    module, _ = load_checkpoint(checkpoint, ClassificationModule, "classification")
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
