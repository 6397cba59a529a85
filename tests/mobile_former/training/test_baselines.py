import sys

import pytest
import torch

from mobile_former import InputError
from mobile_former.training.baselines import (
    import_library,
    is_baseline,
    load_transformers_weights,
    resnet_config,
    timm_model,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("timm/resnet50", True), ("transformers/resnet18", True), ("mobile_former_26m", False), ("timm", False)],
)
def test_the_name_of_a_baseline_begins_with_its_library(name, expected):
    assert is_baseline(name) is expected


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_error_for_a_missing_library_names_the_extra(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library}/resnet50 comes from {library}.*pip install .*\[baselines\]"):
        import_library(library, f"{library}/resnet50")


def test_timm_gets_the_options_that_are_not_none(timm):
    model = timm_model("mobilenetv3_small_050", num_classes=3, drop_rate=None, drop_path_rate=0.1)
    assert model.get_classifier().out_features == 3


# LeViT has two last linear layers.
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "ghostnet_050", "levit_128s"])
def test_timm_gets_the_weights_of_a_file_with_other_classes(timm, tmp_path, name):
    theirs = timm.create_model(name, num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for classes in (3, 7):
            model = timm_model(name, tmp_path / "weights.pth", num_classes=classes).eval()
            assert model(images).shape == (1, classes)
            torch.testing.assert_close(model.forward_features(images), theirs.forward_features(images))
        torch.testing.assert_close(model(images), theirs(images))


def test_only_models_for_images_of_one_size_get_the_size(timm):
    images = torch.zeros(1, 3, 96, 128)
    assert timm_model("levit_128s", image_size=(96, 128), num_classes=3).eval()(images).shape == (1, 3)
    assert timm_model("mobilenetv3_small_050", image_size=(96, 128), num_classes=3).eval()(images).shape == (1, 3)


def test_a_file_without_a_tensor_of_the_model_is_an_error(timm, tmp_path):
    torch.save({"convolution.weight": torch.ones(2, 3)}, tmp_path / "weights.pth")
    message = r"does not fit timm/resnet10t: \d+ of its \d+ tensors are missing, first 'conv1\."
    with pytest.raises(InputError, match=message):
        timm_model("resnet10t", tmp_path / "weights.pth", features_only=True)


def test_a_name_or_an_option_that_timm_does_not_accept_is_an_error(timm):
    with pytest.raises(InputError, match=r"timm has no model 'resnet5': did you mean 'resnet50'"):
        timm_model("resnet5")
    with pytest.raises(InputError, match=r"timm cannot build vgg11 with these options: .*drop_path_rate"):
        timm_model("vgg11", drop_path_rate=0.1)


def test_the_error_for_an_unknown_resnet_names_it():
    with pytest.raises(InputError, match=r"no model transformers/resnet51: did you mean 'resnet50'"):
        resnet_config("resnet51")


def test_a_backbone_loads_the_weights_of_a_classifier_and_returns_the_rest(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    classifier = transformers.ResNetForImageClassification(resnet_config("resnet18", num_labels=5))
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    torch.manual_seed(1)
    backbone = transformers.ResNetBackbone(resnet_config("resnet18", out_features=["stage4"]))
    rest = load_transformers_weights(backbone, tmp_path / "classifier.pth")
    assert sorted(rest) == ["classifier.1.bias", "classifier.1.weight"]
    for name, tensor in classifier.resnet.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], tensor), name


def test_a_file_of_another_architecture_is_an_error(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.save(transformers.ResNetModel(resnet_config("resnet18")).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"resnet18\.pth does not fit ResNetModel: .* first 'encoder"):
        load_transformers_weights(transformers.ResNetModel(resnet_config("resnet34")), tmp_path / "resnet18.pth")
