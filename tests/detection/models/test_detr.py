"""The DETR of transformers with the losses and data of this project."""

import pytest
import torch
from torch import nn

import detection
import mobile_former
from detection.module import DetectionModule
from tests.conftest import run_module

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def detr():
    torch.manual_seed(0)
    return detection.create_detector("detr_r50", 3).eval()


def test_its_cost_is_that_of_detr_r50():
    """41.4 M and 79.6 G on one 800×1056 image, the baseline of E2E-MF. This count includes the norms' parameters."""
    cost = mobile_former.cost(detection.create_detector("detr_r50", 80), (800, 1056))
    assert cost.params == pytest.approx(41.4e6, rel=5e-3)
    assert cost.madds == pytest.approx(79.6e9, rel=5e-3)


def test_logits_and_boxes_equal_those_of_the_library(detr):
    images = torch.randn(2, 3, 64, 96)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[0, 40:] = mask[1, :, 70:] = True
    images = images.masked_fill(mask[:, None], 0)
    with torch.no_grad():
        expected = detr.network(images, pixel_mask=(~mask).long())
        outputs = detr(images, mask)
        padded = detr(images.masked_fill(mask[:, None], 5.0), mask)
    torch.testing.assert_close(outputs["logits"], expected.logits)
    torch.testing.assert_close(outputs["boxes"], expected.pred_boxes)
    assert torch.equal(padded["boxes"], outputs["boxes"])


def test_every_decoder_layer_but_the_last_is_an_auxiliary_prediction(detr):
    """Expected: the final norm and the heads, applied to the output of each layer."""
    hidden_states = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: hidden_states.append(output))
        for layer in detr.network.model.decoder.layers
    ]
    with torch.no_grad():
        outputs = detr(torch.randn(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    assert len(outputs["auxiliary"]) == 5
    for hidden, prediction in zip(hidden_states, [*outputs["auxiliary"], outputs], strict=True):
        normed = detr.network.model.decoder.layernorm(hidden)
        torch.testing.assert_close(prediction["logits"], detr.network.class_labels_classifier(normed))
        torch.testing.assert_close(prediction["boxes"], detr.network.bbox_predictor(normed).sigmoid())


def test_every_parameter_gets_a_gradient_and_only_the_option_freezes_norms():
    module = DetectionModule(["a", "b"], name="detr_r50", focal=True)  # an option of E2E-MF, ignored
    target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])}
    module.model.loss(module.model(torch.randn(1, 3, 64, 64)), [target])["total"].backward()
    assert not [name for name, parameter in module.named_parameters() if parameter.grad is None]
    frozen = DetectionModule(["a", "b"], name="detr_r50", freeze_batch_norm=True)
    norms = [part for part in frozen.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 53
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)


def test_weights_of_a_resnet_are_loaded_into_the_backbone_and_weights_of_a_detr_except_other_classes(detr, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    resnet = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=4))
    torch.save(resnet.state_dict(), tmp_path / "resnet50.pth")
    loaded = detection.create_detector("detr_r50", 3, pretrained=tmp_path / "resnet50.pth").backbone.state_dict()
    for name, tensor in resnet.resnet.state_dict().items():
        assert torch.equal(loaded[name], tensor), name

    torch.save(detr.state_dict(), tmp_path / "detr.pth")
    other = detection.create_detector("detr_r50", 5, pretrained=tmp_path / "detr.pth")
    assert other.network.class_labels_classifier.out_features == 6
    assert torch.equal(
        other.network.model.query_position_embeddings.weight, detr.network.model.query_position_embeddings.weight
    )


@pytest.mark.slow
def test_the_commands_accept_its_name(shapes, tmp_path):
    options = ("--data.root", str(shapes), "--data.short_sides", "[64]", "--data.short_side", "64")
    result = run_module(
        "detection.fit", "--config", "finetune.yaml", *options, "--model.name", "detr_r50", "--trainer.max_epochs", "1",
        "--trainer.limit_train_batches", "1", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    checkpoint = "runs/detection/detr_r50-shapes/checkpoints/best.ckpt"
    result = run_module("detection.predict", str(shapes / "images"), "--ckpt_path", checkpoint, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
