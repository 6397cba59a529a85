import sys

import pytest

import classification.fit
from mobile_former.errors import InputError


def error_of(monkeypatch, path, *options):
    """Return the error of ``classification.fit`` with a config; there are no images, so training never starts."""
    monkeypatch.setattr(sys, "argv", ["fit", "--config", str(path), *options])
    with pytest.raises(InputError) as error:
        classification.fit.main()
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: \xff\xfe", "has a value that cannot be read ('utf-8' codec can't decode byte 0xff"),
        (b"name: &a [*a]", "its aliases (*name) expand to too many values"),
        (
            b"a0: &a0 [x, x]\n"
            + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40))
            + b"name: *a39",
            "its aliases (*name) expand to too many values",
        ),
        (b"name: " + b"[" * 5000 + b"]" * 5000, "has a value that cannot be read (maximum recursion depth"),
        (b"name: !!int x", "has a value that cannot be read (invalid literal for int"),
        (b"name: !!timestamp x", "has a value that cannot be read"),
        (b"name: 1" + b"0" * 6000, "has a value that cannot be read (Exceeds the limit (4300 digits)"),
        (b"model: {learning_rate: 1" + b"0" * 400 + b"}", "has a value that cannot be read (int too large"),
        (b"model: 0.5", "--model is 0.5: give its options as --model.NAME VALUE"),
        (b"data: {dataset: null}", "--data.dataset is null: give a value, or leave it out"),
        (b"data: {crop_fraction: null}", "--data.crop_fraction is null: give a value, or leave it out"),
        (b"trainer: .inf", "--trainer is inf: give its options"),
        (b"seed_everything: -1", "--seed_everything is -1: give a number from 0 to 4294967295"),
        (b"seed_everything: 99999999999", "--seed_everything is 99999999999: give a number from 0"),
    ],
)
def test_an_invalid_config_is_an_input_error(monkeypatch, tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_bytes(text)
    assert message in error_of(monkeypatch, path)


@pytest.mark.parametrize("place", ["scale: [0.9, CALL]", "scale: CALL"])
def test_transforms_of_a_config_call_only_transforms(monkeypatch, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    call = "{class_path: os.system, init_args: {command: touch attacked}}"
    path = tmp_path / "own.yaml"
    transform = f"{{class_path: albumentations.Affine, init_args: {{{place.replace('CALL', call)}}}}}"
    path.write_text(f"data: {{dataset: digits, train_transforms: [{transform}]}}")
    assert "'os.system' is not a transform of albumentations" in error_of(monkeypatch, path)
    assert not (tmp_path / "attacked").exists()


def test_configs_may_hold_nested_transforms_and_aliases(monkeypatch, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "data:\n  train_transforms:\n  - &flip {class_path: albumentations.HorizontalFlip}\n  - *flip\n"
        "  - {class_path: albumentations.OneOf, init_args: {transforms: [*flip, *flip]}}\n"
    )
    assert "no images: give --data.root" in error_of(monkeypatch, path)
