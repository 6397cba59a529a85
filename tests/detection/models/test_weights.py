import logging

import pytest
import torch
from pytorch_lightning import Trainer

import detection
import mobile_former
from classification.module import ClassificationModule
from detection.module import DetectionModule
from mobile_former.errors import InputError
from tests.conftest import reference_state_dict

OPTIONS = {"focal": True, "refine_boxes": True, "dense_head": True, "choose_queries": True}


def detector_of(name="e2e_mf_26m", num_classes=3, seed=1, **options):
    torch.manual_seed(seed)
    return detection.create_detector(name, num_classes, **(OPTIONS | options))


def checkpoint_of(module, path):
    """Write the checkpoint that ``fit`` writes of a module."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_model_summary=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return mobile_former.mobile_former_26m(num_classes=5)


@pytest.fixture(scope="module")
def detector():
    return detector_of(seed=0)


@pytest.mark.parametrize("kind", [".ckpt", ".safetensors", "authors"])
def test_only_the_backbone_of_a_classifier_is_loaded(kind, classifier, tmp_path, caplog):
    path = tmp_path / f"weights{kind}"
    expected = classifier.state_dict()
    if kind == ".safetensors":
        mobile_former.save_weights(classifier, path)
    elif kind == ".ckpt":
        module = ClassificationModule(list("abcde"), "mobile_former_26m")
        module.model.load_state_dict(expected)
        checkpoint_of(module, path)
    else:
        state = reference_state_dict("mobile_former_26m")[1]
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 449}, path)
        model = mobile_former.mobile_former_26m()
        mobile_former.load_weights(model, path)
        expected = model.state_dict()
    fresh, loaded = detector_of().state_dict(), detector_of(pretrained=path).state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, expected[name] if name.startswith("backbone.") else fresh[name]), name
    assert any(not torch.equal(loaded[name], fresh[name]) for name in loaded)
    assert not warnings(caplog)


def test_the_error_about_another_backbone_names_both_and_the_file(classifier, tmp_path):
    path = tmp_path / "weights.safetensors"
    mobile_former.save_weights(classifier, path)
    with pytest.raises(InputError, match=r"mobile_former_26m.*mobile_former_52m") as error:
        detector_of("e2e_mf_52m", pretrained=path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("options", [OPTIONS, dict.fromkeys(OPTIONS, False)], ids=["all options", "published"])
@pytest.mark.parametrize("kind", [".ckpt", ".pth"])
def test_all_weights_of_a_detector_are_loaded(kind, options, tmp_path, caplog):
    path = tmp_path / f"weights{kind}"
    torch.manual_seed(0)
    module = DetectionModule(list("abc"), "e2e_mf_26m", **options)
    if kind == ".ckpt":
        checkpoint_of(module, path)
    else:
        torch.save(module.model.state_dict(), path)
    loaded = detector_of(pretrained=path, **options).state_dict()
    for name, value in module.model.state_dict().items():
        assert torch.equal(loaded[name], value), name
    assert not warnings(caplog)


@pytest.mark.parametrize("options", [OPTIONS, dict.fromkeys(OPTIONS, False)], ids=["all options", "published"])
@pytest.mark.parametrize("num_classes", [1, 4])
def test_all_but_the_class_layers_of_a_detector_of_other_classes_are_loaded(num_classes, options, tmp_path, caplog):
    source = detector_of(seed=0, **options).state_dict()
    path = tmp_path / "weights.pth"
    torch.save(source, path)
    fresh = detector_of(num_classes=num_classes, **options).state_dict()
    loaded = detector_of(num_classes=num_classes, pretrained=path, **options).state_dict()
    class_layers = {name for name in fresh if fresh[name].shape != source[name].shape}
    assert class_layers
    assert len(class_layers) < 10
    for name, value in loaded.items():
        assert torch.equal(value, fresh[name] if name in class_layers else source[name]), name
    (warning,) = warnings(caplog)
    assert str(path) in warning
    assert "another number of classes" in warning


def test_the_error_about_a_detector_of_another_name_or_options_gives_an_example(detector, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(detector.state_dict(), path)
    with pytest.raises(InputError, match=r"does not fit this detector.*mobile_former_52m"):
        detector_of("e2e_mf_52m", pretrained=path)
    with pytest.raises(InputError, match=r"unknown entries, first 'blocks.1.box_features"):
        detector_of(dense_head=False, choose_queries=False, pretrained=path)
    torch.save(detector_of(dense_head=False, choose_queries=False).state_dict(), path)
    with pytest.raises(InputError, match=r"it lacks \d+ entries, first 'blocks.1.box_features"):
        detector_of(pretrained=path)


def test_a_missing_file_and_a_file_of_another_model_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        detector_of(pretrained=tmp_path / "nowhere.pth")
    torch.save({"backbone.tokens": torch.zeros(2)}, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"part\.pth holds no published Mobile-Former"):
        detector_of(pretrained=tmp_path / "part.pth")
