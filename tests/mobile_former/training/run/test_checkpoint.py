import pytest
import torch

from classification.data.module import ClassificationData
from classification.module import ClassificationModule
from mobile_former.errors import InputError
from mobile_former.training.run.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def content():
    """Content of a checkpoint."""
    module = ClassificationModule(["cat", "dog"], name="mobile_former_26m")
    return {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": dict(ClassificationData(root="x").hparams),
    }


def load(path, content):
    torch.save(content, path)
    return load_checkpoint(path, ClassificationModule, "classification")


def test_the_module_and_the_options_of_its_data_are_loaded(content, tmp_path):
    module, options = load(tmp_path / "x.ckpt", content)
    assert not module.training
    assert module.hparams.class_names == ["cat", "dog"]
    assert options["image_size"] == 224


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("hyper_parameters", "class_names", 5),
        ("hyper_parameters", "learning_rate", "fast"),
        ("hyper_parameters", "name", None),
        ("hyper_parameters", 7, None),
        ("datamodule_hyper_parameters", "image_size", "large"),
        ("datamodule_hyper_parameters", "image_size", 2**40),
        ("datamodule_hyper_parameters", "crop_fraction", 1e-320),
        ("datamodule_hyper_parameters", "mean", [0.5, 0.5]),
        ("datamodule_hyper_parameters", "std", [1, 1, 0]),
        ("state_dict", "model.backbone.tokens", torch.zeros(7)),
        ("state_dict", "model.backbone.tokens", "none"),
        ("state_dict", "model.more", torch.zeros(7)),
    ],
)
def test_the_error_for_a_damaged_checkpoint_names_it(content, tmp_path, where, name, value):
    damaged = content | {where: content[where] | {name: value}}
    with pytest.raises(InputError, match=r"x\.ckpt is damaged or of another version"):
        load(tmp_path / "x.ckpt", damaged)


@pytest.mark.parametrize("where", ["state_dict", "hyper_parameters", "datamodule_hyper_parameters"])
@pytest.mark.parametrize("value", [None, [], "x"])
def test_the_error_for_a_checkpoint_with_parts_of_another_type_names_it(content, tmp_path, where, value):
    with pytest.raises(InputError, match=r"x\.ckpt is damaged"):
        load(tmp_path / "x.ckpt", content | {where: value})


def test_flipped_bits_in_a_checkpoint_are_an_error(content, tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(content, path)
    written = bytearray(path.read_bytes())
    written[len(written) // 2] ^= 0x40
    path.write_bytes(written)
    with pytest.raises(InputError, match=r"x\.ckpt is cut short or damaged \(the checksum of .* does not match\)"):
        load_checkpoint(path, ClassificationModule, "classification")
