import argparse
import pickle

import numpy as np
import pytest
import torch

import mobile_former
from mobile_former import InputError
from mobile_former.weights.files import read_weights


def write(path, content):
    torch.save(content, path)
    return path


def same(path, authors):
    """Whether a file holds the authors' checkpoint."""
    return torch.equal(read_weights(path)[0]["backbone.tokens"], authors["tokens.weight"])


def test_the_entry_is_returned_with_the_tensors(authors, tmp_path):
    path = write(tmp_path / "x.pth", {"state_dict": {"a": torch.ones(1)}, "state_dict_ema": {"a": torch.zeros(1)}})
    assert read_weights(path) == ({"a": torch.ones(1)}, "state_dict")
    assert read_weights(path, ema=True) == ({"a": torch.zeros(1)}, "state_dict_ema")
    assert read_weights(write(path, {"a": torch.ones(1)})) == ({"a": torch.ones(1)}, "file")


def test_averaged_weights_that_are_missing_are_an_error(authors, tmp_path):
    with pytest.raises(InputError, match="no averaged weights"):
        read_weights(write(tmp_path / "x.pth", {"state_dict": authors}), ema=True)


def test_options_and_numpy_scalars_of_the_training_program_are_read(authors, tmp_path):
    content = {
        "state_dict": authors,
        "args": argparse.Namespace(lr=0.1, data="/imagenet", opt_betas=None),
        "best": np.float64(64.0),
        "metric": np.float32(1.0),
        "epoch": np.int64(3),
    }
    assert same(write(tmp_path / "x.pth.tar", content), authors)


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
    assert same(path, authors)


class Attack:
    def __reduce__(self):
        import os

        return os.system, ("touch attacked",)


@pytest.mark.parametrize("place", ["wrapped", "inside"])
def test_a_file_with_code_is_refused_and_nothing_runs(place, authors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": authors, "args": Attack()} if place == "wrapped" else authors | {"x": Attack()}
    with pytest.raises(InputError, match="could run code"):
        read_weights(write(tmp_path / "x.pth", content))
    assert not (tmp_path / "attacked").exists()


def test_flipped_bits_are_an_error(authors, tmp_path):
    path = write(tmp_path / "flipped.pth", authors)
    written = bytearray(path.read_bytes())
    written[len(written) // 2] ^= 0x40
    path.write_bytes(written)
    with pytest.raises(InputError, match=r"flipped\.pth is cut short or damaged \(the checksum"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_a_file_cut_short_is_an_error(suffix, share, authors, tmp_path):
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save(authors, path)
    else:
        mobile_former.save_weights(mobile_former.mobile_former_26m(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=str(path)):
        read_weights(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04 no zip", bytes(5000)]
)
def test_a_file_of_another_format_is_an_error(content, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        read_weights(path)


@pytest.mark.parametrize(
    "content", [[1, 2], {"state_dict": [1]}, {"state_dict": {}}, {1: 2}, {"a": "b"}, torch.ones(3)]
)
def test_data_without_named_tensors_is_an_error(content, tmp_path):
    path = write(tmp_path / "x.pth", content)
    with pytest.raises(InputError, match=str(path)):
        read_weights(path)


@pytest.mark.parametrize(
    "odd",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    ],
)
def test_a_tensor_that_cannot_be_copied_into_a_parameter_is_named(odd, authors, tmp_path):
    name = "stem.0.weight"
    path = write(tmp_path / "x.pth", authors | {name: odd(authors[name])})
    with pytest.raises(InputError, match=f"'{name}' is not a plain tensor"):
        read_weights(path)


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pth"):
        read_weights(tmp_path / "no.pth")
    with pytest.raises(InputError, match="folder"):
        read_weights(tmp_path)
