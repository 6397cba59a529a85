import sys

import pytest

import classification.fit
from mobile_former.errors import InputError


def fit(monkeypatch, path, *options):
    """What ``classification.fit`` says of a config; it ends before it trains, as there are no images."""
    monkeypatch.setattr(sys, "argv", ["fit", "--config", str(path), *options])
    with pytest.raises(InputError) as error:
        classification.fit.main()
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: \xff\xfe", "is no text in UTF-8 (invalid start byte at byte 6)"),
        (b"name: &a [*a]", "what its aliases (*name) stand for has no end"),
        (
            b"a0: &a0 [x, x]\n"
            + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40))
            + b"name: *a39",
            "what its aliases (*name) stand for has no end",
        ),
        (b"name: " + b"[" * 5000 + b"]" * 5000, "nests too deeply"),
        (b"name: !!int x", "has a value that cannot be read (invalid literal for int"),
        (b"name: !!timestamp x", "has a value that cannot be read"),
        (b"name: 1" + b"0" * 6000, "has a value that cannot be read (Exceeds the limit (4300 digits)"),
        (b"model: {learning_rate: 1" + b"0" * 400 + b"}", "has a value that cannot be read (int too large"),
        (b"model: 0.5", "--model is 0.5: give its options, as --model.NAME VALUE"),
        (b"data: {dataset: null}", "--data.dataset is null: give a value, or leave it out"),
        (b"data: {crop_fraction: null}", "--data.crop_fraction is null: give a value, or leave it out"),
        (b"trainer: .inf", "--trainer is inf: give its options"),
        (b"seed_everything: -1", "--seed_everything is -1: give a number from 0 to 4294967295"),
        (b"seed_everything: 99999999999", "--seed_everything is 99999999999: give a number from 0"),
    ],
)
def test_a_config_that_cannot_be_read_is_told_in_a_message(monkeypatch, tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_bytes(text)
    assert message in fit(monkeypatch, path)


@pytest.mark.parametrize("place", ["scale: [0.9, CALL]", "scale: CALL"])
def test_transforms_of_a_config_call_nothing_but_transforms(monkeypatch, tmp_path, place):
    monkeypatch.chdir(tmp_path)
    call = "{class_path: os.system, init_args: {command: touch attacked}}"
    path = tmp_path / "own.yaml"
    transform = f"{{class_path: albumentations.Affine, init_args: {{{place.replace('CALL', call)}}}}}"
    path.write_text(f"data: {{dataset: digits, train_transforms: [{transform}]}}")
    assert "'os.system' is no transform of albumentations" in fit(monkeypatch, path)
    assert not (tmp_path / "attacked").exists()


def test_transforms_within_transforms_and_aliases_are_taken(monkeypatch, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "data:\n  train_transforms:\n  - &flip {class_path: albumentations.HorizontalFlip}\n  - *flip\n"
        "  - {class_path: albumentations.OneOf, init_args: {transforms: [*flip, *flip]}}\n"
    )
    assert "no images: give --data.root" in fit(monkeypatch, path)
