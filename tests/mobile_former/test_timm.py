"""The models under timm's names."""

import importlib
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import mobile_former
from mobile_former import InputError
from tests.conftest import ROOT, TIMM_PATHS


@pytest.fixture
def timm(timm):
    """timm with the models registered."""
    importlib.import_module("mobile_former.timm")
    return timm


@pytest.fixture
def timm_models(timm):
    """The module that registers the models."""
    return sys.modules["mobile_former.timm"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = mobile_former.mobile_former_26m(num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "seven.safetensors"
    mobile_former.save_weights(model, path)
    return path, model


def test_only_the_import_of_mobile_former_timm_registers_the_models_and_only_once(timm):
    code = """
        import sys, warnings

        warnings.simplefilter("error")
        import mobile_former

        assert not {"timm", "torchvision", "huggingface_hub", "mobile_former.timm"} & set(sys.modules)
        import timm

        assert not timm.list_models("mobile_former*")
        before = list(sys.meta_path)
        import mobile_former.timm
        from mobile_former.timm import *

        assert sys.meta_path == before
        assert timm.list_models("mobile_former*") == mobile_former.list_models()
        assert mobile_former_26m is timm.models.model_entrypoint("mobile_former_26m")
        importlib.reload(mobile_former.timm)
        assert timm.models.model_entrypoint("mobile_former_26m") is mobile_former.timm.mobile_former_26m
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *TIMM_PATHS)))}
    command = [sys.executable, "-c", "import importlib\n" + textwrap.dedent(code)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("reason", ["missing", "operator torchvision::nms does not exist\nat line 2"])
def test_without_timm_the_import_fails_in_one_line(reason, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm" or name == "mobile_former.timm"]:
        monkeypatch.delitem(sys.modules, name)
    if reason == "missing":
        monkeypatch.setitem(sys.modules, "timm", None)
    else:
        (tmp_path / "timm.py").write_text(f"raise RuntimeError({reason!r})\n")
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"^mobile_former\.timm needs timm, .*: pip install timm$") as error:
        importlib.import_module("mobile_former.timm")
    assert "\n" not in str(error.value)
    assert reason == "missing" or "(operator torchvision::nms does not exist)" in str(error.value)


def test_timm_s_model_computes_the_same_as_this_package_s(timm, weights):
    path, expected = weights
    overlay = {"file": str(path)}
    model = timm.create_model(
        "mobile_former_26m", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7
    ).eval()
    images = torch.randn(2, 3, 48, 64)
    with torch.inference_mode():
        logits = expected(images)
        torch.testing.assert_close(model(images), logits)
        features = model.forward_features(images)
        assert features[0].shape == (2, model.num_features, 2, 2)
        torch.testing.assert_close(model.forward_head(features), logits)
        hidden = model.forward_head(features, pre_logits=True)
        assert hidden.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.get_classifier()(hidden), logits)
        model.reset_classifier(0)
        torch.testing.assert_close(model(images), hidden)
        assert model.num_classes == 0
        model.reset_classifier(3, global_pool="avg")
        assert model(images).shape == (2, 3)
        without = timm.create_model("mobile_former_26m", True, pretrained_cfg_overlay=overlay, num_classes=0).eval()
        torch.testing.assert_close(without(images), hidden)


def test_features_only_returns_the_requested_maps(timm, weights):
    path, expected = weights
    images = torch.randn(1, 3, 70, 64)
    with torch.inference_mode():
        maps, _ = expected.forward_features(images)
    for out_indices, strides in ((None, [4, 8, 16, 32]), ((1, 2), [8, 16]), ((3, 0), [32, 4]), (2, [16, 32])):
        model = timm.create_model(
            "mobile_former_26m",
            pretrained=True,
            pretrained_cfg_overlay={"file": path},
            features_only=True,
            out_indices=out_indices,
        ).eval()
        assert model.feature_info.reduction() == strides
        with torch.inference_mode():
            found = model(images)
        assert [tuple(each.shape[1:2]) for each in found] == [(channels,) for channels in model.feature_info.channels()]
        for stride, each in zip(strides, found, strict=True):
            torch.testing.assert_close(each, maps[stride])
        assert all(model.get_submodule(name) is not None for name in model.feature_info.module_name())
    with pytest.raises(InputError, match=r"out_indices is \(1, 2, 3, 4\): the maps are 0, 1, 2 and 3, at strides \[4,"):
        timm.create_model("mobile_former_26m", features_only=True, out_indices=(1, 2, 3, 4))


def test_timm_s_options_reach_the_model(timm):
    model = timm.create_model("mobile_former_26m", num_classes=5, in_chans=1, drop_rate=0.3, drop_path_rate=0.2)
    assert model.classifier.dropout.p == 0.3
    assert model.backbone.blocks[-1].to_former.drop_path.rate == 0.2
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    model.set_grad_checkpointing()
    assert model.backbone.blocks[-1].checkpoint_gradients
    model.set_grad_checkpointing(False)
    assert not model.backbone.blocks[-1].checkpoint_gradients


def test_the_description_contains_the_preprocessing(timm, timm_models):
    model = timm.create_model("mobile_former_52m")
    assert model.default_cfg is model.pretrained_cfg
    config = model.pretrained_cfg
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 224, 224), 0.875, "bilinear")
    assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert model.get_submodule(config["classifier"]) is model.get_classifier()
    assert model.get_submodule(config["first_conv"]).in_channels == 3
    default_cfg = timm_models.default_cfgs["mobile_former_52m"]
    assert not hasattr(default_cfg, "to_dict")
    for own in (default_cfg, default_cfg.default, default_cfg.default.to_dict()):
        model = timm.create_model("mobile_former_52m", pretrained_cfg=own, pretrained_cfg_overlay={"num_classes": 4})
        assert model.num_classes == 4
        assert model.pretrained_cfg["mean"] == config["mean"]


def test_timm_s_model_is_saved_for_the_hub_and_supports_one_pooling(timm, weights, tmp_path):
    _, expected = weights
    model = timm.create_model("mobile_former_26m", num_classes=7)
    model.load_state_dict(expected.state_dict())
    model.save_pretrained(tmp_path / "seven")
    again = mobile_former.MobileFormer.from_pretrained(tmp_path / "seven")
    assert torch.equal(again.classifier.logits.weight, expected.classifier.logits.weight)
    assert timm.create_model("mobile_former_26m", global_pool="avg").num_classes == 1000
    for act in (
        lambda: model.reset_classifier(7, "max"),
        lambda: timm.create_model("mobile_former_26m", global_pool="max"),
    ):
        with pytest.raises(InputError, match="global_pool is 'max': Mobile-Former supports only 'avg'"):
            act()
    with pytest.raises(InputError, match="mobile_former_26m has no option 'img_size': leave it out"):
        timm.create_model("mobile_former_26m", img_size=128)


def test_timm_s_own_tools_work_with_the_models(timm, weights, tmp_path):
    from timm.data import resolve_model_data_config
    from timm.models import save_for_hf
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    path, expected = weights
    images = torch.randn(2, 3, 32, 32)
    model = timm.create_model("mobile_former_26m", num_classes=7, checkpoint_path=str(path), scriptable=False).eval()
    with torch.inference_mode():
        logits = expected(images)
        torch.testing.assert_close(model(images), logits)
        average = ModelEmaV3(model)
        average.update(model)
        torch.testing.assert_close(average.module(images), logits)
        save_for_hf(model, tmp_path / "saved")
        again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
        torch.testing.assert_close(again(images), logits)
    config = resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 224, 224), 0.875, "bilinear")
    groups = create_optimizer_v2(model, opt="adamw", weight_decay=0.1, layer_decay=0.7).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_weights_that_do_not_exist_are_an_error(timm, tmp_path):
    with pytest.raises(InputError, match=r"no weights of mobile_former_26m to download.*pretrained_cfg_overlay"):
        timm.create_model("mobile_former_26m", pretrained=True)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        timm.create_model("mobile_former_26m", True, pretrained_cfg_overlay={"file": tmp_path / "nowhere"})
    with pytest.raises(InputError, match="tag"):
        timm.create_model("mobile_former_26m.in1k", pretrained=True)


def test_a_model_on_the_hub_is_fetched_for_timm(timm, timm_models, weights, tmp_path, monkeypatch):
    _, expected = weights
    usage = mobile_former.Usage(image_size=96, crop_fraction=1.0, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    expected.save_pretrained(tmp_path / "seven", usage)
    monkeypatch.setattr(timm_models, "fetch", lambda repository, cache_dir: tmp_path / repository.split("/")[1])
    model = timm.create_model(
        "mobile_former_26m", True, pretrained_cfg_overlay={"hf_hub_id": "me/seven"}, cache_dir="cache"
    )
    assert torch.equal(model.classifier.logits.weight, expected.classifier.logits.weight)
    assert (model.pretrained_cfg["input_size"], model.pretrained_cfg["crop_pct"]) == ((3, 96, 96), 1.0)
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
