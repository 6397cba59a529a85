import argparse
import logging
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open

import mobile_former
from mobile_former import InputError
from tests.conftest import reference_state_dict


@pytest.fixture(scope="module")
def authors():
    """The reference checkpoint of 26m in the authors' names."""
    return reference_state_dict("mobile_former_26m")[1]


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


def test_plain_weights_are_taken_unless_the_average_is_asked_for(authors, tmp_path, caplog):
    averaged = {name: tensor + 1 for name, tensor in authors.items()}
    path = write(tmp_path / "both.pth.tar", {"state_dict": authors, "state_dict_ema": averaged})
    model = model_26m()
    with caplog.at_level(logging.WARNING):
        assert mobile_former.load_weights(model, path).entry == "state_dict"
    assert "plain" in caplog.text
    assert same(model, authors)
    assert mobile_former.load_weights(model, path, ema=True).entry == "state_dict_ema"
    assert same(model, averaged)


def test_asking_for_an_average_that_is_not_there_is_an_error(authors, tmp_path):
    with pytest.raises(InputError, match="no averaged weights"):
        mobile_former.load_weights(model_26m(), write(tmp_path / "x.pth", {"state_dict": authors}), ema=True)


def test_options_and_numpy_scalars_of_the_training_program_are_read(authors, tmp_path):
    content = {
        "state_dict": authors,
        "args": argparse.Namespace(lr=0.1, data="/imagenet", opt_betas=None),
        "best": np.float64(64.0),
        "metric": np.float32(1.0),
        "epoch": np.int64(3),
    }
    model = model_26m()
    mobile_former.load_weights(model, write(tmp_path / "x.pth.tar", content))
    assert same(model, authors)


def test_numpy_scalars_under_their_old_name_are_read(authors, tmp_path):
    # numpy before 2 wrote its scalars' constructor as numpy.core.multiarray.scalar.
    path = tmp_path / "old.pth.tar"

    class OldPickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            if obj is np._core.multiarray.scalar:
                self.write(pickle.GLOBAL + b"numpy.core.multiarray\nscalar\n")
                self.memoize(obj)
            else:
                super().save_global(obj, name)

        dispatch = pickle._Pickler.dispatch | {type(np._core.multiarray.scalar): save_global}

    old = argparse.Namespace(Pickler=OldPickler, dumps=pickle.dumps, dump=pickle.dump, __name__="old")
    torch.save({"state_dict": authors, "best": np.float64(64.0)}, path, pickle_module=old)
    assert b"numpy.core.multiarray" in path.read_bytes()
    model = model_26m()
    mobile_former.load_weights(model, path)
    assert same(model, authors)


class Attack:
    def __reduce__(self):
        import os

        return os.system, ("touch attacked",)


@pytest.mark.parametrize("place", ["wrapped", "inside"])
def test_a_file_that_holds_code_is_refused_and_nothing_runs(place, authors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": authors, "args": Attack()} if place == "wrapped" else authors | {"x": Attack()}
    with pytest.raises(InputError, match="could run code"):
        mobile_former.load_weights(model_26m(), write(tmp_path / "x.pth", content))
    assert not (tmp_path / "attacked").exists()


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


def test_another_number_of_classes_loads_all_but_the_last_linear_and_says_so(authors, tmp_path, caplog):
    path = write(tmp_path / "x.pth", authors)
    model = model_26m(num_classes=10)
    head = model.classifier.logits.weight.clone()
    with caplog.at_level(logging.WARNING):
        loaded = mobile_former.load_weights(model, path)
    assert loaded.new_head
    assert loaded.num_classes == 1000
    assert "1000 classes, the model 10" in caplog.text
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
    with pytest.raises(InputError, match=theirs):
        mobile_former.load_weights(model_26m(num_classes=4), path)


def test_a_file_for_other_channels_says_how_to_mend_it(tmp_path):
    path = tmp_path / "x.safetensors"
    mobile_former.save_weights(model_26m(in_chans=1), path)
    with pytest.raises(InputError, match="in_chans=1"):
        mobile_former.load_weights(model_26m(), path)


def test_a_file_of_another_network_says_what_is_missing(tmp_path):
    path = write(tmp_path / "x.pth", {"state_dict": torch.nn.Linear(3, 4).state_dict()})
    with pytest.raises(InputError, match=r"no published Mobile-Former.*lacks"):
        mobile_former.load_weights(model_26m(), path)


def test_an_error_leaves_the_model_as_it_was(authors, tmp_path):
    model = model_26m()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    broken = {name: tensor for name, tensor in authors.items() if "features.3" not in name}
    with pytest.raises(InputError, match="lacks"):
        mobile_former.load_weights(model, write(tmp_path / "x.pth", broken))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_flipped_bits_are_told_and_nothing_is_loaded(authors, tmp_path):
    path = write(tmp_path / "flipped.pth", authors)
    written = bytearray(path.read_bytes())
    written[len(written) // 2] ^= 0x40
    path.write_bytes(written)
    with pytest.raises(InputError, match=r"flipped\.pth is cut short or damaged \(the checksum"):
        mobile_former.create_model("mobile_former_26m", pretrained=path)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_a_file_cut_short_is_told_as_such(ending, share, authors, tmp_path):
    path = tmp_path / f"x{ending}"
    if ending == ".pth":
        torch.save(authors, path)
    else:
        mobile_former.save_weights(model_26m(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=str(path)):
        mobile_former.load_weights(model_26m(), path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04 no zip", bytes(5000)]
)
def test_what_is_no_weights_file_is_told_as_such(content, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        mobile_former.load_weights(model_26m(), path)


@pytest.mark.parametrize(
    "content", [[1, 2], {"state_dict": [1]}, {"state_dict": {}}, {1: 2}, {"a": "b"}, torch.ones(3)]
)
def test_data_that_is_no_set_of_weights_is_told_as_such(content, tmp_path):
    with pytest.raises(InputError):
        mobile_former.load_weights(model_26m(), write(tmp_path / "x.pth", content))


@pytest.mark.parametrize(
    "odd",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    ],
)
def test_a_tensor_that_cannot_be_copied_into_a_parameter_is_told_by_name(odd, authors, tmp_path):
    name = "stem.0.weight"
    path = write(tmp_path / "x.pth", authors | {name: odd(authors[name])})
    with pytest.raises(InputError, match=f"no plain tensors .such as '{name}'"):
        mobile_former.load_weights(model_26m(), path)


@pytest.mark.parametrize(("name", "shape"), [("weight", (7, 1024)), ("bias", (7,)), ("bias", ()), ("weight", ())])
def test_a_last_linear_of_two_numbers_of_classes_or_of_none_is_told(name, shape, authors, tmp_path):
    path = write(tmp_path / "x.pth", authors | {f"classifier.classifier.1.{name}": torch.zeros(shape)})
    with pytest.raises(InputError, match=r"classes and biases|shapes differ, first 'classifier\.logits"):
        mobile_former.load_weights(model_26m(num_classes=7), path)


def test_no_such_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pth"):
        mobile_former.load_weights(model_26m(), tmp_path / "no.pth")
    with pytest.raises(InputError, match="folder"):
        mobile_former.load_weights(model_26m(), tmp_path)


@pytest.mark.parametrize("asked", [True, False])
def test_weights_that_would_have_to_be_downloaded_are_told_apart_from_a_file(asked):
    with pytest.raises(InputError, match=rf"pretrained is {asked}: nothing is downloaded; give a weights file"):
        mobile_former.mobile_former_26m(pretrained=asked)
