"""What is shared by both tasks' models of other libraries."""

import sys
import types

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
def test_a_baseline_is_known_by_its_library(name, expected):
    assert is_baseline(name) is expected


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_library_that_is_missing_is_named_with_what_to_install(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library}/resnet50 comes from {library}.*pip install .*\[baselines\]"):
        import_library(library, f"{library}/resnet50")


@pytest.fixture
def timm(monkeypatch):
    """A stand-in for timm, which needs torchvision; it keeps what it was asked for."""
    module = types.ModuleType("timm")
    module.asked = []
    module.list_models = lambda: ["resnet50", "levit_128s"]
    module.is_model = lambda name: name in module.list_models()
    module.get_pretrained_cfg = lambda name: types.SimpleNamespace(classifier="fc")

    def create_model(name, **options):
        module.asked.append((name, options))
        if options.get("drop_path_rate"):
            raise TypeError("unexpected keyword argument 'drop_path_rate'")
        return torch.nn.ModuleDict({"conv": torch.nn.Linear(3, 2, bias=False), "fc": torch.nn.Linear(2, 1000)})

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_timm_is_asked_for_the_model_without_options_that_are_not_given(timm):
    timm_model("resnet50", num_classes=3, drop_rate=None)
    assert timm.asked == [("resnet50", {"num_classes": 3})]


def test_timm_is_given_the_weights_of_a_file_and_their_number_of_classes(timm, tmp_path):
    state = {"conv.weight": torch.ones(2, 3), "fc.weight": torch.zeros(7, 2), "fc.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "weights.pth")
    timm_model("resnet50", tmp_path / "weights.pth", num_classes=3)
    _, options = timm.asked[-1]
    assert options["pretrained"] is True
    assert options["pretrained_cfg_overlay"]["num_classes"] == 7
    assert options["pretrained_cfg_overlay"]["state_dict"].keys() == state.keys()


def test_a_file_that_lacks_what_timm_s_model_has_is_refused(timm, tmp_path):
    torch.save({"convolution.weight": torch.ones(2, 3)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"does not fit timm/resnet50: 1 of its 3 tensors are missing, first 'conv\."):
        timm_model("resnet50", tmp_path / "weights.pth", features_only=True)


def test_a_name_or_an_option_that_timm_does_not_know_is_told(timm):
    with pytest.raises(InputError, match=r"timm has no model 'resnet5': did you mean 'resnet50'\?"):
        timm_model("resnet5")
    with pytest.raises(InputError, match=r"timm cannot build resnet50 with these options: .*drop_path_rate"):
        timm_model("resnet50", drop_path_rate=0.1)


def test_a_resnet_that_does_not_exist_is_named():
    with pytest.raises(InputError, match=r"no model transformers/resnet51: did you mean 'resnet50'"):
        resnet_config("resnet51")


def test_a_backbone_takes_its_part_of_a_classifier_and_returns_the_rest(tmp_path):
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


def test_a_file_of_another_architecture_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.save(transformers.ResNetModel(resnet_config("resnet18")).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"resnet18\.pth does not fit ResNetModel: .* first 'encoder"):
        load_transformers_weights(transformers.ResNetModel(resnet_config("resnet34")), tmp_path / "resnet18.pth")
