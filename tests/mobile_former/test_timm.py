"""The models under timm's names: with timm, if it can be imported, and with a stand-in of its registry."""

import importlib
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import mobile_former
from mobile_former import InputError
from tests.conftest import ROOT

# The parts of timm that a model uses: registration, creation, configurations.
STAND_IN = {
    "timm/__init__.py": "from timm.models import create_model, is_model, list_models\n",
    "timm/models.py": """
        import sys
        from collections import defaultdict, deque
        from dataclasses import asdict, dataclass, field

        _models = {}
        registered = []


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


        @dataclass
        class DefaultCfg:
            tags: deque = field(default_factory=deque)
            cfgs: dict = field(default_factory=dict)

            @property
            def default(self):
                return self.cfgs[self.tags[0]]


        def generate_default_cfgs(cfgs):
            out = defaultdict(DefaultCfg)
            for name, cfg in cfgs.items():
                model, _, tag = name.partition(".")
                out[model].tags.append(tag)
                out[model].cfgs[tag] = PretrainedCfg(**cfg)
            return out


        def register_model(function):
            module = sys.modules[function.__module__]
            module.default_cfgs[function.__name__].default  # every model has a configuration
            module.__all__ = [*getattr(module, "__all__", ()), function.__name__]
            registered.append(function.__name__)
            _models[function.__name__] = function
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
    """timm with the models registered."""
    patch = pytest.MonkeyPatch()
    if request.param != "timm":
        forget_timm(patch)
        patch.syspath_prepend(request.getfixturevalue("stand_in"))
    try:
        module = importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        pytest.skip(f"timm cannot be imported: {error}")
    importlib.import_module("mobile_former.timm")
    yield module
    if request.param != "timm":
        for name in ("timm", "timm.models", "mobile_former.timm"):
            del sys.modules[name]
        del mobile_former.timm
    patch.undo()


@pytest.fixture
def timm_models(timm):
    """The module that registers the models."""
    return sys.modules["mobile_former.timm"]


def forget_timm(patch):
    """Let the next import of timm or ``mobile_former.timm`` run the module again."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm" or name == "mobile_former.timm"]:
        patch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = mobile_former.mobile_former_26m(num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "seven.safetensors"
    mobile_former.save_weights(model, path)
    return path, model


def test_only_the_import_of_mobile_former_timm_registers_the_models_and_only_once(stand_in):
    code = """
        import sys

        before = list(sys.meta_path)
        import mobile_former

        assert not {"timm", "torchvision", "huggingface_hub", "mobile_former.timm"} & set(sys.modules)
        import timm

        assert timm.list_models() == []
        assert sys.meta_path == before
        import mobile_former.timm
        import mobile_former.timm
        from mobile_former.timm import *

        assert sys.meta_path == before
        assert timm.models.registered == mobile_former.list_models()
        assert timm.list_models() == sorted(mobile_former.list_models())
        assert mobile_former_26m is timm.models._models["mobile_former_26m"]
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, stand_in)))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("reason", ["missing", "operator torchvision::nms does not exist\nat line 2"])
def test_without_timm_the_import_fails_in_one_line_and_can_be_repeated(reason, stand_in, tmp_path, monkeypatch):
    forget_timm(monkeypatch)
    if reason == "missing":
        monkeypatch.setitem(sys.modules, "timm", None)
    else:
        (tmp_path / "timm.py").write_text(f"raise RuntimeError({reason!r})\n")
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"^mobile_former\.timm needs timm, .*: pip install timm$") as error:
        importlib.import_module("mobile_former.timm")
    assert "\n" not in str(error.value)
    assert reason == "missing" or "(operator torchvision::nms does not exist)" in str(error.value)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(stand_in)
    importlib.import_module("mobile_former.timm")
    assert sys.modules["timm.models"].registered == mobile_former.list_models()
    for name in ("timm", "timm.models", "mobile_former.timm"):
        del sys.modules[name]
    del mobile_former.timm


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
    with pytest.raises((InputError, RuntimeError), match="global_pool is 'max'"):
        model.reset_classifier(7, "max")


def test_weights_that_do_not_exist_are_an_error(timm, tmp_path):
    with pytest.raises(InputError, match=r"no weights of mobile_former_26m to download.*pretrained_cfg_overlay"):
        timm.create_model("mobile_former_26m", pretrained=True)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        timm.create_model("mobile_former_26m", True, pretrained_cfg_overlay={"file": tmp_path / "nowhere"})
    with pytest.raises((InputError, RuntimeError), match="tag"):
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
