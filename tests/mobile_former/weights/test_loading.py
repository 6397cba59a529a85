import logging

import pytest
import torch
from safetensors import safe_open

import mobile_former
from mobile_former import InputError


def write(path, content):
    torch.save(content, path)
    return path


def model_26m(**options):
    return mobile_former.mobile_former_26m(**options)


def same(model, state):
    return torch.equal(model.backbone.tokens, state["tokens.weight"])


def test_every_wrapping_of_the_authors_is_read(authors, tmp_path):
    prefixed = {f"module.{name}": tensor for name, tensor in authors.items()}
    for number, content in enumerate(
        [
            authors,
            prefixed,
            {"state_dict": authors},
            {"state_dict": prefixed, "epoch": 449, "arch": "mobile_former_26m"},
        ]
    ):
        model = model_26m()
        loaded = mobile_former.load_weights(model, write(tmp_path / f"{number}.pth", content))
        assert same(model, authors)
        assert not loaded.new_head
        assert loaded.entry == ("file" if number < 2 else "state_dict")


def test_plain_weights_are_loaded_unless_averaged_ones_are_requested(authors, tmp_path, caplog):
    averaged = {name: tensor + 1 for name, tensor in authors.items()}
    path = write(tmp_path / "both.pth.tar", {"state_dict": authors, "state_dict_ema": averaged})
    model = model_26m()
    with caplog.at_level(logging.WARNING):
        assert mobile_former.load_weights(model, path).entry == "state_dict"
    assert "plain" in caplog.text
    assert same(model, authors)
    assert mobile_former.load_weights(model, path, ema=True).entry == "state_dict_ema"
    assert same(model, averaged)


def test_safetensors_round_trip_with_metadata(tmp_path):
    model, path = model_26m(num_classes=5), tmp_path / "new" / "folder" / "x.safetensors"
    mobile_former.save_weights(model, path)
    other = model_26m(num_classes=5)
    loaded = mobile_former.load_weights(other, path)
    assert loaded.num_classes == 5
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"model": "mobile_former_26m", "num_classes": "5"}
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_weights_are_saved_as_safetensors_only(tmp_path):
    with pytest.raises(InputError, match="safetensors"):
        mobile_former.save_weights(model_26m(), tmp_path / "x.pth")


def test_with_another_number_of_classes_all_but_the_last_linear_layer_is_loaded(authors, tmp_path, caplog):
    path = write(tmp_path / "x.pth", authors)
    model = model_26m(num_classes=10)
    head = model.classifier.logits.weight.clone()
    with caplog.at_level(logging.WARNING):
        loaded = mobile_former.load_weights(model, path)
    assert loaded.new_head
    assert loaded.num_classes == 1000
    assert "1000 classes, the model 10: loaded all layers except the last linear one" in caplog.text
    assert same(model, authors)
    assert torch.equal(model.classifier.features.weight, authors["classifier.fc.0.weight"])
    assert torch.equal(model.classifier.logits.weight, head)


def test_a_checkpoint_of_a_lightning_module_is_read(tmp_path):
    model = model_26m(num_classes=3)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    path = write(tmp_path / "x.ckpt", {"state_dict": state | {"other.weight": torch.ones(1)}, "epoch": 3})
    other = model_26m(num_classes=3)
    mobile_former.load_weights(other, path)
    assert torch.equal(model.backbone.tokens, other.backbone.tokens)


@pytest.mark.parametrize("theirs", ["mobile_former_52m", "mobile_former_294m"])
def test_a_file_of_another_variant_is_named(theirs, tmp_path):
    path = tmp_path / "x.safetensors"
    mobile_former.save_weights(mobile_former.create_model(theirs), path)
    with pytest.raises(InputError, match=f"holds the weights of {theirs}, but the model is mobile_former_26m"):
        mobile_former.load_weights(model_26m(num_classes=4), path)


def test_a_file_for_other_channels_names_the_option(tmp_path):
    path = tmp_path / "x.safetensors"
    mobile_former.save_weights(model_26m(in_chans=1), path)
    with pytest.raises(InputError, match="in_chans=1"):
        mobile_former.load_weights(model_26m(), path)


def test_a_file_of_another_network_names_the_differences(tmp_path):
    path = write(tmp_path / "x.pth", {"state_dict": torch.nn.Linear(3, 4).state_dict()})
    message = (
        r"x\.pth holds no published Mobile-Former\. Its tensors differ from mobile_former_26m: "
        r"\d+ missing \(first: 'backbone\.blocks\.0\..*'\), 2 unexpected \(first: 'bias'\)$"
    )
    with pytest.raises(InputError, match=message):
        mobile_former.load_weights(model_26m(), path)


def test_an_error_leaves_the_model_as_it_was(authors, tmp_path):
    model = model_26m()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    broken = {name: tensor for name, tensor in authors.items() if "features.3" not in name}
    with pytest.raises(InputError, match="missing"):
        mobile_former.load_weights(model, write(tmp_path / "x.pth", broken))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("name", "shape"), [("weight", (7, 1024)), ("bias", (7,)), ("bias", ()), ("weight", ())])
def test_a_last_linear_layer_without_a_clear_number_of_classes_is_an_error(name, shape, authors, tmp_path):
    path = write(tmp_path / "x.pth", authors | {f"classifier.classifier.1.{name}": torch.zeros(shape)})
    message = r"weights for \d+ classes, but \d+ biases|1 with another shape \(first: 'classifier\.logits"
    with pytest.raises(InputError, match=message):
        mobile_former.load_weights(model_26m(num_classes=7), path)


def test_an_inference_form_loads_no_weights(tmp_path):
    mobile_former.save_weights(model_26m(), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="DeployedMobileFormer cannot load weights: load them into a MobileFormer"):
        mobile_former.load_weights(mobile_former.deploy(model_26m()), tmp_path / "x.safetensors")
