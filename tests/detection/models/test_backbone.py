"""Backbones of other libraries."""

import pytest
import torch

import detection
import mobile_former
from detection.models.backbone import create_backbone
from mobile_former import InputError
from tests.conftest import run_module

transformers = pytest.importorskip("transformers")


def resnet(**options):
    torch.manual_seed(0)
    sizes = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, **options))


def test_maps_equal_those_of_the_library_with_its_weights(tmp_path):
    theirs = resnet(num_labels=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    detector = detection.create_detector(
        "retinanet_mf_26m", 2, backbone="transformers/resnet18", pretrained=tmp_path / "resnet18.pth"
    ).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps, tokens = detector.backbone(images)
        hidden = theirs.resnet(images, output_hidden_states=True).hidden_states
    assert tokens is None
    assert detector.backbone.channels == {8: 128, 16: 256, 32: 512}
    for stride, expected in zip((8, 16, 32), hidden[2:], strict=True):
        assert maps[stride].shape == (2, detector.backbone.channels[stride], 64 // stride, 96 // stride)
        torch.testing.assert_close(maps[stride], expected)


def test_maps_do_not_depend_on_pixels_of_padding():
    backbone = create_backbone("transformers/resnet18").eval()
    images = torch.randn(1, 3, 64, 64)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 40:] = True
    other = images.clone()
    other[:, :, 40:] = 7.0
    with torch.no_grad():
        for stride, x in backbone(images, mask)[0].items():
            assert torch.equal(x, backbone(other, mask)[0][stride])


# RetinaNet with ResNet-50 has 239 G multiply-adds in public model zoos (80 classes, 800×1280).
def test_retinanet_with_resnet50_has_the_known_cost():
    cost = mobile_former.cost(
        detection.create_detector("retinanet_mf_294m", 80, backbone="transformers/resnet50"), (800, 1280)
    )
    assert cost.params == pytest.approx(37.97e6, rel=5e-3)
    assert cost.madds == pytest.approx(239e9, rel=5e-3)


@pytest.mark.parametrize("name", ["retinanet_mf_26m", "e2e_mf_26m"])
def test_every_parameter_gets_a_gradient_with_a_backbone_of_another_library(name):
    options = {} if name.startswith("retinanet") else {"focal": True, "dense_head": True}
    model = detection.create_detector(name, 3, backbone="transformers/resnet18", **options).train()
    target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])}
    model.loss(model(torch.randn(2, 3, 64, 64)), [target] * 2)["total"].backward()
    assert not [
        parameter_name
        for parameter_name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]


def test_another_mobile_former_can_be_the_backbone():
    model = detection.create_detector("retinanet_mf_26m", 3, backbone="mobile_former_96m")
    assert model.backbone.channels == mobile_former.create_model("mobile_former_96m").backbone.channels


@pytest.mark.parametrize(
    ("name", "backbone", "message"),
    [
        ("retinanet_mf_26m", "mobile_former_27m", "no backbone 'mobile_former_27m'.*did you mean 'mobile_former_26m'"),
        ("e2e_mf_26m", "transformers/resnet20", "no model transformers/resnet20"),
    ],
)
def test_an_unknown_backbone_is_an_error(name, backbone, message):
    with pytest.raises(InputError, match=message):
        detection.create_detector(name, 3, backbone=backbone)


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(mobile_former.mobile_former_26m(num_classes=3).state_dict(), tmp_path / "mobile_former.pth")
    with pytest.raises(InputError, match=r"mobile_former\.pth does not fit ResNetBackbone"):
        detection.create_detector(
            "retinanet_mf_26m", 3, backbone="transformers/resnet18", pretrained=tmp_path / "mobile_former.pth"
        )


def test_weights_of_the_whole_detector_are_loaded_with_any_backbone(tmp_path):
    torch.manual_seed(0)
    first = detection.create_detector("retinanet_mf_26m", 3, backbone="transformers/resnet18")
    torch.save(first.state_dict(), tmp_path / "detector.pth")
    second = detection.create_detector(
        "retinanet_mf_26m", 3, backbone="transformers/resnet18", pretrained=tmp_path / "detector.pth"
    )
    loaded = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


# The last map at each stride, from the papers' tables. MobileNetV2's paper takes its map of 320 channels.
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("mobilenetv2_035", [16, 32, 112]),
        ("mobilenetv3_small_050", [16, 24, 48]),
        ("mobilenetv4_conv_small_035", [24, 32, 48]),
        ("ghostnet_050", [20, 56, 80]),
        ("efficientnet_b0", [40, 112, 320]),
        ("resnet10t", [128, 256, 512]),
        ("mambaout_femto", [96, 192, 288]),  # its own maps are (B, H, W, C)
    ],
)
def test_a_network_of_timm_gives_the_last_map_at_each_stride(timm, name, channels):
    model = detection.create_detector("retinanet_mf_26m", 3, backbone=f"timm/{name}")
    assert [model.backbone.channels[stride] for stride in (8, 16, 32)] == channels
    with torch.no_grad():
        maps, _ = model.backbone(torch.zeros(1, 3, 64, 96))
        outputs = model(torch.zeros(1, 3, 64, 96))
    for stride, count in zip((8, 16, 32), channels, strict=True):
        assert maps[stride].shape == (1, count, 64 // stride, 96 // stride)
    assert outputs["logits"].shape[2] == 3


def test_a_backbone_of_timm_loads_the_weights_of_a_classifier(timm, tmp_path):
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = detection.create_detector(
        "retinanet_mf_26m", 2, backbone="timm/mobilenetv3_small_050", pretrained=tmp_path / "weights.pth"
    ).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.bn1(theirs.conv_stem(images))
        torch.testing.assert_close(model.backbone(images)[0][32], theirs.blocks[:-1](x))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("levit_128s", r"has maps at strides \[16, 32, 64\], but a detector needs \[8, 16, 32\]: choose another"),
        ("levit_384_s8", r"does not take images of any size \(The size of tensor .*\): choose another network"),
        ("swin_tiny_patch4_window7_224", r"does not take images of any size \(Input height \(64\) .*: choose another"),
    ],
)
def test_a_network_of_timm_without_the_maps_is_refused_in_one_line(timm, name, message):
    with pytest.raises(InputError, match=rf"^timm/{name} {message}") as error:
        create_backbone(f"timm/{name}")
    assert "\n" not in str(error.value)


# Table of section 4.2: 12.3 M and 162 G. As for the other detectors, ours may be up to 2.5 % and 5 % lower.
def test_retinanet_with_mobilenetv3_of_timm_has_the_published_cost(timm):
    model = detection.create_detector("retinanet_mf_294m", 80, backbone="timm/mobilenetv3_large_100")
    cost = mobile_former.cost(model, (800, 1280))
    assert cost.params / 1e6 == pytest.approx(12.3, rel=0.025)
    assert 0.95 * 162 <= cost.madds / 1e9 <= 162


@pytest.mark.slow
def test_the_commands_accept_the_name_of_a_backbone(shapes, tmp_path):
    options = ("--data.root", str(shapes), "--data.short_sides", "[64]", "--data.short_side", "64")
    result = run_module(
        "detection.fit", "--config", "finetune.yaml", *options, "--model.name", "retinanet_mf_26m",
        "--model.backbone", "transformers/resnet18", "--trainer.max_epochs", "1", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    checkpoint = "runs/detection/retinanet_mf_26m-transformers-resnet18-shapes/checkpoints/best.ckpt"
    result = run_module("detection.validate", "--ckpt_path", checkpoint, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "retinanet_mf_26m-transformers/resnet18 on val of shapes" in result.stdout
