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
def test_the_name_of_a_baseline_begins_with_its_library(name, expected):
    assert is_baseline(name) is expected


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_error_for_a_missing_library_names_the_extra(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library}/resnet50 comes from {library}.*pip install .*\[baselines\]"):
        import_library(library, f"{library}/resnet50")


@pytest.fixture
def timm(monkeypatch):
    """A stand-in for timm, which needs torchvision. It records its calls."""
    module = types.ModuleType("timm")
    module.calls = []
    module.list_models = lambda: ["resnet50", "levit_128s"]
    module.is_model = lambda name: name in module.list_models()
    module.get_pretrained_cfg = lambda name: types.SimpleNamespace(classifier="fc")

    def create_model(name, **options):
        module.calls.append((name, options))
        if options.get("drop_path_rate"):
            raise TypeError("unexpected keyword argument 'drop_path_rate'")
        return torch.nn.ModuleDict({"conv": torch.nn.Linear(3, 2, bias=False), "fc": torch.nn.Linear(2, 1000)})

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_timm_gets_no_options_that_are_none(timm):
    timm_model("resnet50", num_classes=3, drop_rate=None)
    assert timm.calls == [("resnet50", {"num_classes": 3})]


def test_timm_gets_the_weights_of_a_file_and_their_number_of_classes(timm, tmp_path):
    state = {"conv.weight": torch.ones(2, 3), "fc.weight": torch.zeros(7, 2), "fc.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "weights.pth")
    timm_model("resnet50", tmp_path / "weights.pth", num_classes=3)
    _, options = timm.calls[-1]
    assert options["pretrained"] is True
    assert options["pretrained_cfg_overlay"]["num_classes"] == 7
    assert options["pretrained_cfg_overlay"]["state_dict"].keys() == state.keys()


def test_a_file_without_a_tensor_of_the_model_is_an_error(timm, tmp_path):
    torch.save({"convolution.weight": torch.ones(2, 3)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"does not fit timm/resnet50: 1 of its 3 tensors are missing, first 'conv\."):
        timm_model("resnet50", tmp_path / "weights.pth", features_only=True)


def test_a_name_or_an_option_that_timm_does_not_accept_is_an_error(timm):
    with pytest.raises(InputError, match=r"timm has no model 'resnet5': did you mean 'resnet50'\?"):
        timm_model("resnet5")
    with pytest.raises(InputError, match=r"timm cannot build resnet50 with these options: .*drop_path_rate"):
        timm_model("resnet50", drop_path_rate=0.1)


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
