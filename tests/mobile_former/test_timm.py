"""The models under timm's names: with timm where it can be imported, and with a stand-in of its registry."""

import importlib
import logging
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import mobile_former
from mobile_former import InputError
from mobile_former import timm as timm_models
from tests.conftest import ROOT

# As much of timm as a model meets: how it is registered, asked for and described.
STAND_IN = {
    "timm/__init__.py": "from timm.models import create_model, is_model, list_models\n",
    "timm/models.py": """
        import sys
        from dataclasses import asdict, dataclass

        _models = {}
        configs = {}


        @dataclass
        class PretrainedCfg:
            url: str = None
            file: str = None
            hf_hub_id: str = None
            architecture: str = None
            input_size: tuple = (3, 224, 224)
            interpolation: str = "bicubic"
            crop_pct: float = 0.875
            mean: tuple = (0.5, 0.5, 0.5)
            std: tuple = (0.5, 0.5, 0.5)
            num_classes: int = 1000
            pool_size: tuple = None
            first_conv: str = None
            classifier: str = None

            def to_dict(self):
                return {name: value for name, value in asdict(self).items() if value is not None}


        def generate_default_cfgs(cfgs):
            return {name: PretrainedCfg(**cfg) for name, cfg in cfgs.items()}


        def register_model(function):
            module = sys.modules[function.__module__]
            _models[function.__name__] = function
            configs[function.__name__] = module.default_cfgs[function.__name__]
            return function


        def is_model(name):
            return name in _models


        def list_models(filter=""):
            return sorted(name for name in _models if name.startswith(filter.rstrip("*")))


        def create_model(name, pretrained=False, pretrained_cfg=None, **given):
            always = {name: given.pop(name, None) for name in ("pretrained_cfg_overlay", "cache_dir")}
            options = {option: value for option, value in given.items() if value is not None}
            if "." in name:
                name, pretrained_cfg = name.split(".")
            return _models[name](pretrained=pretrained, pretrained_cfg=pretrained_cfg, **always, **options)


        class FeatureInfo:
            def __init__(self, feature_info, out_indices):
                self.info = feature_info
                self.out_indices = out_indices

            def get(self, key):
                return [self.info[index][key] for index in self.out_indices]

            def channels(self):
                return self.get("num_chs")

            def reduction(self):
                return self.get("reduction")

            def module_name(self):
                return self.get("module")
    """,
}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    for name, text in STAND_IN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


@pytest.fixture(scope="module", params=["timm", "its stand-in"])
def timm(request):
    """timm, into which the models are registered."""
    patch = pytest.MonkeyPatch()
    if request.param == "timm":
        try:
            module = importlib.import_module("timm")
        except (ImportError, RuntimeError) as error:  # a torchvision of another torch
            pytest.skip(f"timm cannot be imported: {error}")
    else:
        for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
            patch.delitem(sys.modules, name)
        patch.syspath_prepend(request.getfixturevalue("stand_in"))
        module = importlib.import_module("timm")
        timm_models.register()
    yield module
    if request.param != "timm":
        for name in ("timm", "timm.models"):
            del sys.modules[name]
    patch.undo()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = mobile_former.mobile_former_26m(num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "seven.safetensors"
    mobile_former.save_weights(model, path)
    return path, model


def program(code, *paths):
    """What a program prints, with modules in some more places."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths)))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_models_are_registered_where_timm_is_imported_first(stand_in):
    listed = program("import timm, mobile_former; print(*timm.list_models('mobile_former*'))", stand_in).split()
    assert listed == sorted(mobile_former.list_models())


def test_the_models_are_registered_where_timm_is_imported_later_even_after_it_failed(stand_in, tmp_path):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    code = f"""
        import importlib
        import sys
        import mobile_former

        assert not {{"timm", "torchvision", "huggingface_hub", "mobile_former.timm"}} & set(sys.modules)
        mobile_former.mobile_former_26m()
        try:
            import timm
        except RuntimeError as error:
            print(error)
        sys.path.insert(0, {str(stand_in)!r})
        import timm

        print(*timm.list_models("mobile_former*"))
    """
    error, listed = program(code, tmp_path).splitlines()
    assert error == "operator torchvision::nms does not exist"
    assert listed.split() == sorted(mobile_former.list_models())


def test_a_registry_of_another_kind_is_told_and_harms_nothing(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "timm", object())
    monkeypatch.setitem(sys.modules, "timm.models", object())
    with caplog.at_level(logging.WARNING):
        timm_models.register()
    assert "Mobile-Former's models were not registered with timm (AttributeError" in caplog.text


def test_timm_s_model_computes_what_this_package_s_does(timm, weights):
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


def test_features_only_gives_the_maps_that_are_wanted(timm, weights):
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


def test_the_description_tells_how_images_are_prepared(timm):
    model = timm.create_model("mobile_former_52m")
    assert model.default_cfg is model.pretrained_cfg
    config = model.pretrained_cfg
    assert (config["input_size"], config["crop_pct"], config["interpolation"]) == ((3, 224, 224), 0.875, "bilinear")
    assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert model.get_submodule(config["classifier"]) is model.get_classifier()
    assert model.get_submodule(config["first_conv"]).in_channels == 3
    own = timm_models.default_cfgs["mobile_former_52m"]
    assert (
        timm.create_model(
            "mobile_former_52m", pretrained_cfg=own, pretrained_cfg_overlay={"num_classes": 4}
        ).num_classes
        == 4
    )


def test_timm_s_model_is_saved_for_the_hub_and_pools_in_one_way(timm, weights, tmp_path):
    _, expected = weights
    model = timm.create_model("mobile_former_26m", num_classes=7)
    model.load_state_dict(expected.state_dict())
    model.save_pretrained(tmp_path / "seven")
    again = mobile_former.MobileFormer.from_pretrained(tmp_path / "seven")
    assert torch.equal(again.classifier.logits.weight, expected.classifier.logits.weight)
    with pytest.raises((InputError, RuntimeError), match="global_pool is 'max'"):
        model.reset_classifier(7, "max")


def test_weights_that_are_not_to_be_had_are_told(timm, tmp_path):
    with pytest.raises(InputError, match=r"no weights of mobile_former_26m to download.*pretrained_cfg_overlay"):
        timm.create_model("mobile_former_26m", pretrained=True)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        timm.create_model("mobile_former_26m", True, pretrained_cfg_overlay={"file": tmp_path / "nowhere"})
    with pytest.raises((InputError, RuntimeError), match="tag"):
        timm.create_model("mobile_former_26m.in1k", pretrained=True)


def test_a_published_model_is_fetched_for_timm(timm, weights, tmp_path, monkeypatch):
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
